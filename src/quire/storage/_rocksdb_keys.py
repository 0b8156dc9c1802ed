"""Keys of a RocksDB store, in whose order everything is read.

1. Names are written so that they sort as their code points do and none is the beginning of another: a zero byte as
   00 FF, the end as 00 00. Numbers are eight bytes, the highest first.
2. Every key begins with its namespace, and a letter for its kind.

    log        h STREAM           head: version, chain, kind, first version
               r STREAM VERSION   record
               f POSITION         stream and version
    keyframes  k STREAM VERSION   blobs  b NAME   cells  c NAME, and x EXPIRES NAME without a value
"""

from __future__ import annotations

_END = b"\x00\x00"
_NUMBER_BYTES = 8


def name_key(name: str) -> bytes:
    """Return the bytes of a name with its end. Raises UnicodeEncodeError.

    >>> name_key("a") < name_key("a\\x00") < name_key("aa")
    True
    """
    return prefix_key(name) + _END


def prefix_key(prefix: str) -> bytes:
    """Return how the bytes of all names begin that begin with `prefix`."""
    return prefix.encode().replace(b"\x00", b"\x00\xff")


def number_key(number: int) -> bytes:
    """Return the bytes of a number from 0 on; what is less counts as 0."""
    return max(number, 0).to_bytes(_NUMBER_BYTES, "big")


def number_of(key: bytes) -> int:
    """Return the number a key ends with."""
    return int.from_bytes(key[-_NUMBER_BYTES:], "big")


def name_of(key: bytes, begin: int) -> str:
    """Return the name that stands in a key from `begin` to its end."""
    end = key.index(_END, begin)
    return key[begin:end].replace(b"\x00\xff", b"\x00").decode()


class Keys:
    """The keys of one namespace."""

    def __init__(self, namespace: str) -> None:
        self._own = name_key(namespace)

    def begin(self, kind: bytes) -> bytes:
        """Return how keys of a kind begin."""
        return self._own + kind

    def of(self, kind: bytes, name: str) -> bytes:
        """Return the key of a name."""
        return self._own + kind + name_key(name)

    def name(self, key: bytes) -> str:
        """Return the name in a key that `of` made."""
        return name_of(key, len(self._own) + 1)
