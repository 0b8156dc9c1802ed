"""Stores in the child of a fork: every use raises at once, and nothing of the parent's is closed there.

The threads that a store works with do not exist in the child, so a call that waited for one would hang. What drivers
hold open belongs to the parent: a connection that is closed in the child, by the garbage collector or at exit, may take
the locks or end the session of the parent's. So it is kept for as long as the child lives.
"""

from __future__ import annotations

import ctypes
import os
import weakref

from quire.errors import Closed

_FORKED = "this store was opened before a fork; open it anew in the child process"
_kept: weakref.WeakSet[object] = weakref.WeakSet()


def check(pid: int) -> None:
    """Raise Closed unless this is the process `pid`, in which the store was opened. Cost: a tenth of a microsecond."""
    if os.getpid() != pid:
        raise Closed(_FORKED)


def keep(owner: object) -> None:
    """Never let the child of a fork collect `owner`, nor anything that it holds. In this process nothing changes."""
    _kept.add(owner)


def _keep_all() -> None:
    for owner in list(_kept):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(owner))  # unlike a name, it survives the end of the interpreter


os.register_at_fork(after_in_child=_keep_all)
