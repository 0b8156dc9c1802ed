"""Questions to a folder store: each function is one of the protocol's reads, of a namespace, as of a state.

What lies beyond the state's position was not committed yet and is passed over, so that a reader needs no lock and never
sees half of a commit. What comes out of a file may be damaged in any way: see _files_lines.py. A file that is gone, or
shorter than this process knew it, is looked up in the feed: unless that says so too, it is damage.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Iterator, Sequence

import msgspec
from blake3 import blake3

from quire.errors import CorruptRecord
from quire.model import Head, Keyframe, Record
from quire.storage import _files_feed as feeds
from quire.storage import _files_names as names
from quire.storage._files_disk import Disk, open_to_read
from quire.storage._files_journal import State
from quire.storage._files_lines import LineFile, first_of, head_at, owner, record_of, seal, sealed, version_of
from quire.storage._files_place import BLOBS, KEYFRAMES, base_of
from quire.storage.base import PAGE_BYTES, more_may_follow, page_of

_VISIBLE_MAX = 100_000
"""Streams remembered as committed; beyond that all are looked at again."""
_KNOWN_MAX = 100_000
"""Streams whose newest version is remembered; beyond that all are forgotten."""
_KEYFRAME, _BLOB = ".keyframe", ".blob"


class _Whole(msgspec.Struct, gc=False, omit_defaults=True):
    """The first line of a keyframe or a blob; `length` bytes follow, whose hash is `hash`."""

    name: str
    length: int
    hash: str
    version: int = 0
    chain: str = ""
    size: int = 0
    digest: str = ""


_encode = msgspec.json.Encoder().encode
_whole = msgspec.json.Decoder(_Whole).decode


class Reader:
    """What can be asked of a namespace. Used by several threads."""

    def __init__(self, disk: Disk, namespace: str, ending: str) -> None:
        """ending: of workflows' files in this store."""
        self._disk = disk
        self._ending = ending
        self.namespace = namespace
        self.base = base_of(namespace)
        self._visible: tuple[int, set[str]] = (0, set())
        """The generation, and streams known to be committed."""
        self._known: dict[str, tuple[int, int]] = {}
        """The newest version of streams that were seen, and the position of the store then."""
        self._gone: dict[str, str] = {}
        """Streams whose files were found to be gone or cut, and what was said of them; "" for the feed."""
        self._fed = (0, 0)
        """A generation, and a position that the feed has come to in it."""
        self._guard = threading.Lock()

    def path_of(self, stream: str) -> str:
        """Return where a stream lies in the store."""
        return f"{self.base}{names.file_of(stream, self._ending)}"

    def open(self, state: State, stream: str) -> LineFile | None:
        """Return the file of a stream, None where there is none. Raises CorruptRecord where it should be there."""
        file = LineFile.open(self._disk.at(self.path_of(stream)), owner(self.namespace, stream))
        if file is None and stream in self._known:
            self._check_less(state, stream, 0)
        return file

    def know(self, state: State, stream: str, version: int) -> None:
        """Remember that a stream has had a version as of a state."""
        if len(self._known) >= _KNOWN_MAX and stream not in self._known:
            self._known.clear()
        self._known[stream] = version, state.position

    def _check_less(self, state: State, stream: str, found: int) -> None:
        """Raise CorruptRecord for a stream that has fewer versions than it had, unless it was dropped."""
        version, position = self._known.get(stream, (0, 0))
        if found >= version or state.position < position:  # or a later state is known than the one that is asked for
            return
        with self.open_feed(state) as file:
            newest = feeds.newest(file, stream, state.position)
        if newest > found:
            what = f"ends at version {found}" if found else "is gone"
            self._gone[stream] = (
                f"{self._disk.at(self.path_of(stream))} {what}, but {stream} was written up to version {newest}: put back "
                "the file that was there, or restore a backup"
            )
            raise CorruptRecord(self._gone[stream], at=stream)
        self._known.pop(stream, None)

    def gone(self, state: State) -> list[str]:
        """Return what was found to be gone or cut, and is so still, in words."""
        said: list[str] = []
        for stream in list(self._gone):
            try:
                if stream:
                    self.head(state, stream)
                else:
                    self.open_feed(state).close()
                self._gone.pop(stream, None)
            except CorruptRecord as error:
                said.append(str(error))
        return said

    # log

    def read(
        self, state: State, stream: str, *, after: int, upto: int | None = None, limit: int | None = None
    ) -> list[Record]:
        """Records of a stream, oldest first."""
        file = self.open(state, stream)
        if file is None:
            return []

        def found(file: LineFile) -> Generator[Record]:
            last = max(after, 0)
            for _, line in file.forward(file.beyond(max(after, 0), version_of)):
                record = record_of(stream, line)
                if record.position > state.position or (upto is not None and record.version > upto):
                    return
                last = record.version
                yield record
            self._check_less(state, stream, last)

        with file:
            return page_of(found(file), limit)

    def heads(self, state: State, streams: Sequence[str]) -> list[Head]:
        """The head of each stream."""
        return [self.head(state, stream) for stream in streams]

    def head(self, state: State, stream: str) -> Head:
        """The head of a stream, version 0 where there is none."""
        file = self.open(state, stream)
        if file is None:
            return Head(stream)
        with file:
            head = head_at(file, stream, state.position)
        self._check_less(state, stream, head.version)
        if head.version:
            self.know(state, stream, head.version)
        return head

    def span(self, state: State, stream: str) -> tuple[int, int]:
        """The oldest and the newest version of a stream, zeros where there is none."""
        file = self.open(state, stream)
        if file is None:
            return 0, 0
        with file:
            version, position = first_of(file)
            return (version, head_at(file, stream, state.position).version) if position <= state.position else (0, 0)

    def streams(self, state: State, prefix: str = "", *, after: str = "", limit: int | None = None) -> list[str]:
        """Names of streams, sorted by code point. Cost: lists all of them."""
        listed = set(self._listed())
        for stream in [s for s in list(self._known) if s not in listed]:
            self._check_less(state, stream, 0)
        there = sorted(s for s in listed if s.startswith(prefix) and s > after)
        found: list[str] = []
        for stream in there:
            if len(found) == limit:
                break
            if self._committed(state, stream):
                found.append(stream)
        return found

    def _listed(self) -> Iterator[str]:
        """Yield the streams that files are named after, whatever is in them."""
        for folder in names.FOLDERS:
            with os.scandir(self._disk.at(f"{self.base}{folder}")) as entries:
                for entry in entries:
                    stream = names.stream_of(folder, entry.name, self._ending)
                    if stream is None and names.hashed(entry.name):
                        stream = self._named_within(f"{folder}/{entry.name}")
                    if stream is not None:
                        yield stream

    def _named_within(self, file: str) -> str | None:
        """Return the stream whose name is too long to be its file's, as the file's first line says."""
        path = self._disk.at(f"{self.base}{file}")
        stream = LineFile.claimed(path)
        if stream is None:
            return None
        with_file = LineFile.open(path, owner(self.namespace, stream))
        if with_file is None:
            return None
        with with_file as found:
            found.line_at(0)
        return stream

    def _committed(self, state: State, stream: str) -> bool:
        generation, known = self._visible
        if generation != state.generation or len(known) > _VISIBLE_MAX:
            known = set[str]()
            self._visible = (state.generation, known)
        if stream in known:
            return True
        file = self.open(state, stream)
        if file is None:
            return False
        with file:
            version, position = first_of(file)
        if not version or position > state.position:
            return False
        with self._guard:
            known.add(stream)
        return True

    def feed(self, state: State, after: int, limit: int) -> list[Record]:
        """A page of the records of the namespace. Those that were removed meanwhile are passed over."""
        found: list[Record] = []
        if limit <= 0:
            return found
        with self.open_feed(state) as file:
            page: list[feeds.Entry] = []
            for entry in feeds.entries(file, max(after, 0), state.position):
                page.append(entry)
                if len(page) + len(found) >= limit:
                    page = self._taken(state, page, found, limit)
                    if more_may_follow(found, limit):
                        break
            self._taken(state, page, found, limit)
        if found:
            self.fed(state, found[-1].position)
        return page_of(found, limit)

    def open_feed(self, state: State) -> LineFile:
        """Return the file of the feed. Raises CorruptRecord where it is gone, or shorter than it was in this generation."""
        path = f"{self.base}{feeds.FEED}"
        file = LineFile.open(self._disk.at(path), feeds.whose_feed(self.namespace))
        generation, fed = self._fed
        if file is None:
            what = "is gone"
        elif generation != state.generation or (last := feeds.last_of(file)) >= fed:
            return file
        else:
            file.close()
            what = f"ends at position {last}, but was written up to {fed}"
        self._gone[""] = (
            f"{self._disk.at(path)} {what}; it says in which order all was committed: put back the file that was there, or "
            "restore a backup"
        )
        raise CorruptRecord(self._gone[""], at=path)

    def fed(self, state: State, position: int) -> None:
        """Remember that the feed has come to a position as of a state."""
        generation, fed = self._fed
        self._fed = state.generation, max(position, fed if generation == state.generation else 0)

    def _taken(self, state: State, page: list[feeds.Entry], found: list[Record], limit: int) -> list[feeds.Entry]:
        """Add the records of entries to `found` until that makes a page; return the entries that are left."""
        while page and not more_may_follow(found, limit):
            records, page = self._records(state, page)
            found += records
        return page

    def _records(self, state: State, page: list[feeds.Entry]) -> tuple[list[Record], list[feeds.Entry]]:
        """Return the records of a page of the feed that are still there, one look for each stream.

        And the entries that are left: it ends where what was read makes a page, after one entry at least.
        """
        wanted: dict[str, list[int]] = {}
        for entry in page:
            wanted.setdefault(entry.stream, []).append(entry.version)
        held: dict[int, Record] = {}
        reached: dict[str, int] = {}
        size = 0
        for stream, versions in wanted.items():
            if size >= PAGE_BYTES:
                break
            low, high = min(versions), max(versions)
            read = self.read(state, stream, after=low - 1, upto=high, limit=high - low + 1)
            reached[stream] = read[-1].version if more_may_follow(read, None) else high
            size += sum(r.size_bytes for r in read)
            held.update((r.position, r) for r in read)
        read_upto = next((n for n, e in enumerate(page) if e.version > reached.get(e.stream, 0)), len(page))
        page, left = page[:read_upto], page[read_upto:]
        for entry in page:
            record = held.get(entry.position)
            if record is not None and (record.stream, record.version) != (entry.stream, entry.version):
                raise CorruptRecord(
                    f"{entry.stream} v{entry.version}: position {entry.position} belongs to another record; "
                    "`quire verify` lists all damage",
                    at=f"{entry.stream}@{entry.version}",
                )
        return [held[e.position] for e in page if e.position in held], left

    # keyframes and blobs

    def keyframes_at(self, stream: str) -> str:
        """Return the folder of a stream's keyframes."""
        return f"{self.base}{KEYFRAMES}/{names.escape(stream)}"

    def keyframe_at(self, stream: str, version: int) -> str:
        """Return where a keyframe lies."""
        return f"{self.keyframes_at(stream)}/{version:012d}{_KEYFRAME}"

    def blob_at(self, name: str) -> str:
        """Return where a blob lies."""
        return f"{self.base}{BLOBS}/{names.escape(name)}{_BLOB}"

    def keyframe(self, stream: str, at: int | None) -> Keyframe | None:
        """The newest keyframe at or before a version."""
        for version in reversed(self.keyframes(stream)):
            if at is None or version <= at:
                whole = self._whole(self.keyframe_at(stream, version), owner(self.namespace, f"\0keyframe/{stream}"))
                if whole is not None:  # else it was dropped just now
                    said, body = whole
                    if said.version != version:
                        raise CorruptRecord(f"{self.keyframe_at(stream, version)} is another keyframe", at=stream)
                    chain, digest = bytes.fromhex(said.chain), bytes.fromhex(said.digest)
                    return Keyframe(stream, said.version, chain, said.size, digest, body)
        return None

    def keyframes(self, stream: str) -> list[int]:
        """Versions that have one, ascending."""
        try:
            files = [entry.name for entry in os.scandir(self._disk.at(self.keyframes_at(stream)))]
        except FileNotFoundError:
            return []
        numbers = (file.removesuffix(_KEYFRAME) for file in files)
        return sorted(int(n) for n in numbers if n.isascii() and n.isdecimal())

    def keyframe_parts(self, k: Keyframe) -> list[bytes]:
        """Return the file of a keyframe."""
        whose = owner(self.namespace, f"\0keyframe/{k.stream}")
        said = _Whole(k.stream, len(k.body), _hash(k.body), k.version, k.chain.hex(), k.size, k.digest.hex())
        return [seal(whose, _encode(said)), k.body]

    def blob(self, name: str) -> bytes | None:
        """The bytes, or None."""
        found = self._whole(self.blob_at(name), owner(self.namespace, "\0blob"), name)
        return None if found is None else found[1]

    def blob_parts(self, name: str, data: bytes) -> list[bytes]:
        """Return the file of a blob."""
        return [seal(owner(self.namespace, "\0blob"), _encode(_Whole(name, len(data), _hash(data)))), data]

    def blobs(self, *, after: str = "", limit: int | None = None) -> list[str]:
        """Names greater than `after`, sorted. Cost: lists all of them."""
        found: list[str] = []
        for entry in os.scandir(self._disk.at(f"{self.base}{BLOBS}")):
            file = entry.name.removesuffix(_BLOB)
            name = names.unescape(file)
            if name is None and names.hashed(file):
                name = self._blob_named(entry.name)
            if name is not None and name > after and entry.name.endswith(_BLOB):
                found.append(name)
        return sorted(found)[:limit]

    def _blob_named(self, file: str) -> str | None:
        whole = self._whole(f"{self.base}{BLOBS}/{file}", owner(self.namespace, "\0blob"))
        return None if whole is None else whole[0].name

    def _whole(self, path: str, whose: bytes, name: str | None = None) -> tuple[_Whole, bytes] | None:
        """Return what is said of a whole file, and its bytes. Raises CorruptRecord."""
        handle = open_to_read(self._disk.at(path))
        if handle is None:
            return None
        with os.fdopen(handle, "rb") as file:
            line, _, body = file.read().partition(b"\n")
        if sealed(whose, line):
            said = _whole(line)
            if len(body) == said.length and _hash(body) == said.hash and name in (None, said.name):
                return said, body
        raise CorruptRecord(
            f"{self._disk.at(path)} is damaged: it does not match its checksum; `quire verify` lists all damage, "
            "a backup has the rest",
            at=path,
        )


def _hash(data: bytes) -> str:
    return blake3(data).hexdigest(length=16)
