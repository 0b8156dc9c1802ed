"""With one mistake in the library the campaign finds it, and without it finds nothing: it does not pass everything."""

import pytest

from quire.api import draft, draft_node, recorder
from quire.core import guards, resolve, trail
from quire.core.path import get
from quire.engine import actor, committer
from quire.model import Increment, Set, Splice
from quire.testing.edits.campaign import Campaign, run

pytestmark = pytest.mark.soak

SEEDS = 12
EDITS = ("edit", "edit", "old", "update")


def agreement_on_equal_values(patch):
    """A write made from what is not there any more stands where both sides came to the same."""
    stale = resolve._stale

    def found(*given):
        return {n: met for n, met in stale(*given).items() if met.ours != met.theirs}

    patch.setattr(resolve, "_stale", found)


def ensure_as_set(patch):
    """What makes an empty container replaces the one that others made."""
    patch.setattr(draft, "Ensure", Set)


def dropped_guard(patch):
    """What was read is not guarded."""
    patch.setattr(draft_node.Node, "_guarded", lambda *_: [])


def guard_on_the_parent(patch):
    """The whole object around it is guarded instead."""
    guarded = draft_node.Node._guarded
    patch.setattr(draft_node.Node, "_guarded", lambda *given: [place[:-1] for place in guarded(*given)])


def guard_on_a_sibling(patch):
    """Another key of the object is guarded instead."""
    guarded = draft_node.Node._guarded
    patch.setattr(draft_node.Node, "_guarded", lambda *given: [(*place[:-1], "other") for place in guarded(*given)])


def guard_only_of_what_is_at_the_place(patch):
    """That a part of it was read counts for nothing."""
    patch.setattr(draft_node.Node, "_was_read", lambda *_: False)


def guard_compared_with_the_head(patch):
    """The base of a guard is taken for what is there now."""
    stale = resolve._stale
    patch.setattr(
        resolve, "_stale", lambda ways: stale(resolve._Ways(ways.changes, ways.over, ways.found, ways.head, ways.head))
    )


def sum_as_set(patch):
    """`+=` puts what it came to, blindly."""
    record = recorder.Recorder.record

    def recorded(self, change, *given):
        if isinstance(change, Increment):
            change = Set(change.path, get(self.state, change.path, 0) + change.amount)
        if isinstance(change, Splice):
            change = Set(change.path, get(self.state, change.path) + change.insert)
        return record(self, change, *given)

    patch.setattr(recorder.Recorder, "record", recorded)


def sum_as_a_read(patch):
    """`+=` is a read and a write."""
    patch.setattr(draft_node.Node, "_ended", lambda *_: False)


def no_version_of_what_left_no_trace(patch):
    """A write that others had written already is acknowledged, and is not in the log."""
    patch.setattr(actor, "_left_no_trace", lambda _: False)


def bounds_of_the_draft_only(patch):
    """Bounds are not checked on what the write meets."""
    patch.setattr(guards.Within, "check", lambda *_: None)


def first_of_several_named(patch):
    """A conflict names the first who wrote there, and shows what the last wrote."""
    patch.setattr(trail.Trail, "last", lambda self, path: next(iter(self._all.get(path, ())), None))


def decided_on_what_a_handle_knows(patch):
    """What changes nothing, or is refused, by a version that another handle has replaced is answered at once."""

    async def behind(*_):
        return False

    patch.setattr(committer.Committer, "_behind", behind)


def conflict_not_recorded(patch):
    """What was overruled is not written down."""
    settle = resolve.settle

    def forgetful(*given, **more):
        return guards.msgspec.structs.replace(settle(*given, **more), met=[])

    patch.setattr(resolve, "settle", forgetful)


MUTANTS = {
    agreement_on_equal_values: ("serial", ["count"], EDITS),
    ensure_as_set: ("serial", ["group"], EDITS),
    dropped_guard: ("serial", ["count", "lead"], EDITS),
    guard_on_the_parent: ("refusal", ["count", "pool"], EDITS),
    guard_on_a_sibling: ("serial", ["pool"], EDITS),
    guard_only_of_what_is_at_the_place: ("serial", ["tree"], EDITS),
    guard_compared_with_the_head: ("serial", ["count", "lead"], EDITS),
    sum_as_set: ("serial", ["count", "write"], EDITS),
    sum_as_a_read: ("refusal", ["count"], EDITS),
    no_version_of_what_left_no_trace: ("lost", ["lead", "pool"], EDITS),
    bounds_of_the_draft_only: ("serial", ["count"], EDITS),
    first_of_several_named: ("shows", ["blind"], EDITS),
    conflict_not_recorded: ("missing", ["blind"], EDITS),
    decided_on_what_a_handle_knows: ("lost", [], ("blind",)),
}
"""Mutant to the kind of finding, and the steps and ways that find it."""


async def kinds(folder, steps, ways, seeds=SEEDS):
    """Yield the kinds of what short campaigns find."""
    for seed in range(seeds):
        campaign = Campaign(
            url="memory:mutant",
            seed=str(seed),
            handles=2,
            clients=6 if ways == EDITS else 3,
            writes=12,
            ways=ways,
            steps=tuple(steps),
        )
        outcome = await run(campaign, folder)
        for finding in outcome.findings:
            yield finding.kind


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
async def test_the_campaign_finds(mutant, tmp_path, monkeypatch):
    kind, steps, ways = MUTANTS[mutant]
    mutant(monkeypatch)
    async for found in kinds(tmp_path, steps, ways):
        if found == kind:
            return
    pytest.fail("nothing was found")


CHOICES = sorted({(tuple(steps), ways) for _, steps, ways in MUTANTS.values()})


@pytest.mark.parametrize(("steps", "ways"), CHOICES, ids=lambda names: "-".join(names))
async def test_without_a_mistake_it_finds_nothing(steps, ways, tmp_path):
    assert [found async for found in kinds(tmp_path, list(steps), ways)] == []
