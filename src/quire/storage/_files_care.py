"""Care of a folder store as a whole: looking for damage, counting, copying, making a feed anew."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import msgspec

from quire.errors import CorruptRecord, InvalidKey, StorageError
from quire.storage import _files_feed as feeds
from quire.storage import _files_journal as journals
from quire.storage._files_cells import CELLS, Cells
from quire.storage._files_disk import TEMP, Disk, open_to_read, pwrite, sync, sync_folder
from quire.storage._files_feed import FEED, whose_feed
from quire.storage._files_journal import State
from quire.storage._files_lines import first_line, record_of
from quire.storage._files_place import KEYFRAMES, LOCK, MARK, NAMESPACES, Place, mark, ours
from quire.storage._files_read import Reader
from quire.storage.base import StorageStats

_PART = 4 * 1024 * 1024
_LEFT_OUT = {LOCK, MARK, journals.JOURNAL, journals.STATE}


class Changed(Exception):
    """Files were replaced or removed while they were copied."""


def counts(reader: Reader, cells: Cells, state: State, root: str) -> StorageStats:
    """What the namespace holds, and how large the folder is. Cost: looks at every file."""
    streams = reader.streams(state)
    spans = [reader.span(state, stream) for stream in streams]
    return StorageStats(
        streams=len(streams),
        records=sum(last - first + 1 for first, last in spans),
        keyframes=sum(len(reader.keyframes(stream)) for stream in streams),
        blobs=len(reader.blobs()),
        cells=len(cells.at(state)),
        size_bytes=sum(size for _, size in _files(root)),
    )


def _files(root: str) -> Iterator[tuple[str, int]]:
    """Yield every file of a folder, however deep, by its path within, and its size."""
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder) / name
            try:
                yield str(path.relative_to(root)), path.stat(follow_symlinks=False).st_size
            except FileNotFoundError:
                continue  # removed just now


# damage


def problems(place: Place, state: State) -> list[str]:
    """What is wrong in the whole store, in words. Cost: reads all of it."""
    found: list[str] = []
    for namespace in place.namespaces():
        reader = Reader(place.disk, namespace, place.ending)
        for part in (_log, _beside):
            try:
                found += part(reader, place, state)
            except (StorageError, OSError, ValueError, msgspec.MsgspecError) as error:
                found.append(str(ours(error, place.path)))
    return found


def _log(reader: Reader, place: Place, state: State) -> Iterator[str]:
    """Compare every stream with what the feed says was committed and not removed."""
    committed = _wanted(reader, state)
    for stream in reader.streams(state):
        try:
            held = _positions(reader, state, stream)
        except CorruptRecord as error:
            yield str(error)
            committed.pop(stream, None)
            continue
        versions = list(held)
        if versions != list(range(versions[0], versions[0] + len(versions))):
            yield f"{place.path}: {stream}: its versions are {versions[:3]}... without being consecutive"
        if list(held.values()) != sorted(set(held.values())):
            yield f"{place.path}: {stream}: its positions do not grow"
        if held != committed.pop(stream, {}):
            yield (
                f"{place.path}: {stream}: what is there is not what the feed says was committed and not removed; "
                "restore a backup"
            )
    for stream, versions in committed.items():
        if versions:
            yield f"{place.path}: {stream}: {len(versions)} records were committed, but its file is gone"


def _wanted(reader: Reader, state: State) -> dict[str, dict[int, int]]:
    """Return what the feed says is there: for each stream its versions, and their positions."""
    with reader.open_feed(state) as file:
        return feeds.remaining(file, state.position)


def _positions(reader: Reader, state: State, stream: str) -> dict[int, int]:
    """Return the versions of a stream and their positions, after checking every line."""
    held: dict[int, int] = {}
    file = reader.open(state, stream)
    if file is not None:
        with file:
            for _, line in file.forward():
                record = record_of(stream, line)
                if record.version and record.position <= state.position:
                    held[record.version] = record.position
    return held


def _beside(reader: Reader, place: Place, state: State) -> Iterator[str]:
    """Read every keyframe, blob and cell."""
    frames = {reader.keyframes_at(stream).rpartition("/")[2]: stream for stream in reader.streams(state)}
    for entry in sorted(e.name for e in os.scandir(place.disk.at(f"{reader.base}{KEYFRAMES}"))):
        if entry not in frames:
            yield f"{place.path}: {reader.base}{KEYFRAMES}/{entry}: nobody knows whose keyframes these are"
            continue
        for version in reader.keyframes(frames[entry]):
            try:
                reader.keyframe(frames[entry], version)
            except CorruptRecord as error:
                yield str(error)
    for name in reader.blobs():
        try:
            reader.blob(name)
        except CorruptRecord as error:
            yield str(error)
    Cells(place.disk.at(f"{reader.base}{CELLS}"), reader.namespace).at(state)


# a feed made anew


def feed_anew(reader: Reader, state: State) -> Iterator[bytes]:
    """Yield the lines of a feed of what is there, without a word of what was removed.

    Raises CorruptRecord where a file is gone: nobody would know that by the new feed.
    """
    try:
        committed = _wanted(reader, state)
    except CorruptRecord:  # it is damaged, and made anew
        committed = {}
    for stream, versions in committed.items():
        reader.know(state, stream, max(versions, default=0))
        reader.head(state, stream)
    held: list[tuple[int, str, int]] = []
    for stream in reader.streams(state):
        held += ((position, stream, version) for version, position in _positions(reader, state, stream).items())
    whose = whose_feed(reader.namespace)
    yield first_line(whose, reader.namespace, FEED, "file")
    yield from feeds.lines_anew(whose, sorted(held))


# a copy


def manifest(root: str) -> dict[str, int]:
    """Return the files of a store at rest and their sizes; a copy of as many bytes of each is a store of this moment."""
    found = dict(_files(root))
    return {path: size for path, size in found.items() if path not in _LEFT_OUT and not path.startswith(f"{TEMP}/")}


def copy(place: Place, files: dict[str, int], state: State, path: str) -> None:
    """Write what `manifest` found to a new folder, which gets its name only when it is whole and durable.

    Raises Changed where files were replaced since, InvalidKey if there is something of that name.
    """
    if "\0" in path:
        raise InvalidKey(f"the path {path!r} holds a character that no file name can have; leave it out")
    path = os.path.realpath(path)
    if os.path.lexists(path):
        raise InvalidKey(f"{path} exists; a backup is written to a new folder")
    part = Path(f"{path}.part-{secrets.token_hex(8)}")
    part.mkdir(0o700)
    try:
        _fill(place, files, state, part)
        if place.journal.published().generation != state.generation:
            raise Changed
        part.rename(path)
    except BaseException:
        _remove(part)
        raise
    sync_folder(str(Path(path).parent))


def _fill(place: Place, files: dict[str, int], state: State, part: Path) -> None:
    for folder in (TEMP, NAMESPACES):
        (part / folder).mkdir(0o700)
    for file, size in files.items():
        target = part / file
        target.parent.mkdir(0o700, parents=True, exist_ok=True)
        _copy_file(place.disk.at(file), target, size)
    journals.create(Disk(str(part)), state)
    handle = os.open(part / MARK, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        pwrite(handle, mark(place.ending), 0)
        sync(handle)
    finally:
        os.close(handle)
    for folder, _, _ in os.walk(part):
        sync_folder(folder)


def _copy_file(source: str, target: Path, size: int) -> None:
    """Copy the first `size` bytes of a file: what was added since belongs to a later moment."""
    handle = open_to_read(source)
    if handle is None:
        if f"/{KEYFRAMES}/" in source:
            return  # derived: it was dropped just now, and is not missed
        raise Changed
    try:
        copied = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            at = 0
            while at < size:
                data = os.pread(handle, min(_PART, size - at), at)
                if not data:
                    raise Changed
                pwrite(copied, data, at)
                at += len(data)
            sync(copied)
        finally:
            os.close(copied)
    finally:
        os.close(handle)


def _remove(part: Path) -> None:
    for folder, _, files in os.walk(part, topdown=False):
        for file in files:
            (Path(folder) / file).unlink(missing_ok=True)
        Path(folder).rmdir()
