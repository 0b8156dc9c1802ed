"""Clients of a campaign: each does random writes to shared workflows, and keeps a ledger of what it was told.

The same client runs as a task, in a thread of its own (`quire.sync`) or in a process of its own: it awaits what can be
awaited. What it does follows from its seed; who comes first does not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from inspect import isawaitable
from random import Random
from typing import Any

import msgspec

from quire.core.resolve import POLICIES
from quire.errors import MergeConflict, QuireError
from quire.model import Delete, Set
from quire.testing.edits.programs import Maker
from quire.testing.edits.steps import Program, run


class Entry(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a client did, and what it was told.

    key: of this write, also the message of its version.  how: which way, see WAYS.  base: the version that the program was
    done to, None where it met the newest.  before: the head that was seen before.  told: what each step was told.
    version: what it was told it had written, None for nothing.  error: the code of what was raised; shown: its conflicts.
    after: the head that was seen after a refusal.  more: what else a way needs.
    """

    key: str
    author: str
    workflow: str
    how: str
    program: Program = []
    policy: str | None = None
    base: int | None = None
    before: int = 1
    told: list[Any] = []
    version: int | None = None
    error: str | None = None
    said: str = ""
    shown: list[dict[str, Any]] = []
    after: int | None = None
    more: dict[str, Any] = {}


Keep = Callable[[Entry], None]


class Client:
    """One who writes.

    store: of `quire` or `quire.sync`, which has the policy.  beside: another handle on it, for what others wrote before a
    write: `store` is not to learn of that.  keep: is given each entry as soon as it is known.  ways, steps: which to
    choose from.  policy: what is decided by, of the writes that have a base.
    """

    def __init__(
        self,
        store: Any,
        beside: Any,
        name: str,
        seed: str,
        keep: Keep,
        *,
        ways: Sequence[str],
        steps: Sequence[str] = (),
        policy: str | None = None,
    ) -> None:
        self._store = store
        self._beside = beside
        self._name = name
        self._keep = keep
        self._ways = ways
        self._policy = policy
        self._rng = Random(f"{seed} {name}")
        self._maker = Maker(self._rng, name, steps)
        self._serial = 0

    async def write(self, workflow: str, other: str) -> None:
        """Do one write, and keep its entry. other: a second workflow, for writes to both."""
        entry = self._entry(workflow, self._rng.choice(self._ways))
        entry.more["other"] = other
        wf = self._store.workflow(workflow)
        entry.before = (await of(self._beside.workflow(workflow).version())).number
        try:
            await WAYS[entry.how](self, wf, entry)
        except QuireError as error:
            await self._refused(wf, entry, error)
            self._keep(entry)
            insists = entry.how in ("edit", "old") and self._rng.random() < 0.3
            if insists and isinstance(error, MergeConflict) and error.base is not None:
                await self._insist(wf, entry, error)
            return
        self._keep(entry)

    def _entry(self, workflow: str, how: str) -> Entry:
        self._serial += 1
        return Entry(key=f"{self._name}:{self._serial}", author=self._name, workflow=workflow, how=how)

    def _signed(self, entry: Entry, *, policy: bool = False) -> dict[str, Any]:
        how = {"author": entry.author, "message": entry.key}
        if entry.how == "decided":
            entry.policy = how["on_conflict"] = self._rng.choice(POLICIES)
        elif policy:
            entry.policy = self._policy
        return how

    async def _refused(self, wf: Any, entry: Entry, error: QuireError) -> None:
        refuse(entry, error, await of(wf.version()))

    async def _insist(self, wf: Any, refused: Entry, error: MergeConflict) -> None:
        """Apply what was refused after all."""
        entry = self._entry(refused.workflow, "insist")
        entry.program, entry.told, entry.policy, entry.base = refused.program, refused.told, "ours", error.base
        entry.before = refused.before
        try:
            made = await of(wf.apply(error.changes, base=error.base, on_conflict="ours", **self._signed(entry)))
            answered(entry, made)
        except QuireError as again:
            await self._refused(wf, entry, again)
        self._keep(entry)

    async def _others(self, wf: Any) -> None:
        """Let others run."""
        for _ in range(self._rng.choice((0, 0, 1, 2, 3, 6))):
            await asyncio.sleep(0)
            if self._rng.random() < 0.3:
                await of(wf.version())

    def _older(self, entry: Entry) -> int:
        return max(1, entry.before - self._rng.randint(0, 8))

    # ways to write

    async def _edit(self, wf: Any, entry: Entry) -> None:
        entry.program = self._maker.program()
        how = self._signed(entry, policy=True)
        if entry.how == "strict":
            how["isolation"] = "serializable"
        if entry.how in ("old", "decided"):
            how["base"] = self._older(entry)
        editing = wf.edit(**how)
        draft = await _enter(editing)
        entry.base = getattr(editing, "_edit", editing)._base.version
        try:
            entry.told = run(draft, entry.program)
            await self._others(wf)
        except BaseException as error:
            await _leave(editing, error)
            raise
        await _leave(editing, None)
        if editing.version is not None:
            answered(entry, editing.version)

    async def _update(self, wf: Any, entry: Entry) -> None:
        entry.program = self._maker.program()

        def fn(draft: Any) -> None:
            entry.told = run(draft, entry.program)

        answered(entry, await of(wf.update(fn, **self._signed(entry))))

    async def _save(self, wf: Any, entry: Entry) -> None:
        entry.program = self._maker.saved()
        state, base = await of(wf.state_and_version())
        entry.base, entry.told = base, run(state, entry.program)
        await self._others(wf)
        answered(entry, await of(wf.save(state, base=base, **self._signed(entry, policy=True))))

    async def _set(self, wf: Any, entry: Entry) -> None:
        path, value = self._maker.place(), self._maker.value()
        entry.program, entry.base, entry.told = [["set", path, value]], self._older(entry), [None]
        answered(entry, await of(wf.set(path, value, base=entry.base, **self._signed(entry, policy=True))))

    async def _blind(self, wf: Any, entry: Entry) -> None:
        """Set what may be there already, whatever the newest version is."""
        value = self._rng.choice((0, 1))
        entry.program, entry.told = [["set", ["flag"], value]], [None]
        answered(entry, await of(wf.set("/flag", value, **self._signed(entry))))

    async def _increment(self, wf: Any, entry: Entry) -> None:
        by, low, high = self._rng.choice((-60, -7, 5, 9)), 0, 120
        entry.program, entry.told = [["add within", ["budget"], by, low, high]], [None]
        how = {**self._signed(entry), "minimum": low, "maximum": high, "idempotency_key": entry.key}
        answered(entry, await of(wf.inc("/budget", by, **how)))

    async def _restore(self, wf: Any, entry: Entry) -> None:
        entry.more["target"] = self._older(entry)
        answered(entry, await of(wf.restore(entry.more["target"], **self._signed(entry))))

    async def _merge(self, wf: Any, entry: Entry) -> None:
        fork = await of(wf.fork(f"{wf.id}-{self._name}-{self._serial}", author=self._name, message="fork"))
        entry.base = (await of(fork.version())).changes[0].version
        for _ in range(self._rng.randint(1, 3)):
            program = self._maker.forked()
            editing = fork.edit(author=self._name, message="of a fork")
            entry.told += run(await _enter(editing), program)
            await _leave(editing, None)
            entry.program += program
        await self._others(wf)
        made = await of(wf.merge(fork, author=entry.author, message=entry.key))
        entry.more["fork"] = fork.id
        answered(entry, made.version)

    async def _move(self, wf: Any, entry: Entry) -> None:
        """Take something out of one workflow and put it into the other, or neither."""
        other = self._entry(entry.more["other"], "part")
        other.key, other.more["with"], entry.more["parts"] = entry.key, entry.workflow, other.workflow
        state, entry.base = await of(wf.state_and_version())
        key = min(state["pool"], default=None)
        key, value = (key, state["pool"][key]) if key is not None else ("plan", state["plan"])
        path = ["plan"] if key == "plan" else ["pool", key]
        new = self._maker.value()
        entry.told, other.told = [None], [None]
        entry.program = [["set", path, new]] if key == "plan" else [["delete", path]]
        other.program = [["set", ["pool", f"from {entry.key}"], value]]
        gone = Set(("plan",), new) if key == "plan" else Delete(("pool", key))
        onto = self._rng.choice(("base", "base", "if_version"))
        entry.more["onto"] = onto
        await self._others(wf)
        parts = [
            wf.change([gone], **{onto: entry.base}, **self._signed(entry)),
            self._store.workflow(other.workflow).change(
                [Set(("pool", f"from {entry.key}"), value)], author=other.author, message=other.key
            ),
        ]
        try:
            for each, made in zip((entry, other), await of(self._store.transact(parts)), strict=True):
                if made is not None:
                    answered(each, made)
        except QuireError as error:
            other.error = error.code
            raise
        finally:
            self._keep(other)


WAYS: dict[str, Callable[[Client, Any, Entry], Coroutine[Any, Any, None]]] = {
    "edit": Client._edit,  # pyright: ignore[reportPrivateUsage]
    "strict": Client._edit,  # pyright: ignore[reportPrivateUsage]
    "old": Client._edit,  # pyright: ignore[reportPrivateUsage]
    "decided": Client._edit,  # pyright: ignore[reportPrivateUsage]
    "update": Client._update,  # pyright: ignore[reportPrivateUsage]
    "save": Client._save,  # pyright: ignore[reportPrivateUsage]
    "set": Client._set,  # pyright: ignore[reportPrivateUsage]
    "blind": Client._blind,  # pyright: ignore[reportPrivateUsage]
    "increment": Client._increment,  # pyright: ignore[reportPrivateUsage]
    "restore": Client._restore,  # pyright: ignore[reportPrivateUsage]
    "merge": Client._merge,  # pyright: ignore[reportPrivateUsage]
    "move": Client._move,  # pyright: ignore[reportPrivateUsage]
}
"""How to write: in an edit on the newest version, one that is serializable, one on an older version, one with a policy of its own; by
`update`; ..."""


def answered(entry: Entry, made: Any) -> None:
    """Note which version a write was told it had made; where it made none it is told the head."""
    if made.message == entry.key:
        entry.version = made.number
    else:
        entry.more["head"] = made.number


def refuse(entry: Entry, error: QuireError, head: Any) -> None:
    """Note how a write was refused, and which version was the newest afterwards."""
    entry.error, entry.said, entry.after = error.code, str(error), head.number
    entry.shown = [shown(met) for met in getattr(error, "conflicts", ())]
    entry.more["error_base"] = getattr(error, "base", None)


def shown(met: Any) -> dict[str, Any]:
    """Return what a conflict tells, as JSON: each value in a list, an empty one where nothing is."""
    sides = {side: held(getattr(met, side)) for side in ("base", "theirs", "ours")}
    return {"path": list(met.path), "author": met.author, "version": met.version, **sides}


def held(value: Any) -> list[Any]:
    """Return a value in a list, an empty one for nothing."""
    return [] if value is msgspec.UNSET else [value]


async def of(value: Any) -> Any:
    """Return what is awaited, or is there already."""
    return await value if isawaitable(value) else value


async def _enter(editing: Any) -> Any:
    return await editing.__aenter__() if hasattr(editing, "__aenter__") else editing.__enter__()


async def _leave(editing: Any, error: BaseException | None) -> None:
    leave = getattr(editing, "__aexit__", None) or editing.__exit__
    await of(leave(None if error is None else type(error), error, None))
