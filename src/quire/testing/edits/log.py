"""The log of one workflow as a campaign left it: versions, states and conflicts, and the tree at each version."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quire.model import Change, Conflict, Fork, Version
from quire.testing.edits.clients import of
from quire.testing.edits.tree import Obj, boxed, clone, fold, plain, same


class Log:
    """What a store has of a workflow. states: the plain state at each version, as the store tells it."""

    def __init__(self, versions: Sequence[Version], states: Sequence[Any], conflicts: Sequence[Conflict]) -> None:
        self.versions = list(versions)
        self.states = list(states)
        self.conflicts = list(conflicts)
        self._trees: dict[int, Obj] = {}

    @property
    def head(self) -> int:
        """The number of the newest version."""
        return len(self.versions)

    def version(self, number: int) -> Version:
        """Return a version."""
        assert 1 <= number <= self.head, f"there is no version {number}"
        return self.versions[number - 1]

    def state(self, number: int) -> Any:
        """Return the state at a version."""
        assert 1 <= number <= self.head, f"there is no version {number}"
        return self.states[number - 1]

    def changes(self, number: int) -> list[Change]:
        """Return what a version changed."""
        return [change for change in self.version(number).changes if not isinstance(change, Fork)]

    def tree(self, number: int) -> Obj:
        """Return the tree at a version, folded from the first one by what is recorded: not to be altered."""
        if not self._trees:
            self._trees[1] = boxed(self.state(1))
        for known in range(len(self._trees) + 1, number + 1):
            tree = clone(self._trees[known - 1])
            fold(tree, self.changes(known))
            assert same(plain(tree), self.state(known)), f"the changes of version {known} do not lead to its state"
            self._trees[known] = tree
        return self._trees[number]


async def read_log(store: Any, workflow: str) -> Log:
    """Return what a store has of a workflow."""
    wf = store.workflow(workflow)
    versions: list[Version] = []
    states: list[Any] = []

    def seen(version: Version, state: Any) -> None:
        versions.append(version)
        states.append(state)

    await of(wf.replay(seen))
    return Log(versions, states, await of(wf.conflicts()))
