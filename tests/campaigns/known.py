"""Findings that have a failing test in test_findings.py already, so that campaigns can look for others meanwhile.

When such a test passes its name goes from here, and with the last name what tells the finding: test_edits.py fails otherwise.
"""

from collections import Counter

from quire.model import Delete, Remove, Set
from quire.testing.edits.tree import find, same

REMOVING = ("delete", "pop", "pop newest", "clear", "replace")
APPENDING = ("append", "extend", "plus", "insert", "slice", "list below", "list if none")
TAKING = ("delete item", "slice", "clear")
HAS = ("has", "list if none")


def removed_by_both(finding, log, campaign):
    """It removes a key that others removed meanwhile."""
    entry = finding.entry
    if finding.kind not in ("serial", "missing") or not any(step[0] in REMOVING for step in entry.program):
        return False
    gone = [c.path for c in between(entry, log) if isinstance(c, Delete)]
    return not finding.places or {str(path[0]) for path in gone} >= set(finding.places)


def there_again(finding, log, campaign):
    """A policy other than the last, and a place where others wrote and put back what was there."""
    entry = finding.entry
    if finding.kind not in ("serial", "refusal") or entry.policy not in (
        "theirs",
        "queue",
        "both",
        "reject",
        "smaller",
    ):
        return False
    last = (entry.version or entry.after + 1) - 1
    paths = [c.path for c in between(entry, log) if not any(isinstance(token, int) for token in c.path)]
    again = [p for p in paths if same(find(log.state(entry.base), p), find(log.state(last), p))]
    return {str(path[0]) for path in again} >= {place.split("~")[0] for place in finding.places}


def equal_again(finding, log, campaign):
    """A policy, and a place that others wrote more than once, at last to the same that it sets."""
    if finding.kind not in ("serial", "missing") or finding.entry.policy is None:
        return False
    written = Counter(c.path for c in between(finding.entry, log) if isinstance(c, Delete | Set) and c.path)
    places = {place.split("~")[0] for place in finding.places}
    return {str(path[0]) for path, times in written.items() if times > 1} >= places


def kept_of_ours(finding, log, campaign):
    """A policy that keeps ours beside theirs, and an item that it takes out."""
    taking = (*TAKING, "insert", "pop item", "remove item")
    program = finding.entry.program
    return finding.kind == "serial" and finding.entry.policy == "both" and any(step[0] in taking for step in program)


def replaced_list(finding, log, campaign):
    """It appends to a list that others replaced and appended to."""
    if finding.kind != "serial" or not any(step[0] in APPENDING for step in finding.entry.program):
        return False
    replaced = {c.path[0] for c in between(finding.entry, log) if isinstance(c, Set) and type(c.value) is list}
    return replaced >= set(finding.places)


def removed_item(finding, log, campaign):
    """It takes out an item that others changed and took out."""
    taking = TAKING if finding.entry.policy is None else (*TAKING, "pop item", "remove item")
    if finding.kind != "serial" or not any(step[0] in taking for step in finding.entry.program):
        return False
    taken = {c.path[0] for c in between(finding.entry, log) if isinstance(c, Remove)}
    changed = {c.path[0] for c in between(finding.entry, log) if any(isinstance(token, int) for token in c.path)}
    return taken & changed >= set(finding.places)


def of_a_batch(finding, log, campaign):
    """Several clients of a handle, beside another handle: a batch can be refused."""
    return finding.kind in ("refusal", "names") and campaign.handles > 1 and campaign.clients > 1


def guard_left_over(finding, log, campaign):
    """A write with a policy, which other handles can beat again and again."""
    return (
        finding.kind in ("serial", "refusal", "missing", "names")
        and campaign.handles > 1
        and bool(finding.entry.policy)
    )


def presence(finding, log, campaign):
    """A serializable write that looked whether something is there."""
    entry = finding.entry
    return finding.kind == "refusal" and entry.how == "strict" and any(step[0] in HAS for step in entry.program)


def made_and_removed(finding, log, campaign):
    """It makes a container that others made and removed meanwhile."""
    entry = finding.entry
    below = any(step[0] in ("object below", "list below", "default", "list if none") for step in entry.program)
    return finding.kind == "refusal" and below and "was removed or replaced" in entry.said


def too_early(finding, log, campaign):
    """It was refused by a write that was not committed yet."""
    return finding.kind == "early"


def without_bounds(finding, log, campaign):
    """It was refused, and applied after all."""
    entry = finding.entry
    return finding.kind == "serial" and entry.how == "insist" and any(step[0] == "add within" for step in entry.program)


def emptied(finding, log, campaign):
    """It makes something empty that it filled itself."""
    program = finding.entry.program
    sets = [step[1] for step in program if step[0] == "set" and step[2] in ([], {})]
    return finding.kind in ("serial", "missing") and any(step[1] in sets for step in program if "below" in step[0])


def forgotten_read(finding, log, campaign):
    """It read a part of what it writes, and wrote that part before."""
    paths = [tuple(step[1]) for step in finding.entry.program]
    parts = any(a[: len(b)] == b for i, b in enumerate(paths) for a in paths[:i] if len(a) > len(b))
    return finding.kind == "serial" and "had to be refused: stale" in finding.text and parts


def taken_for_a_gap(finding, log, campaign):
    """It was refused for want of history."""
    return finding.kind == "refusal" and "is not kept any more" in finding.entry.said


def of_an_edit_without_a_version(finding, log, campaign):
    """Its changes cancel out."""
    return finding.kind == "answer"


def shown(finding, log, campaign):
    """A conflict shows a value of another version, or of none."""
    return finding.kind == "shows"


KNOWN = {
    removed_by_both: [
        "test_a_key_that_others_removed_and_put_back_is_still_removed",
        "test_a_blind_removal_stands_or_a_conflict_tells_of_it",
    ],
    there_again: ["test_what_was_read_and_is_there_again_is_no_conflict"],
    equal_again: ["test_equal_values_that_were_not_read_are_no_conflict"],
    kept_of_ours: ["test_what_is_kept_of_a_write_is_what_it_left"],
    replaced_list: ["test_an_append_goes_to_the_end_of_a_list_that_others_replaced_and_appended_to"],
    removed_item: ["test_an_append_is_not_lost_with_a_removal_in_front_of_it"],
    of_a_batch: ["test_a_write_is_refused_only_for_what_is_committed", "test_a_refusal_names_a_version_of_the_log"],
    guard_left_over: [
        "test_what_was_met_at_one_place_leaves_out_nothing_at_another",
        "test_a_policy_decides_however_often_a_write_is_beaten",
    ],
    taken_for_a_gap: ["test_history_is_not_missing_because_the_head_moves_meanwhile"],
    forgotten_read: ["test_what_was_read_is_relied_on_though_it_was_written_since"],
    too_early: ["test_who_is_refused_sees_what_refused_the_write"],
    without_bounds: ["test_a_refused_write_that_is_applied_after_all_keeps_its_bounds"],
    emptied: ["test_a_list_that_is_emptied_is_empty"],
    presence: ["test_a_serializable_edit_has_read_only_presence"],
    made_and_removed: ["test_what_was_absent_and_is_absent_is_made"],
    of_an_edit_without_a_version: ["test_an_edit_that_changes_nothing_has_no_version"],
    shown: [
        "test_a_refusal_shows_what_the_version_it_names_has",
        "test_equal_values_that_were_not_read_are_no_conflict",
        "test_a_refusal_shows_no_changes_of_its_own",
        "test_a_conflict_shows_what_the_write_came_to",
        "test_a_queued_conflict_names_the_last_of_several",
    ],
}
"""What tells a finding, and the failing tests that show it."""


def between(entry, log):
    """Return what was changed after a write's base and before it."""
    last = (entry.version or (entry.after or log.head) + 1) - 1
    return [change for number in range((entry.base or last) + 1, last + 1) for change in log.changes(number)]


def is_known(finding, log, campaign):
    """True if a finding has its failing test. Those of a log as a whole have not."""
    return finding.entry is not None and any(tells(finding, log, campaign) for tells in KNOWN)


def new(outcome, campaign, passed=KNOWN):
    """Return the findings of a campaign that are not known. passed: what tells those that are."""
    logs = dict(zip(campaign.workflows, outcome.logs, strict=True))
    return [
        finding
        for finding in outcome.findings
        if finding.entry is None or not any(tells(finding, logs[finding.entry.workflow], campaign) for tells in passed)
    ]


def told(found, campaign):
    """Return findings as text that says how to repeat them."""
    return "\n".join([str(campaign), *(f"{f.kind}: {f.text}\n    {f.entry}" for f in found)])
