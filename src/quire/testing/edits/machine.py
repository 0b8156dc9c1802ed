"""Edits held open at once, committed in any order, through several handles: whatever Hypothesis thinks of is serial.

    class MyMachine(EditMachine):
        async def open(self):
            return await quire.open(f"sqlite:///{self.place}/edits.db")

    TestMyMachine = MyMachine.TestCase

Steps are few and their places fewer, so that they meet; what a step puts in is new each time.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from quire.errors import MergeConflict, OutOfBounds, QuireError
from quire.testing.edits.clients import Entry, answered, refuse
from quire.testing.edits.log import read_log
from quire.testing.edits.serial import findings
from quire.testing.edits.steps import Step, run

MACHINE = settings(max_examples=25, stateful_step_count=30, deadline=None)
"""Enough to run with every change; a soak raises both."""

START: dict[str, Any] = {
    "n": 0,
    "plan": "none",
    "text": "",
    "queue": ["q0", "q1"],
    "rows": [{"id": "r0", "v": 0, "w": "w0"}],
    "pool": {"a": "a0"},
    "tree": {"x": {"p": "p0"}},
    "groups": {},
}
NEW = "NEW"
STEPS: tuple[Step, ...] = (
    ["add", ["n"], 1],
    ["add again", ["n"], 1],
    ["get", ["n"]],
    ["add within", ["n"], -2, 0, None],
    ["set", ["plan"], NEW],
    ["overwrite", ["plan"], NEW],
    ["claim", ["leader"], NEW],
    ["pop", ["leader"]],
    ["grow", ["text"], NEW],
    ["weave", ["text"], 2, NEW],
    ["append", ["queue"], NEW],
    ["plus", ["queue"], [NEW]],
    ["insert", ["queue"], 1, NEW],
    ["pop item", ["queue"], 0],
    ["pop item", ["queue"], -1],
    ["remove item", ["queue"], 1],
    ["delete item", ["queue"], 0],
    ["set item", ["queue"], 0, NEW],
    ["overwrite item", ["queue"], 1, NEW],
    ["slice", ["queue"], 0, 1, [NEW]],
    ["sort", ["queue"], True],
    ["length", ["queue"]],
    ["add", ["rows", 0, "v"], 1],
    ["overwrite", ["rows", -1, "w"], NEW],
    ["insert", ["rows"], 0, {"id": NEW, "v": 0, "w": NEW}],
    ["pop item", ["rows"], 0],
    ["set", ["pool", "a"], NEW],
    ["set", ["pool", "b"], NEW],
    ["overwrite", ["pool", "a"], NEW],
    ["default", ["pool", "b"], NEW],
    ["delete", ["pool", "a"]],
    ["pop newest", ["pool"]],
    ["update", ["pool"], {"a": NEW, "b": NEW}],
    ["whole", ["pool"]],
    ["keys", ["pool"]],
    ["has", ["pool", "b"]],
    ["set", ["tree", "x", "p"], NEW],
    ["set", ["tree", "x"], {"q": NEW}],
    ["get", ["tree", "x", "p"]],
    ["whole", ["tree"]],
    ["pop", ["tree", "x"]],
    ["list below", ["groups", "l"], NEW],
    ["object below", ["groups", "d"], "i", NEW],
    ["number below", ["groups", "c"], 1],
    ["default", ["groups", "c"], 0],
    ["add", ["groups", "c"], 1],
    ["delete", ["groups", "c"]],
    ["set", ["groups", "l"], []],
)
a_step = st.sampled_from(STEPS)
a_handle = st.integers(0, 1)
a_pick = st.integers(0, 9)
a_number_back = st.sampled_from((0, 0, 0, 1, 3))


class EditMachine(RuleBasedStateMachine):
    """Subclass it and give `open`; run its `TestCase`."""

    policy: ClassVar[str | None] = None
    """The store's, as `open` gives it."""

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.new_event_loop()
        self._folder = tempfile.TemporaryDirectory(prefix="quire-edits-")
        self.place = Path(self._folder.name)
        self._stores: list[Any] = [self._run(self.open()) for _ in range(2)]
        self._run(self._stores[0].create("w", START, author="start"))
        self._entries: list[Entry] = []
        self._open: list[tuple[Any, Any, Entry]] = []
        self._made = 0
        self._count = 0

    async def open(self) -> Any:
        """Open a store on the place of this run: the same at every call, another for every run."""
        raise NotImplementedError

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(work)

    def _entry(self, how: str) -> Entry:
        self._count += 1
        entry = Entry(key=f"write {self._count}", author=f"writer {self._count % 3}", workflow="w", how=how)
        self._entries.append(entry)
        return entry

    def _filled(self, value: Any) -> Any:
        """Return a step with new values for what is to be new."""
        if value == NEW:
            self._made += 1
            return f"<{self._made}>"
        if isinstance(value, dict):
            return {key: self._filled(inner) for key, inner in value.items()}
        return [self._filled(inner) for inner in value] if isinstance(value, list) else value

    @rule(handle=a_handle, back=a_number_back, strict=st.sampled_from((False, False, True)))
    def begin(self, handle: int, back: int, strict: bool) -> None:
        """Begin an edit, on the newest version or an older one, and hold it open."""
        entry = self._entry("strict" if strict else "old")
        entry.policy = self.policy
        entry.more["based"] = True
        wf = self._stores[handle].workflow("w")
        newest = self._run(wf.version()).number
        entry.base = entry.before = max(1, newest - back)
        isolation = "serializable" if strict else "default"
        editing = wf.edit(author=entry.author, message=entry.key, base=entry.base, isolation=isolation)
        self._open.append((editing, self._run(editing.__aenter__()), entry))

    @precondition(lambda self: self._open)
    @rule(pick=a_pick, steps=st.lists(a_step, min_size=1, max_size=3))
    def change(self, pick: int, steps: Sequence[Step]) -> None:
        """Do steps to an edit that is open."""
        number = pick % len(self._open)
        editing, draft, entry = self._open[number]
        for step in self._filled(list(steps)):
            try:
                entry.told += run(draft, [step])
                entry.program.append(step)
            except OutOfBounds as error:  # raised in the block: it writes nothing
                del self._open[number]
                self._entries.remove(entry)
                self._run(editing.__aexit__(type(error), error, None))
                return

    @precondition(lambda self: self._open)
    @rule(pick=a_pick)
    def commit(self, pick: int) -> None:
        """Commit an edit that is open."""
        editing, _, entry = self._open.pop(pick % len(self._open))
        self._written(self._committed(editing, entry), entry)

    async def _committed(self, editing: Any, entry: Entry) -> None:
        await editing.__aexit__(None, None, None)
        if editing.version is not None:
            answered(entry, editing.version)

    @rule(handle=a_handle, steps=st.lists(a_step, min_size=1, max_size=2))
    def update(self, handle: int, steps: Sequence[Step]) -> None:
        """Do steps to the newest state."""
        entry = self._entry("update")
        entry.program = self._filled(list(steps))

        def fn(draft: Any) -> None:
            entry.told = run(draft, entry.program)

        async def written() -> None:
            wf = self._stores[handle].workflow("w")
            entry.before = (await wf.version()).number
            answered(entry, await wf.update(fn, author=entry.author, message=entry.key))

        self._written(written(), entry)

    @rule(handle=a_handle, back=st.integers(1, 4))
    def restore(self, handle: int, back: int) -> None:
        """Make the state what it was."""
        entry = self._entry("restore")

        async def written() -> None:
            wf = self._stores[handle].workflow("w")
            entry.more["target"] = max(1, (await wf.version()).number - back)
            answered(entry, await wf.restore(entry.more["target"], author=entry.author, message=entry.key))

        self._written(written(), entry)

    def _written(self, work: Coroutine[Any, Any, None], entry: Entry) -> None:
        try:
            self._run(work)
        except (MergeConflict, OutOfBounds) as error:
            self._run(self._refused(entry, error))

    async def _refused(self, entry: Entry, error: QuireError) -> None:
        refuse(entry, error, await self._stores[0].workflow("w").version())

    def teardown(self) -> None:
        """Commit what is open, and hold the log against what was told."""
        try:
            while self._open:
                self.commit(0)
            log = self._run(read_log(self._stores[1], "w"))
            wrong = [f"{f.kind}: {f.text}\n{f.entry}" for f in findings(log, self._entries)]
            assert not wrong, "\n".join(wrong)
            assert self._run(self._stores[0].verify()).ok
        finally:
            for store in self._stores:
                self._run(store.close())
            self._run(self._loop.shutdown_default_executor())
            self._loop.close()
            self._folder.cleanup()
