"""The journal of a folder store: where a commit happens.

1. What a commit adds to files is first written to the journal as one frame and synced: that is the commit. Then the files
   are written, then `quire.state` says that it can be read. Whoever finds a frame that was not finished finishes it.
2. A frame says which bytes go where, so doing it again changes nothing. Files are synced when the journal is full or all is
   quiet; then a new round begins and the journal is overwritten from its start.
3. A frame that replaces or removes files is alone in its round.
4. A frame that is not whole is the end of the journal only if nothing shows that it had been: no later frame, and no
   line in a file that only it can have brought. Otherwise it is damage, and said.
5. A handle that failed to sync never trusts what it failed on: the frame is taken back, or written anew.

`quire.state` is only how processes that live at the same time tell each other; after a crash it follows from the journal.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
from blake3 import blake3

from quire.errors import CorruptRecord
from quire.failpoints import hit
from quire.storage import _files_disk as disk
from quire.storage._files_disk import Disk

JOURNAL, STATE = "quire.journal", "quire.state"
JOURNAL_MAX_BYTES = 16 * 1024 * 1024
"""A journal that would grow beyond this begins anew, after the files are synced."""
_SLOT_BYTES = 4096
_FRAMES_AT = 2 * _SLOT_BYTES
_SLOT = struct.Struct(">8sQQQQ16s")
_SLOT_MAGIC = b"QUIREJ1\n"
_FRAME = struct.Struct(">4sQQQ16s")
_FRAME_MAGIC = b"\x00QJ1"
"""No line of ours holds a zero byte, so no content of a frame looks like one."""
_STATE_BYTES = 256
_FIRST_ROUND = 2
"""It lies in the first slot; the next one goes into the second, so that one that is torn leaves the other."""
_TRIES = 200
_FAR = 1_000_000
"""How far generations jump where nobody knows what they were."""


class State(NamedTuple):
    """Where a store stands. round: of the journal.  seq: number of commits.  end: of the journal, in bytes.

    position: the newest.  generation: how often files were replaced or removed.
    """

    round: int
    seq: int
    end: int
    position: int
    generation: int


class Work(msgspec.Struct, gc=False, omit_defaults=True):
    """What a frame does: bytes added to files (path, offset, length), files renamed (from, to), files removed."""

    position: int
    generation: int
    adds: list[tuple[str, int, int]] = []
    renames: list[tuple[str, str]] = []
    removes: list[str] = []

    @property
    def structural(self) -> bool:
        """Whether files become others."""
        return bool(self.renames or self.removes)


class Frame(NamedTuple):
    """A frame as read. raw: all its bytes, to be written anew."""

    seq: int
    work: Work
    data: bytes
    raw: bytes


_encode = msgspec.json.Encoder().encode
_work = msgspec.json.Decoder(Work).decode
_state = msgspec.json.Decoder(dict[str, int | str]).decode


def _digest(*parts: bytes) -> bytes:
    total = blake3()
    for part in parts:
        total.update(part)
    return total.digest(length=16)


def _frame(round_: int, seq: int, work: Work, data: bytes) -> bytes:
    content = _encode(work) + b"\n" + data
    key = _FRAME.pack(_FRAME_MAGIC, round_, seq, len(content), bytes(16))
    return _FRAME.pack(_FRAME_MAGIC, round_, seq, len(content), _digest(key, content)) + content


def create(root: Disk, after: State | None = None) -> None:
    """Make an empty journal, durably. after: where the store stands already, for a copy."""
    start = (after or State(0, 0, 0, 0, 0))._replace(round=_FIRST_ROUND)
    handle = disk.open_to_write(root.at(JOURNAL))
    try:
        disk.pwrite(handle, _slot(start) + bytes(_FRAMES_AT - _SLOT_BYTES), 0)
        disk.sync(handle)
    finally:
        os.close(handle)


def _slot(state: State) -> bytes:
    key = _SLOT.pack(_SLOT_MAGIC, state.round, state.seq, state.position, state.generation, bytes(16))
    return (key[:-16] + _digest(key)).ljust(_SLOT_BYTES, b"\0")


def _slot_state(data: bytes) -> State | None:
    if len(data) < _SLOT.size:
        return None
    magic, round_, seq, position, generation, total = _SLOT.unpack_from(data)
    state = State(round_, seq, _FRAMES_AT, position, generation)
    return state if magic == _SLOT_MAGIC and _slot(state)[: _SLOT.size][-16:] == total else None


class Journal:
    """The journal of an open store. All but `published` needs the store's lock."""

    def __init__(self, root: Disk) -> None:
        self._disk = root
        self.path = root.at(JOURNAL)
        self._handle = disk.open_to_write(self.path)
        self._state = disk.open_to_write(root.at(STATE))
        self._known = (b"", State(0, 0, 0, 0, 0))

    def close(self) -> None:
        """Close both files."""
        os.close(self._handle)
        os.close(self._state)

    # what processes tell each other

    def published(self) -> State:
        """Return where the store stands, as far as it can be read. Two microseconds. Raises CorruptRecord."""
        for _ in range(_TRIES):
            raw = os.pread(self._state, _STATE_BYTES, 0)
            known, state = self._known
            if raw == known:
                return state
            found = _state_of(raw)
            if found is not None:  # else somebody is just writing it
                self._known = (raw, found)
                return found
        raise CorruptRecord(f"{self._disk.at(STATE)} is damaged; close the store everywhere and open it anew", at=STATE)

    def publish(self, state: State) -> None:
        """Let everybody read up to `state`."""
        disk.pwrite(self._state, _state_line(state), 0)

    # committing

    def enter(self) -> State:
        """Return where the store stands, after finishing what a writer that died had begun. Call it first."""
        try:
            state = self.published()
        except CorruptRecord:
            return self.restart(_FAR)
        while (frame := self._read(state, state.end, state.seq + 1)) is not None:
            disk.pwrite(self._handle, frame.raw, state.end)  # a sync that failed may have left it in memory only
            disk.sync(self._handle)
            self._disk.forget_all()
            state = self._finish(state, frame.seq, frame.work, frame.data, len(frame.raw))
        return state

    def commit(self, state: State, work: Work, data: bytes) -> State:
        """Make a frame durable, do what it says, and let everybody read it; return where the store stands then.

        If it raises, `take_back` has to be called before anything else is written.
        """
        raw = _frame(state.round, state.seq + 1, work, data)
        if state.end > _FRAMES_AT and (work.structural or state.end + len(raw) > JOURNAL_MAX_BYTES):
            state = self.checkpoint(state)
            raw = _frame(state.round, state.seq + 1, work, data)
        half = len(raw) // 2
        disk.pwrite(self._handle, raw[:half], state.end)
        hit("commit:torn")
        disk.pwrite(self._handle, raw[half:], state.end + half)
        hit("commit:before")
        disk.sync(self._handle)
        hit("commit:synced")
        return self._finish(state, state.seq + 1, work, data, len(raw))

    def _finish(self, state: State, seq: int, work: Work, data: bytes, size: int) -> State:
        self._do(work, data)
        hit("commit:written")
        state = State(state.round, seq, state.end + size, work.position, work.generation)
        self.publish(state)
        return self.checkpoint(state) if work.structural else state

    def _do(self, work: Work, data: bytes, *, again: bool = False) -> None:
        """Do what a frame says. again: after a crash, which may have taken what files held."""
        for source, target in work.renames:
            if Path(self._disk.at(source)).exists():  # else it was done before
                self._disk.publish(source, target)
                hit("commit:renamed")
        for path in work.removes:
            self._disk.remove(path)
        at = 0
        for path, offset, length in work.adds:
            if not again:
                self._disk.expect(path, offset)
            self._disk.write_at(path, offset, data[at : at + length])
            hit("commit:write")
            at += length
        if work.removes:
            for folder in {str(Path(self._disk.at(path)).parent) for path in work.removes}:
                disk.sync_folder(folder)

    def take_back(self, failed: State) -> State:
        """After a commit on `failed` raised: see to it that it did not happen, durably, unless somebody finished it.

        Return where the store stands. Raises what the disk raises; call it again then.
        """
        self._disk.forget_all()
        state = self.published()
        if state.seq == failed.seq:
            frame = self._read(state, state.end, state.seq + 1)
            adds = frame.work.adds if frame else []
            for path, offset, _ in adds:  # first these: a frame that is there is only done again
                if offset:
                    self._disk.cut(path, offset)
                else:
                    self._disk.remove(path)
            for folder in {str(Path(self._disk.at(path)).parent) for path, _, _ in adds}:
                disk.sync_folder(folder)
            disk.pwrite(self._handle, bytes(_FRAME.size), state.end)
            disk.sync(self._handle)
        return self.checkpoint(self.enter())

    # rounds

    def checkpoint(self, state: State) -> State:
        """Sync every file that frames of this round wrote, and begin a new round."""
        if state.end == _FRAMES_AT:
            return state
        hit("checkpoint:begin")
        paths: set[str] = set()
        for frame in self._frames(state, upto=state.end):
            paths.update(path for path, _, _ in frame.work.adds)
            paths.update(path for _, path in frame.work.renames)
        self._disk.sync(paths)
        hit("checkpoint:synced")
        return self._begin_round(state)

    def _begin_round(self, state: State) -> State:
        state = state._replace(round=state.round + 1, end=_FRAMES_AT)
        if os.fstat(self._handle).st_size > 2 * JOURNAL_MAX_BYTES:  # after one commit that was very large
            os.ftruncate(self._handle, JOURNAL_MAX_BYTES)
        disk.pwrite(self._handle, _slot(state), state.round % 2 * _SLOT_BYTES)
        disk.sync(self._handle)
        hit("checkpoint:round")
        self.publish(state)
        return state

    def wipe(self, state: State) -> State:
        """Leave nothing of former frames in the file."""
        state = self.checkpoint(state)
        os.ftruncate(self._handle, _FRAMES_AT)
        os.fsync(self._handle)
        return state

    def restart(self, jump: int = 1, unfinished: Callable[[int], str | None] | None = None) -> State:
        """Do every frame of the round again, sync the files, begin a new round: what follows a crash.

        unfinished: told the newest position, it returns where in the files something newer stands, if it does.
        Raises CorruptRecord where the journal itself is damaged.
        """
        state = first = self._header()
        self._disk.forget_all()
        ends: dict[str, int] = {}
        for frame in self._frames(state):
            self._do(frame.work, frame.data, again=True)
            for path, offset, length in frame.work.adds:
                ends[path] = offset + length
            end = state.end + len(frame.raw)
            state = State(state.round, frame.seq, end, frame.work.position, frame.work.generation)
        beyond = next((path for path, end in ends.items() if self._disk.size(path) > end), None)
        if beyond is None and unfinished is not None:
            beyond = unfinished(state.position)
        if beyond is not None or self._goes_on(state):
            where = f"{beyond} holds more than it says" if beyond else "a later one is whole"
            raise CorruptRecord(
                f"{self.path}: commit {state.seq + 1} is damaged ({where}); restore a backup",
                at=f"{JOURNAL}@{state.end}",
            )
        state = state._replace(generation=state.generation + jump)
        self._disk.sync(ends)
        return self._begin_round(state) if state.end > first.end else self._announce(state)

    def _announce(self, state: State) -> State:
        self.publish(state)
        return state

    def _header(self) -> State:
        """Return where the round of the journal began."""
        slots = [_slot_state(os.pread(self._handle, _SLOT_BYTES, i * _SLOT_BYTES)) for i in (0, 1)]
        found = max((s for s in slots if s is not None), default=None)
        if found is None:
            raise CorruptRecord(f"{self.path}: its beginning is damaged; restore a backup", at=JOURNAL)
        head = os.pread(self._handle, _FRAME.size, _FRAMES_AT)
        if len(head) == _FRAME.size and head.startswith(_FRAME_MAGIC):
            later = _FRAME.unpack(head)[1]
            if later > found.round:  # the slot that said so is gone: a round that began has no torn slot
                raise CorruptRecord(f"{self.path}: its beginning is damaged; restore a backup", at=JOURNAL)
        return found

    # frames

    def _frames(self, state: State, upto: int | None = None) -> Iterator[Frame]:
        """Yield the whole frames of a round, in order."""
        at = _FRAMES_AT
        seq: int | None = None if upto is not None else state.seq + 1
        while upto is None or at < upto:
            frame = self._read(state, at, seq)
            if frame is None:
                if upto is None:
                    return
                raise CorruptRecord(f"{self.path}: a commit is damaged; restore a backup", at=f"{JOURNAL}@{at}")
            yield frame
            seq = frame.seq + 1
            at += len(frame.raw)

    def _read(self, state: State, offset: int, seq: int | None) -> Frame | None:
        """Return the frame at `offset` if it is whole, of this round, and the commit `seq` (None: any)."""
        head = os.pread(self._handle, _FRAME.size, offset)
        if len(head) < _FRAME.size or not head.startswith(_FRAME_MAGIC):
            return None
        _, round_, found, length, total = _FRAME.unpack(head)
        left = os.fstat(self._handle).st_size - offset - _FRAME.size
        if round_ != state.round or found != (found if seq is None else seq) or length > left:
            return None
        content = os.pread(self._handle, length, offset + _FRAME.size)
        if len(content) < length or _digest(head[:-16] + bytes(16), content) != total:
            return None
        line, _, data = content.partition(b"\n")
        return Frame(found, _work(line), data, head + content)

    def _goes_on(self, state: State) -> bool:
        """Whether a whole frame of this round stands beyond the end."""
        at = state.end
        size = os.fstat(self._handle).st_size
        rest = os.pread(self._handle, size - at, at) if size > at else b""
        found = rest.find(_FRAME_MAGIC)
        while found >= 0:
            frame = self._read(state, at + found, None)
            if frame is not None and frame.seq > state.seq:
                return True
            found = rest.find(_FRAME_MAGIC, found + 1)
        return False


def _state_line(state: State) -> bytes:
    text = "{" + ", ".join(f'"{name}": {value:16d}' for name, value in state._asdict().items())
    return f'{text}, "sum": "{blake3(text.encode()).hexdigest(length=8)}"}}'.encode().ljust(_STATE_BYTES - 1) + b"\n"


def _state_of(raw: bytes) -> State | None:
    text, _, _ = raw.partition(b', "sum"')
    try:
        found = _state(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    total = found.pop("sum", None)
    if total != blake3(text).hexdigest(length=8) or set(found) != set(State._fields):
        return None
    return State(**{name: int(value) for name, value in found.items()})
