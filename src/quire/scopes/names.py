"""Scopes: whose state is meant, and in which log it lives.

The mapping of a scope to (workflow id, place in its state) is injective over all names: a name is escaped, not
cleaned up, so names that differ in any code point are two scopes, however alike they look.

1. Log ids are `scope-global` and `scope-<kind>-<token>`. Kinds have no `-`, so where the token begins is certain.
2. A token keeps A-Z a-z 0-9 _ - and writes every other byte of the UTF-8 as `.` and two hex digits. Ids then keep
   the rule of core/names: `..` cannot arise, since a `.` is followed by a hex digit or `x`.
3. A token that would be too long is `.x` and the blake3 of the name. No escape begins with `.x`, so a digest never
   equals a short token; two digests are equal only if blake3 collides, and then each log still carries its scope's
   name whole, which is compared on every access.
4. The steps of a workflow live in that workflow's scope log, under their names as they are; everything else has a log
   of its own. So what a step writes for itself and for its workflow is one version, and a workflow's allowance covers
   its steps. Agents, sessions, tools and users are no parts of a workflow: they would only queue behind each other.
"""

from __future__ import annotations

import reprlib
from typing import Any

import msgspec
from blake3 import blake3

from quire.errors import InvalidKey
from quire.model import Path

PREFIX = "scope-"
"""What the ids of logs that hold scoped state begin with."""

NAME_BYTES_MAX = 512
"""Of a name as UTF-8: what a key of a state may have, since a step's name is one."""
_TOKEN_MAX = 120
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
_BYTES = tuple(chr(b) if b in _PLAIN else f".{b:02x}" for b in range(256))
_KINDS = ("global", "workflow", "step", "session", "agent", "tool", "user", "custom")


class StateScope(msgspec.Struct, frozen=True, gc=False):
    """Whose state is meant. Make one with the functions below: `StateScope.step("research-42", "draft")`.

    kind: global, workflow, step, session, agent, tool, user or custom.  id: whose, 1 to 512 bytes of any text; empty
    for global.  part: the step's name, likewise; empty for everything else.
    Raises InvalidKey for anything else.
    """

    kind: str
    id: str = ""
    part: str = ""

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise InvalidKey(f"scope kind {reprlib.repr(self.kind)}: there are {', '.join(_KINDS)}")
        _check(f"the id of a {self.kind} scope", self.id, wanted=self.kind != "global")
        _check(f"the step name of a {self.kind} scope", self.part, wanted=self.kind == "step")

    def __str__(self) -> str:
        if self.kind == "global":
            return "the global scope"
        if self.kind == "step":
            return f"step {reprlib.repr(self.part)} of workflow {reprlib.repr(self.id)}"
        return f"{self.kind} {reprlib.repr(self.id)}"

    @staticmethod
    def global_() -> StateScope:
        """Shared by everybody on the store."""
        return StateScope("global")

    @staticmethod
    def workflow(workflow_id: str) -> StateScope:
        """One workflow's own."""
        return StateScope("workflow", workflow_id)

    @staticmethod
    def step(workflow_id: str, step_name: str) -> StateScope:
        """One step's own, within its workflow."""
        return StateScope("step", workflow_id, step_name)

    @staticmethod
    def session(session_id: str) -> StateScope:
        """One session's own."""
        return StateScope("session", session_id)

    @staticmethod
    def agent(agent_id: str) -> StateScope:
        """One agent's own, whatever it works on."""
        return StateScope("agent", agent_id)

    @staticmethod
    def tool(name: str) -> StateScope:
        """One tool's own."""
        return StateScope("tool", name)

    @staticmethod
    def user(user_id: str) -> StateScope:
        """One user's own."""
        return StateScope("user", user_id)

    @staticmethod
    def custom(name: str) -> StateScope:
        """A space of your own naming; it never meets a scope of another kind, whatever the name."""
        return StateScope("custom", name)

    @property
    def home(self) -> StateScope:
        """The scope that the log is named after: a step's workflow, otherwise itself."""
        return StateScope("workflow", self.id) if self.kind == "step" else self

    @property
    def chain(self) -> tuple[StateScope, ...]:
        """Where `lookup` looks: here, for a step in its workflow, and in global."""
        return tuple(dict.fromkeys((self, self.home, StateScope("global"))))

    @property
    def log_id(self) -> str:
        """The id of the workflow whose log holds this scope's state."""
        home = self.home
        return PREFIX + "global" if home.kind == "global" else f"{PREFIX}{home.kind}-{token(home.id)}"

    @property
    def place(self) -> Path:
        """Where in the state of that log this scope's entries are."""
        return ("steps", self.part) if self.kind == "step" else ("values",)


def token(name: str) -> str:
    """Return a name as part of an id; different names give different tokens.

    >>> token("research-42"), token("a/b"), token("..")
    ('research-42', 'a.2fb', '.2e.2e')
    """
    raw = name.encode()
    escaped = "".join(map(_BYTES.__getitem__, raw))
    return escaped if len(escaped) <= _TOKEN_MAX else ".x" + blake3(raw).hexdigest()


def _check(what: str, value: Any, *, wanted: bool) -> None:
    if type(value) is not str:
        raise InvalidKey(f"{what} is text, not {type(value).__name__}")
    if not wanted:
        if value:
            raise InvalidKey(f"{what} is empty; found {reprlib.repr(value)}")
        return
    try:
        size = len(value.encode())
    except UnicodeEncodeError as cause:
        raise InvalidKey(f"{what} has a lone surrogate at {cause.start}; it is not Unicode, remove it") from None
    if not 1 <= size <= NAME_BYTES_MAX:
        raise InvalidKey(f"{what} has {size:,} bytes; 1 to {NAME_BYTES_MAX} are allowed")
