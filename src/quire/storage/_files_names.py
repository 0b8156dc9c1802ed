"""From names to file names, and back: the only place where an id becomes part of a path.

1. No two names give one file name, on file systems that take A for a as well: capitals are written `+a`.
2. A file name has no `/`, does not begin with a dot, is ASCII and at most 200 characters long. A name that would be longer
   gives its beginning, `~` and its hash; the file's first line says the whole name.
3. A store chooses the ending of its workflows' files once, when it is made.
4. What is read in a folder is a name only if it is exactly what the name would have been written as.
"""

from __future__ import annotations

import re

from blake3 import blake3

_SIMPLE = re.compile(r"[a-z0-9_-][a-z0-9._-]{0,159}")
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789._-")
_LENGTH_MAX = 160
_SHOWN = 120
_HASHED = "~"

STATE = ".state"
"""The ending of workflows' files, unless a store says otherwise."""
ROOMS = {
    "workflows": ("workflows", STATE),
    "checkpoints": ("checkpoints", ".checkpoint"),
    "sessions": ("sessions", ".session"),
}
"""From the kind of a stream to the folder and the ending of its file."""
OTHERS = ("streams", ".log")
"""Streams of any other kind, by their whole names."""
FOLDERS = (*(folder for folder, _ in ROOMS.values()), OTHERS[0])
_ENDINGS = dict((*ROOMS.values(), OTHERS))
_WORKFLOWS = ROOMS["workflows"][0]
_KIND_OF = {folder: kind for kind, (folder, _) in ROOMS.items()}


def escape(name: str) -> str:
    """Return a file name for any name.

    Raises UnicodeEncodeError for text that is not Unicode.

    >>> escape("Research-42"), escape("a/b c"), escape("..")
    ('+research-42', 'a,b%20c', '%2e.')
    """
    if _SIMPLE.fullmatch(name):
        return name
    data = name.encode()
    escaped = "".join(map(_escaped, data))
    if escaped.startswith("."):
        escaped = f"%2e{escaped[1:]}"
    if len(escaped) > _LENGTH_MAX:
        return f"{escaped[:_SHOWN]}{_HASHED}{blake3(data).hexdigest(length=16)}"
    return escaped


def _escaped(byte: int) -> str:
    if byte in _PLAIN:
        return chr(byte)
    if ord("A") <= byte <= ord("Z"):
        return f"+{chr(byte).lower()}"
    return "," if byte == ord("/") else f"%{byte:02x}"


def unescape(file: str) -> str | None:
    """Return the name that `escape` wrote so; "" is a name too.

    None: the file is none of ours, or its name is in its first line: see `hashed`.

    >>> unescape("+research-42"), unescape("Research-42")
    ('Research-42', None)
    """
    if _SIMPLE.fullmatch(file):
        return file
    found = bytearray()
    rest = iter(file)
    try:
        for letter in rest:
            if letter == "%":
                found.append(int(next(rest) + next(rest), 16))
            elif letter == "+":
                found += next(rest).upper().encode()
            else:
                found += b"/" if letter == "," else letter.encode()
        name = found.decode()
    except (StopIteration, ValueError):
        return None
    return name if _HASHED not in file and escape(name) == file else None


def hashed(file: str) -> bool:
    """Whether a file name stands for a name too long to be in it."""
    return _HASHED in file


def file_of(stream: str, ending: str = STATE) -> str:
    """Return where a stream lies in the folder of its namespace. ending: of workflows' files in this store.

    >>> file_of("workflows/research"), file_of("conflicts/research")
    ('workflows/research.state', 'streams/conflicts,research.log')
    """
    kind, _, name = stream.partition("/")
    if name and kind in ROOMS:
        folder = ROOMS[kind][0]
        return f"{folder}/{escape(name)}{_ending_in(folder, ending)}"
    return f"{OTHERS[0]}/{escape(stream)}{OTHERS[1]}"


def stream_of(folder: str, file: str, ending: str = STATE) -> str | None:
    """Return the stream whose file this is, None for what `unescape` cannot tell."""
    of_streams = _ending_in(folder, ending)
    name = unescape(file.removesuffix(of_streams)) if file.endswith(of_streams) else None
    if name is None:
        return None
    stream = f"{_KIND_OF[folder]}/{name}" if folder in _KIND_OF else name
    return stream if file_of(stream, ending) == f"{folder}/{file}" else None


def _ending_in(folder: str, ending: str) -> str:
    return ending if folder == _WORKFLOWS else _ENDINGS[folder]
