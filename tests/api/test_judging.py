"""From figures to a judgement: each limit has two sides, and each reason says what and what to do."""

import pytest

from quire.api.health import HealthLimits, Lag
from quire.api.judging import Findings, judged
from quire.api.trigger_desk import TriggerState
from quire.errors import Invalid, StorageTimeout, StorageUnavailable
from quire.storage.base import Capabilities, Replica, Vitals

GIB = 1 << 30
OPENED = Capabilities("sqlite", "power", multi_process=True, backup=True, note="every write is on the disk")
HASTY = Capabilities("redis", "process", multi_process=True, backup=False, note="appendfsync is everysec; set always")


def look(vitals=None, expected=None, limits=None, opened=OPENED, **found):
    more = {} if vitals is None else {"vitals": Vitals(place="there", **vitals)}
    return judged(Findings(read_s=0.001, **more, **found), limits or HealthLimits(), opened, expected)


def check(health, name):
    (found,) = (c for c in health.checks if c.name == name)
    return found


def trigger(**how):
    return TriggerState(**{"name": "t", "status": "active", "position": 0, "behind": 0, "owned": True} | how)


@pytest.mark.parametrize(
    ("name", "well", "bad", "status", "said"),
    [
        ("reading", {}, {"read_s": 0.51}, "degraded", "a read took 510 ms"),
        ("writing", {"commit_s": 0.9}, {"commit_s": 1.1}, "degraded", "a durable commit took 1,100 ms"),
        ("commits", {"took_s": [0.1] * 99}, {"took_s": [0.1] * 98 + [3.0]}, "degraded", "one in a hundred"),
        ("writing", {"commit_s": 0.1}, {"vitals": {"read_only": True}}, "unhealthy", "name the primary"),
        ("writing", {"commit_s": 0.1}, {"broken": True}, "degraded", "not settled yet"),
        (
            "disk",
            {"vitals": {"disk_free_bytes": 2 * GIB, "disk_total_bytes": 100 * GIB}},
            {"vitals": {"disk_free_bytes": GIB - 1, "disk_total_bytes": 100 * GIB}},
            "degraded",
            "free some space",
        ),
        (
            "disk",
            {"vitals": {"disk_free_bytes": 50 << 20, "disk_total_bytes": 200 << 20}},  # small, and a quarter is free
            {"vitals": {"disk_free_bytes": 1 << 20, "disk_total_bytes": 200 << 20}},
            "unhealthy",
            "writes fail when it is full",
        ),
        (
            "memory",
            {"vitals": {"memory_used_bytes": 89, "memory_limit_bytes": 100}},
            {"vitals": {"memory_used_bytes": 91, "memory_limit_bytes": 100}},
            "degraded",
            "takes no writes when it is full",
        ),
        (
            "memory",
            {"vitals": {"memory_used_bytes": 1 << 40}},
            {"vitals": {"memory_used_bytes": 100, "memory_limit_bytes": 100}},
            "unhealthy",
            "takes no writes; raise it",
        ),
        ("log", {"vitals": {"log_bytes": 256 << 20}}, {"vitals": {"log_bytes": GIB}}, "degraded", "1.0 GiB"),
        (
            "sessions",
            {"vitals": {"sessions": 90, "sessions_max": 100}},
            {"vitals": {"sessions": 91, "sessions_max": 100}},
            "degraded",
            "91 of 100 sessions",
        ),
        ("clock", {"clock_off_s": 1.9}, {"clock_off_s": -2.1}, "degraded", "-2.1 s from ours"),
        (
            "replicas",
            {"vitals": {"replicas": (Replica("a", True), Replica("b", None)), "replicas_wanted": 2}},
            {"vitals": {"replicas": (Replica("a", True), Replica("b", False)), "replicas_wanted": 2}},
            "degraded",
            "1 of 2 follow (b)",
        ),
        (
            "replicas",
            {"vitals": {"replicas": (Replica("a", True, 1, 1.0),)}},
            {"vitals": {"replicas": (Replica("a", True, GIB, 1.0),)}},
            "degraded",
            "a lags far behind",
        ),
        (
            "replicas",
            {"vitals": {"replicas": (Replica("a", True, 1, 29.0),)}},
            {"vitals": {"replicas": (Replica("a", True, 1, 31.0),)}},
            "degraded",
            "a lags far behind",
        ),
        (
            "replicas",
            {"vitals": {"replicas": (Replica("a", True),)}},
            {"vitals": {"replicas_wanted": 1}},
            "degraded",
            "0",
        ),
        (
            "watchers",
            {"watchers": (Lag("store/x", 1000),)},
            {"watchers": (Lag("store/x", 1000, more=True), Lag("store/y", 3))},
            "degraded",
            "store/x is behind by more than 1000",
        ),
        (
            "triggers",
            {"triggers": (trigger(),), "watchers": (Lag("triggers/t", 5),)},
            {"triggers": (trigger(owned=False),), "watchers": (Lag("triggers/t", 1001),)},
            "degraded",
            "no process runs t",
        ),
        (
            "triggers",
            {"triggers": (trigger(),)},
            {"triggers": (trigger(status="parked", workflow_id="w", version=3, attempts=8, error="ValueError: no"),)},
            "degraded",
            "parked at w@3 after 8 attempts (ValueError: no): correct it, then `resume_trigger('t')`",
        ),
        (
            "server",
            {"vitals": {"server": "Redis 8"}},
            {"vitals_error": StorageTimeout("it took too long")},
            "degraded",
            "it took too long",
        ),
    ],
)
def test_a_figure_beyond_its_limit_is_told_with_its_reason(name, well, bad, status, said):
    good = look(**{"read_s": 0.001} | well) if "read_s" in well else look(**well)
    assert check(good, name).status == "ok" and good.ok and good.reasons == ()
    read_s = bad.pop("read_s", None)
    found = look(**bad) if read_s is None else judged(Findings(read_s=read_s), HealthLimits(), OPENED, None)
    assert check(found, name).status == found.status == status
    assert [said in reason for reason in found.reasons] == [True], found.reasons


def test_what_was_not_looked_at_is_not_called_well():
    assert [c.name for c in look().checks] == ["reading", "durability"]


def test_what_fails_is_unhealthy_in_its_own_words_and_with_the_place():
    down = judged(Findings(read_error=StorageUnavailable("redis://h cannot be reached")), HealthLimits(), OPENED, None)
    assert (down.status, down.reasons) == ("unhealthy", ("redis://h cannot be reached",))
    full = look({"log_bytes": 1}, commit_error=StorageTimeout("a durable commit took longer than 5 s"))
    assert full.reasons == ("there: a durable commit took longer than 5 s",)


def test_the_worst_comes_first_and_all_warnings_are_told():
    found = look({"warnings": ("one", "two"), "read_only": True})
    assert found.status == "unhealthy"
    assert "cannot be written" in found.reasons[0] and found.reasons[1:] == ("one", "two")


@pytest.mark.parametrize(
    ("opened", "now", "expected", "status"),
    [
        (OPENED, None, None, "ok"),
        (HASTY, None, None, "ok"),  # the URL says so: relaxed
        (HASTY, None, "power", "degraded"),
        (HASTY, None, "none", "ok"),
        (OPENED, HASTY, None, "degraded"),  # the server was set otherwise since
        (HASTY, HASTY, "process", "ok"),
        (HASTY, OPENED, "power", "ok"),
    ],
)
def test_durability_is_what_is_in_force_now_against_what_is_wanted(opened, now, expected, status):
    found = look({"promises": now} if now else None, expected, opened=opened)
    assert found.status == status
    assert found.durability == (now or opened).durability
    if status == "degraded":
        assert "appendfsync is everysec; set always" in found.reasons[0]


def test_quantiles_are_of_what_was_kept():
    found = look(took_s=[i / 1000 for i in range(100)])
    assert (found.commit_p50_s, found.commit_p99_s) == (0.05, 0.099)
    assert look().commit_p50_s is None


@pytest.mark.parametrize("limits", [{"read_slow_s": -1}, {"watchers_max": "many"}, {"disk_low_part": float("nan")}])
def test_limits_are_numbers_from_0_on(limits):
    with pytest.raises(Invalid, match=next(iter(limits))):
        HealthLimits(**limits)
