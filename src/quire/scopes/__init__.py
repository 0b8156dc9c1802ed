"""Scoped state: small values under keys, for a workflow, a step, a session, an agent, a tool, a user, or everybody.

A thin face of the log. Every scope lives in an ordinary Quire workflow (names.py says which), so that history,
blame, diff, checkpoints, forks and restore work on it; nothing is kept here.

1. What is missing is None, or the default; deleting what is missing is no error. Nothing falls back from a step to its
   workflow to global unless `lookup` is asked to.
2. Each write is one version, durable when the call returns, worked out against the newest state of any process: bulk
   updates, increments and compare-and-swap are atomic, and so is copying between scopes.
3. Readers never wait for a writer: what is published is never altered, only replaced.
4. Rules, limits and permissions are checked before anything is stored; what is refused changes nothing.
"""

from __future__ import annotations

from quire.scopes.manager import WorkflowStateManager
from quire.scopes.names import StateScope
from quire.scopes.permissions import Policy, ScopeDenied
from quire.scopes.setup import ScopeLimits, StateBuilder
from quire.scopes.sheet import ABSENT
from quire.scopes.state import State
from quire.scopes.watch import StateEvent

__all__ = [
    "ABSENT",
    "Policy",
    "ScopeDenied",
    "ScopeLimits",
    "State",
    "StateBuilder",
    "StateEvent",
    "StateScope",
    "WorkflowStateManager",
]
