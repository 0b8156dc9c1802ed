"""Who may do what with whose state: plain values, no callables, nothing allowed that is not said.

A policy guards the scoped state API: agents, scripts, steps. Whoever holds the store itself can read everything; a
policy is not a wall between Python programs of one process.

1. Without a policy everything is allowed. With one, what no rule allows is denied.
2. Rules are looked for at the scope itself, then, for a step, at its workflow, then at the rules for every scope.
   The first of these levels that says anything about the agent and the right decides: a step inherits from its
   workflow unless it has a rule of its own.
3. Within a level denying wins over allowing. Rules for "*" are for every agent and count as much as named ones.
4. Global is a scope like others, not everybody's parent: who may read the notice-board may not read every user's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, cast

import msgspec

from quire.api import writes
from quire.errors import Denied, Invalid
from quire.scopes.names import StateScope

Right = Literal["read", "write", "delete", "list"]

RIGHTS: tuple[Right, ...] = ("read", "write", "delete", "list")
ANYONE = "*"


class ScopeDenied(Denied):
    """The policy does not allow it. `agent`, `scope` and `right` say what."""

    code = "scope_denied"

    def __init__(self, agent: str, scope: StateScope, right: Right) -> None:
        super().__init__(
            f"agent {agent!r} may not {right} in {scope}: no rule of the policy allows it, or one denies it; "
            f"whoever sets the policy can add .allow({agent!r}, <the scope>, {right!r})"
        )
        self.agent = agent
        self.scope = scope
        self.right = right


class Rule(msgspec.Struct, frozen=True):
    """One sentence of a policy. scope: None for every scope.  allowed: False denies."""

    agent: str
    scope: StateScope | None
    rights: frozenset[Right]
    allowed: bool


class Policy(msgspec.Struct, frozen=True):
    """Rules in any order. A value: `allow` and `deny` return a new one.

    >>> policy = Policy().allow("ann", StateScope.workflow("w"), "read", "write")
    >>> policy.allows("ann", StateScope.step("w", "draft"), "write")
    True
    >>> policy.allows("ann", StateScope.global_(), "read")
    False
    """

    rules: tuple[Rule, ...] = ()

    def allow(self, agent: str, scope: StateScope | None, *rights: Right) -> Policy:
        """Return a policy that also allows this. agent: "*" for every agent.  scope: None for every scope."""
        return Policy((*self.rules, _rule(agent, scope, rights, allowed=True)))

    def deny(self, agent: str, scope: StateScope | None, *rights: Right) -> Policy:
        """Return a policy that also denies this, at this level; see the rules above for which one decides."""
        return Policy((*self.rules, _rule(agent, scope, rights, allowed=False)))

    def allows(self, agent: str, scope: StateScope, right: Right) -> bool:
        """Tell whether an agent may. Cost: O(rules)."""
        for level in dict.fromkeys((scope, scope.home, None)):
            said = [
                r.allowed for r in self.rules if r.scope == level and r.agent in (agent, ANYONE) and right in r.rights
            ]
            if said:
                return all(said)
        return False

    def check(self, agent: str, scope: StateScope, right: Right) -> None:
        """Raise ScopeDenied unless the agent may."""
        if not self.allows(agent, scope, right):
            raise ScopeDenied(agent, scope, right)


def _rule(agent: str, scope: StateScope | None, rights: Iterable[str], *, allowed: bool) -> Rule:
    writes.name(agent, "agent")
    if scope is not None and not isinstance(scope, StateScope):
        raise Invalid(f"a rule is for a StateScope, or None for every scope, not {type(scope).__name__}")
    wanted = frozenset(rights)
    if not wanted or not wanted <= set(RIGHTS):
        raise Invalid(f"rights {sorted(map(str, wanted))}: one or more of {', '.join(RIGHTS)}")
    return Rule(agent, scope, cast("frozenset[Right]", wanted), allowed)
