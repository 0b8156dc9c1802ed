"""Recogniser of `x[k] += v` and `x[k] -= v` from inside `__getitem__` and `__setitem__`.

An object sees `x[k] += v` as a read and a write, as it sees `x[k] = x[k] + v`. The bytecode of the calling frame
tells them apart. CPython compiles `x[k] += v` to

    LOAD x; LOAD k
    COPY 2; COPY 2; BINARY_SUBSCR                       head: read x[k], keep x and k on the stack
    ...                                                 v: any expression, also with jumps, await or yield
    BINARY_OP 13 (+=); SWAP 3; SWAP 2; STORE_SUBSCR     tail: store into the x and under the k that were kept

and `x[k] = x[k] + v` to neither head nor tail. `co_code` has no specialised or instrumented instructions, not
even under a debugger or coverage, and zeros in its CACHE units. So both are found by a plain search for bytes.

`reading` says yes at a head whose nearest tail adds or subtracts, `storing` at that tail in the same frame.
Why their yes is certain, if the caller forgets the site at every next access to the object, writes included:

1. A tail stores into the object that its own head read, in the same frame. No statement fits inside an
   expression, so a frame is in one augmented assignment at a time; calls that `v` makes have other frames.
2. At that head the object forgot any earlier site. A site found at the tail was therefore made by that head,
   or while `v` was computed: then by another frame that is alive beside this one, or was, and has another id.
3. So an id is enough, and a site keeps no frame and no local alive. A dead frame can lend its id only to a later
   one, and the frame at the tail has lived since its head, which replaced what the dead frame had left.

Rule 1 has one limit: a container without Python code that passes reads and writes on to the object, as one
written in C can, has no frame of its own. `container[k] += v` then counts as done to the object.

Anything else gets None or False: other operators, slices, other Python versions and unknown bytecode. Only a slice
that `k` holds as a value looks like any other key: the caller sees it.
"""

from __future__ import annotations

import sys
from opcode import opmap
from types import CodeType

import msgspec

# False on a Python that the tests do not cover: `reading` then always returns None
TESTED = sys.implementation.name == "cpython" and sys.version_info[:2] in {(3, 11), (3, 12), (3, 13)}
_CODES_MAX = 1024  # code objects whose sites are remembered and which that keeps alive; when full, all are forgotten


class Site(msgspec.Struct, frozen=True, gc=False):
    """An augmented assignment in progress: the id of its frame and the offset of its store."""

    frame_id: int
    store: int


def reading(depth: int = 1) -> Site | None:
    """Return the site if user code now reads `x[k]` for `x[k] += v` or `x[k] -= v`, else None.

    depth: frames from the caller of this function up to the user's code; 1 in `__getitem__` itself.
    The object keeps the site until its next access, whatever that is, and not longer.
    Cost: well below 1 us; the first call from a code object is linear in its size.
    """
    if not TESTED:
        return None
    try:
        frame = sys._getframe(depth + 1)  # pyright: ignore[reportPrivateUsage]
    except ValueError:  # called by a C thread: no user code
        return None
    code = frame.f_code
    known = _known.get(id(code))
    store = (known[1] if known else _remembered(code)).get(frame.f_lasti)
    return None if store is None else Site(id(frame), store)


def storing(site: Site, depth: int = 1) -> bool:
    """True if user code now stores the `x[k]` whose read gave `site`.

    site: what `reading` returned at the last access to the object before this one.
    depth: as for `reading`, 1 in `__setitem__` itself.
    """
    try:
        frame = sys._getframe(depth + 1)  # pyright: ignore[reportPrivateUsage]
    except ValueError:
        return False
    return id(frame) == site.frame_id and frame.f_lasti == site.store


def _remembered(code: CodeType) -> dict[int, int]:
    if len(_known) >= _CODES_MAX:
        _known.clear()
    stores = _stores(code.co_code)  # built anew at every access: read once
    _known[id(code)] = (code, stores)
    return stores


def _stores(code: bytes) -> dict[int, int]:
    """Map the offset of each head's read to the offset of its tail's store, for `+=` and `-=`."""
    stores: dict[int, int] = {}
    head = _find(code, _HEAD, 0)
    while head >= 0:
        end = head + len(_HEAD)
        swaps = _find(code, _SWAPS, end)
        if swaps >= 0 and code[swaps - len(_ADD) : swaps] in (_ADD, _SUBTRACT) and code[head - 2] != _BUILD_SLICE:
            last = end
            while code[last] == _CACHE:
                last += 2
            # a call to a Python `__getitem__` that CPython inlines leaves the frame at the read's last cache
            stores[end - 2] = stores[last - 2] = swaps + len(_SWAPS) - 2
        head = _find(code, _HEAD, end)
    return stores


def _find(code: bytes, units: bytes, start: int) -> int:
    at = code.find(units, start)
    while at > 0 and at % 2:  # an instruction begins at an even offset
        at = code.find(units, at + 1)
    return at


def _units(*instructions: tuple[str, int]) -> bytes:
    # an unknown name becomes opcode 255, which no version of CPython emits: nothing is found
    return bytes(byte for name, argument in instructions for byte in (opmap.get(name, 255), argument))


# by id, because a code object is slow to hash; the entry holds the code object, so the id stays its own
_known: dict[int, tuple[CodeType, dict[int, int]]] = {}
_CACHE, _BUILD_SLICE = opmap.get("CACHE", 255), opmap.get("BUILD_SLICE", 255)
_HEAD = _units(("COPY", 2), ("COPY", 2), ("BINARY_SUBSCR", 0))
_SWAPS = _units(("SWAP", 3), ("SWAP", 2), ("STORE_SUBSCR", 0))
_ADD = _units(("BINARY_OP", 13), ("CACHE", 0))  # NB_INPLACE_ADD of CPython's opcode.h
_SUBTRACT = _units(("BINARY_OP", 23), ("CACHE", 0))  # NB_INPLACE_SUBTRACT
