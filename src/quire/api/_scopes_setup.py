"""StateBuilder: what a workflow opts in to when it uses scoped state. A value; every method returns a new one.

What is set here holds for one manager or one run, in this process. Nothing of it is stored, but for secrets: what was
stored under a secret key is marked in the log, so that other processes keep it out of their logs too.
"""

from __future__ import annotations

from typing import Any

import msgspec

from quire.api._scopes_names import StateScope
from quire.api._scopes_rules import ScopeLimits, check_key
from quire.api.permissions import Policy, Right
from quire.core.fold import copied
from quire.core.values import clean
from quire.errors import Invalid


class StateBuilder(msgspec.Struct, frozen=True, kw_only=True):
    """Limits, defaults, types, secrets and permissions of scoped state; `policy` None allows everything.

    >>> setup = StateBuilder().default("retry_count", 0).typed("progress", float).secret("api_key")
    >>> setup.defaults, setup.secrets
    ({'retry_count': 0}, frozenset({'api_key'}))
    """

    limits: ScopeLimits = ScopeLimits()
    defaults: dict[str, Any] = {}
    types: dict[str, Any] = {}
    secrets: frozenset[str] = frozenset()
    policy: Policy | None = None
    scopes: tuple[StateScope, ...] = ()

    def limit(self, **limits: int) -> StateBuilder:
        """Change limits by name: size_bytes_max, keys_max, value_bytes_max, ttl_s_max. Raises Invalid."""
        unknown = set(limits) - set(ScopeLimits.__struct_fields__)
        if unknown:
            raise Invalid(f"no limit {min(unknown)!r}; there are {', '.join(ScopeLimits.__struct_fields__)}")
        return msgspec.structs.replace(self, limits=msgspec.structs.replace(self.limits, **limits))

    def default(self, key: str, value: Any) -> StateBuilder:
        """Answer for a key that is missing, in any scope; nothing is stored. Raises InvalidState."""
        return msgspec.structs.replace(self, defaults={**self.defaults, check_key(key): clean(value)})

    def typed(self, key: str, type: Any) -> StateBuilder:  # noqa: A002 - the word users have for it
        """Refuse values under this key that are not of a type: `int`, `list[str]`, a msgspec.Struct, ..."""
        return msgspec.structs.replace(self, types={**self.types, check_key(key): type})

    def secret(self, *keys: str) -> StateBuilder:
        """Keep values of these keys out of logs, reprs and messages. They are stored like all others."""
        return msgspec.structs.replace(self, secrets=self.secrets | {check_key(k) for k in keys})

    def allow(self, agent: str, scope: StateScope | None, *rights: Right) -> StateBuilder:
        """Allow an agent something. From the first rule on, what no rule allows is denied: see permissions.py."""
        return msgspec.structs.replace(self, policy=(self.policy or Policy()).allow(agent, scope, *rights))

    def deny(self, agent: str, scope: StateScope | None, *rights: Right) -> StateBuilder:
        """Deny an agent something that a rule of the same or a wider level allows."""
        return msgspec.structs.replace(self, policy=(self.policy or Policy()).deny(agent, scope, *rights))

    def guarded(self, policy: Policy | None) -> StateBuilder:
        """Replace all rules by a policy; `Policy()` denies everything, None allows everything."""
        return msgspec.structs.replace(self, policy=policy)

    def using(self, *scopes: StateScope) -> StateBuilder:
        """Make scopes available to the steps of a run, besides those of the workflow and global."""
        return msgspec.structs.replace(self, scopes=(*self.scopes, *scopes))

    def default_of(self, key: str, given: Any) -> Any:
        """Return what to answer for a missing key: what the caller gave, else a copy of the default."""
        return copied(self.defaults.get(key)) if given is None else given
