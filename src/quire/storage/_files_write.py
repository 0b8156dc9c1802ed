"""The writer of a folder store: what its thread does, and remembers between commits.

1. A call of `commit` is one frame of the journal and one sync; an item that does not fit is left out.
2. What is remembered of heads holds while the number of commits says that nobody else wrote.
3. A commit that failed breaks the writer: only after `settle` is known what of it is stored.
4. Files are replaced and removed in frames of their own, with what goes into them synced before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import msgspec

from quire.errors import CorruptRecord, StorageUnavailable
from quire.failpoints import hit
from quire.model import Cell, Head, Keyframe, Record
from quire.storage import _files_care as care
from quire.storage import _files_feed as feeds
from quire.storage._files_cells import CELLS, Cells, after_write, cell_line, expired, whose_cells
from quire.storage._files_feed import FEED, whose_feed
from quire.storage._files_journal import State, Work
from quire.storage._files_lines import first_line, owner, record_line, record_of, version_of
from quire.storage._files_place import Place, base_of
from quire.storage._files_read import Reader
from quire.storage.base import CellWrite, Committed, Item, Outcome, Refused

_HEADS_MAX = 100_000
"""Heads remembered between commits; beyond that all are forgotten and read again."""
_NO_RECORDS = Committed(0, 0)


class _Stream(msgspec.Struct, gc=False):
    """What is known of a stream: its file, that file's size, whose its lines are, and its head."""

    path: str
    size: int
    whose: bytes
    version: int
    chain: bytes
    kind: str


class _Draft:
    """What a call of `commit` is going to store."""

    def __init__(self, position: int) -> None:
        self.first = position + 1
        self.position = position
        self.records: list[Record] = []
        self.lines: dict[str, list[bytes]] = {}
        """By stream, in the order of versions."""
        self.cells: dict[str, Cell | None] = {}


class Writer:
    """Used in the writer's thread only."""

    def __init__(self, place: Place, reader: Reader, cells: Cells, now_ms: Callable[[], int]) -> None:
        self._place = place
        self._disk = place.disk
        self._reader = reader
        self._cells = cells
        self._now_ms = now_ms
        self._namespace = place.namespace
        self._base = place.base
        self._whose_feed = whose_feed(place.namespace)
        self._whose_cells = whose_cells(place.namespace)
        self.broken: State | None = None
        """Where the store stood when a commit failed."""
        self._seen: tuple[int, int] | None = None
        """The commit and generation that what follows belongs to; None: nothing is known."""
        self._heads: dict[str, _Stream] = {}
        self._sizes: dict[str, int] = {}

    # commit

    def commit(self, items: Sequence[Item]) -> list[Outcome]:
        """Store items in order, in one frame."""
        if self.broken is not None:
            raise StorageUnavailable(f"{self._place.path}: an earlier commit failed; `recover` has to settle it first")
        try:
            with self._place.held() as state:
                hit("commit:begin")
                self._refresh(state)
                draft = _Draft(state.position)
                outcomes = [self._place_item(state, item, draft) for item in items]
                if draft.records or draft.cells:
                    self._store(state, draft)
        except BaseException:
            self._forget()
            raise
        hit("commit:after")
        return outcomes

    def _store(self, state: State, draft: _Draft) -> None:
        work = Work(draft.position, state.generation)
        parts: list[bytes] = []
        for name, lines in draft.lines.items():
            stream = self._heads[name]
            if stream.size == 0:
                lines.insert(0, first_line(stream.whose, self._namespace, name, "stream"))
            stream.size += self._add(work, parts, stream.path, stream.size, lines)
        if draft.cells:
            seq = state.seq + 1
            lines = [
                cell_line(self._whose_cells, name, seq, cell and cell.value, cell and cell.expires)
                for name, cell in draft.cells.items()
            ]
            self._add_beside(state, work, parts, CELLS, lines)
        if draft.records:
            line = feeds.commit_line(self._whose_feed, draft.first, draft.records)
            self._add_beside(state, work, parts, FEED, [line])
        data = b"".join(parts)
        try:
            after = self._place.journal.commit(state, work, data)
            self._place.inodes.confirm()
        except BaseException:
            self.broken = state
            raise
        self._seen = (after.seq, after.generation)
        if draft.cells:
            self._cells.reached(after, self._sizes[f"{self._base}{CELLS}"])
        if draft.records:
            self._reader.fed(after, draft.position)
        for name in draft.lines:
            self._reader.know(after, name, self._heads[name].version)

    def _add(self, work: Work, parts: list[bytes], path: str, size: int, lines: list[bytes]) -> int:
        data = b"".join(lines)
        work.adds.append((path, size, len(data)))
        parts.append(data)
        return len(data)

    def _add_beside(self, state: State, work: Work, parts: list[bytes], file: str, lines: list[bytes]) -> None:
        path = f"{self._base}{file}"
        size = self._sizes.get(path)
        if size is None:
            with self._reader.open_feed(state) if file == FEED else self._cells.open(state) as found:
                size = found.size
        self._sizes[path] = size + self._add(work, parts, path, size, lines)

    def _refresh(self, state: State) -> None:
        """Forget what is known if anybody else wrote since."""
        seen = (state.seq, state.generation)
        if seen != self._seen or len(self._heads) > _HEADS_MAX:
            self._forget()
            self._seen = seen

    def _forget(self) -> None:
        """Know nothing about heads and files any more."""
        self._seen = None
        self._heads.clear()
        self._sizes.clear()
        self._disk.forget_all()

    def _place_item(self, state: State, item: Item, draft: _Draft) -> Outcome:
        """Check one item; if all that it expects holds, add its lines to the draft."""
        known = self._heads
        moved: list[Head] = []
        for expect in item.expect:
            name = expect.stream
            stream = known.get(name) or self._look_up(state, name)
            if stream.version != expect.version or stream.chain != expect.chain:
                moved.append(Head(name, stream.version, stream.chain, stream.kind))
        cells = self._moved_cells(state, item.cells, draft) if item.cells else ()
        if moved or cells:
            return Refused(tuple(moved), tuple(cells))
        now = self._now_ms() if item.cells else 0
        for write in item.cells:
            draft.cells[write.name] = after_write(write, now)
        first = draft.position + 1
        for r in item.records:
            stream = known.get(r.stream)
            assert stream is not None, "an item must expect what its records follow"
            assert r.version == stream.version + 1, "an item must expect what its records follow"
            draft.position += 1
            draft.lines.setdefault(r.stream, []).append(record_line(stream.whose, r, draft.position))
            stream.version, stream.chain, stream.kind = r.version, r.chain, r.kind
        draft.records += item.records
        return Committed(first, draft.position) if item.records else _NO_RECORDS

    def _moved_cells(self, state: State, writes: Sequence[CellWrite], draft: _Draft) -> list[str]:
        now = self._now_ms()
        held = self._cells.at(state)
        moved: list[str] = []
        for write in writes:
            cell = draft.cells[write.name] if write.name in draft.cells else held.get(write.name)
            value = None if cell is None or expired(cell, now) else cell.value
            if value != write.expected:
                moved.append(write.name)
        return moved

    def _look_up(self, state: State, name: str) -> _Stream:
        path = self._reader.path_of(name)
        head = self._reader.head(state, name)
        size = self._disk.size(path)
        known = _Stream(path, size, owner(self._namespace, name), head.version, head.chain, head.kind)
        if size and not head.version:
            raise CorruptRecord(f"{self._disk.at(path)} holds no record; restore a backup", at=name)
        self._heads[name] = known
        return known

    def settle(self) -> None:
        """After a failed commit: see to it that it is not stored, unless another process finished it."""
        self._forget()
        failed = self.broken
        if failed is None:
            return
        with self._place.locked():
            self._place.journal.take_back(failed)
        self.broken = None

    # removing

    def trim(self, stream: str, upto: int) -> int:
        """Remove old records of a stream, never the head's; return how many."""
        with self._changing() as state:
            file = self._reader.open(state, stream)
            if file is None:
                return 0
            with file:
                head = self._reader.head(state, stream)
                upto = min(upto, head.version - 1)
                lines = [line + b"\n" for _, line in file.forward()]
            kept = [line for line in lines[1:] if version_of(line) > upto]
            gone = len(lines) - 1 - len(kept)
            if gone:
                temp = self._disk.write_temp([lines[0], *kept])
                told = feeds.trimmed_line(self._whose_feed, state.position, stream, upto)
                self._replace(state, renames=[(temp, self._reader.path_of(stream))], told=told)
            return gone

    def drop(self, stream: str) -> None:
        """Remove a stream with its records and keyframes."""
        with self._changing() as state:
            path = self._reader.path_of(stream)
            if self._disk.size(path):
                told = feeds.dropped_line(self._whose_feed, state.position, stream)
                self._replace(state, removes=[path, self._reader.keyframes_at(stream)], told=told)

    def rewrite(self, records: Sequence[Record]) -> int:
        """Give records another body; return how many were found."""
        wanted: dict[str, dict[tuple[int, bytes], bytes]] = {}
        for r in records:
            wanted.setdefault(r.stream, {})[r.version, r.chain] = r.body
        count = 0
        with self._changing() as state:
            renames: list[tuple[str, str]] = []
            for stream, bodies in wanted.items():
                found, lines = self._rewritten(state, stream, bodies)
                if found:
                    renames.append((self._disk.write_temp(lines), self._reader.path_of(stream)))
                    count += found
            if renames:
                self._replace(state, renames=renames)
        return count

    def _rewritten(self, state: State, stream: str, bodies: dict[tuple[int, bytes], bytes]) -> tuple[int, list[bytes]]:
        file = self._reader.open(state, stream)
        if file is None:
            return 0, []
        count, lines = 0, list[bytes]()
        with file:
            for _, line in file.forward():
                record = record_of(stream, line)
                body = bodies.get((record.version, record.chain)) if record.version else None
                if body is None:
                    lines.append(line + b"\n")
                    continue
                count += 1
                record = msgspec.structs.replace(record, body=body)
                lines.append(record_line(file.whose, record, record.position))
        return count, lines

    def _changing(self) -> AbstractContextManager[State]:
        self._forget()
        return self._place.held()

    def _replace(
        self,
        state: State,
        *,
        renames: Sequence[tuple[str, str]] = (),
        removes: Sequence[str] = (),
        told: bytes | None = None,
    ) -> None:
        work = Work(state.position, state.generation + 1, renames=list(renames), removes=list(removes))
        parts: list[bytes] = []
        if told is not None:
            self._add_beside(state, work, parts, FEED, [told])
        self._place.journal.commit(state, work, b"".join(parts))
        self._place.inodes.confirm()
        self._forget()

    # beside the log

    def put_keyframe(self, frame: Keyframe) -> None:
        """Keep a keyframe of a stream that is there."""
        temp = self._disk.write_temp(self._reader.keyframe_parts(frame))
        with self._place.held() as state:
            if self._reader.head(state, frame.stream).version == 0:
                self._disk.remove(temp)
                return
            self._disk.make_folder(self._reader.keyframes_at(frame.stream))
            self._disk.publish(temp, self._reader.keyframe_at(frame.stream, frame.version))

    def drop_keyframes(self, stream: str, versions: Sequence[int]) -> None:
        """Remove keyframes."""
        with self._place.held():
            there = set(self._reader.keyframes(stream))
            gone = there.intersection(versions)
            for version in gone:
                self._disk.remove(self._reader.keyframe_at(stream, version))
            if gone:
                self._disk.sync_folder(self._reader.keyframes_at(stream))

    def put_blob(self, name: str, data: bytes) -> None:
        """Keep bytes, unless there are some of that name."""
        path = self._reader.blob_at(name)
        if self._disk.size(path):
            return
        temp = self._disk.write_temp(self._reader.blob_parts(name, data))
        with self._place.held():
            if self._disk.size(path):
                self._disk.remove(temp)
            else:
                self._disk.publish(temp, path)
                self._place.inodes.confirm()

    def drop_blob(self, name: str) -> None:
        """Remove bytes."""
        with self._place.held() as state:
            path = self._reader.blob_at(name)
            if self._disk.size(path):
                self._disk.remove(path)
                self._disk.sync_folder(path.rpartition("/")[0])
                self._place.journal.publish(state._replace(generation=state.generation + 1))

    # care

    def rest(self, *, within_s: float = 0) -> None:
        """What a quiet moment is for: bring the journal into the files, and write crowded cells anew."""
        if self.broken is not None:
            return
        with self._place.held(within_s=within_s) as found:
            self._cells.at(found)
            crowded = self._cells.crowded(self._now_ms())
            self._place.journal.checkpoint(self._compact_cells(found, self._cells) if crowded else found)

    def scrub(self) -> None:
        """Leave nothing in the folder that was removed: in the feeds, among the cells, in the journal."""
        with self._changing() as found:
            state = found
            for namespace in self._place.namespaces():
                reader = Reader(self._disk, namespace, self._place.ending)
                temp = self._disk.write_temp(list(care.feed_anew(reader, state)))
                work = Work(state.position, state.generation + 1, renames=[(temp, f"{reader.base}{FEED}")])
                state = self._place.journal.commit(state, work, b"")
                cells = Cells(self._disk.at(f"{reader.base}{CELLS}"), namespace)
                state = self._compact_cells(state, cells)
            self._place.journal.wipe(state)
        self._forget()

    def _compact_cells(self, state: State, cells: Cells) -> State:
        self._forget()
        now = self._now_ms()
        held = [cell for cell in cells.at(state).values() if not expired(cell, now)]
        whose, path = whose_cells(cells.namespace), f"{base_of(cells.namespace)}{CELLS}"
        lines = [first_line(whose, cells.namespace, CELLS, "file")]
        # 0: who began to read before this commit must find them too
        lines += [cell_line(whose, c.name, 0, c.value, c.expires) for c in held]
        temp = self._disk.write_temp(lines)
        work = Work(state.position, state.generation + 1, renames=[(temp, path)])
        return self._place.journal.commit(state, work, b"")
