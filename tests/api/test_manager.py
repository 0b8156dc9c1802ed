"""StateManager, behaviour by behaviour. Names in brackets are those of the features' list."""

import asyncio
import hashlib
import logging

import apsw
import msgspec
import pytest

import quire
from quire import StateManager
from quire.engine.watch import Cursor
from quire.errors import AlreadyExists, CorruptRecord, InvalidState, NotFound, StorageUnavailable


def state(**more):
    return {"id": "w", "name": "Data", "status": "running", "priority": "high", "createdAt": 1_700_000_000_000, **more}


@pytest.fixture
async def manager():
    async with StateManager("memory:") as opened:
        yield opened


async def eventually(check):
    for _ in range(500):
        if check():
            return
        await asyncio.sleep(0.005)
    pytest.fail("it never came true")


async def test_versions_count_know_their_parent_and_carry_everything(manager):  # A1 A2 A3 A8 B1 B2 B3
    first = await manager.persist_workflow_state("w", state(custom={"kept": [1]}))
    second = await manager.persist_workflow_state("w", state(status="completed", completedAt=5), "ann", "done")
    assert (first.version, first.parent_version, first.author, first.change_description) == (
        1,
        None,
        "system",
        "State update",
    )
    assert (second.version, second.parent_version, second.author, second.change_description) == (
        2,
        first.id,
        "ann",
        "done",
    )
    assert first.state["custom"] == {"kept": [1]}
    assert second.state["completedAt"] == 5
    assert first.workflow_id == "w"
    assert first.timestamp > 1_700_000_000_000


async def test_the_checksum_is_that_of_the_stored_version(manager):  # A4 G6
    version = await manager.persist_workflow_state("w", state())
    assert version.checksum == (await manager.store.workflow("w").version(1)).checksum
    assert version.state == await manager.get_workflow_state("w")
    assert (await manager.store.verify()).ok


async def test_states_by_number_id_or_not_at_all(manager):  # B4 B5 B6 B7
    versions = [await manager.persist_workflow_state("w", state(n=i)) for i in range(12)]
    assert (await manager.get_workflow_state("w"))["n"] == 11
    assert (await manager.get_workflow_state("w", "5"))["n"] == 4
    for version in versions:  # ids begin with a digit
        assert await manager.get_workflow_state("w", version.id) == version.state
    for workflow, version in [("ghost", None), ("w", "99"), ("w", "nonsense"), ("w", "1-000000000000"), ("../x", None)]:
        assert await manager.get_workflow_state(workflow, version) is None


async def test_history_is_complete_and_newest_first(manager):  # B8 B9 G8
    for i in range(5):
        await manager.persist_workflow_state("w", state(n=i), f"a{i}")
    history = await manager.get_workflow_history("w")
    assert [(v.version, v.author, v.state["n"]) for v in history] == [(i + 1, f"a{i}", i) for i in reversed(range(5))]
    assert await manager.get_workflow_history("ghost") == []


async def test_bad_states_are_refused_and_nothing_is_stored(manager):  # G1 G9
    for bad, said in [
        ({}, "id is required, name is required, status is required, createdAt is required"),
        (state(status="odd"), "status"),
        (state(priority="odd"), "priority"),
        (state(tasks={"a": {"id": "b", "type": "t"}}), "task a"),
        (state(tasks={"a": {"id": "a"}}), "no type"),
        ([], "not an object"),
    ]:
        with pytest.raises(InvalidState, match=f"State validation failed: .*{said}"):
            await manager.persist_workflow_state("w", bad)
    with pytest.raises(InvalidState, match="/x"):
        await manager.persist_workflow_state("w", state(x=float("nan")))
    assert await manager.get_workflow_history("w") == []


async def test_nothing_given_or_returned_is_the_stored_state(manager):  # A10
    mine = state(deep={"l": [1]})
    version = await manager.persist_workflow_state("w", mine)
    mine["deep"]["l"].append(2)
    version.state["deep"]["l"].append(3)
    (await manager.get_workflow_state("w"))["deep"]["l"].append(4)
    assert (await manager.get_workflow_state("w"))["deep"] == {"l": [1]}


async def test_subscribers_get_every_change_with_its_type(manager):  # A5 A6 A16 B10 B11
    got = []
    manager.register_agent("ann", lambda message: got.append(message))
    await manager.persist_workflow_state("w", state())
    assert await manager.subscribe_to_state_changes("w", "ann") is None
    await manager.subscribe_to_state_changes("w", "ann")
    assert await manager.subscribers("w") == ["ann"]
    changed = state(status="completed", tasks={"t": {"id": "t", "type": "x"}}, agents={"a": "idle"}, metadata={"m": 1})
    await manager.persist_workflow_state("w", changed, "bob")
    await eventually(lambda: len(got) >= 4)
    changes = [m["payload"]["change"] for m in got]
    assert {m["type"] for m in got} == {"data"}
    assert {m["payload"]["type"] for m in got} == {"state-change"}
    assert {(c["type"], c["path"]) for c in changes} == {
        ("workflow-status", "/status"),
        ("task-update", "/tasks"),
        ("agent-status", "/agents"),
        ("metadata-update", "/metadata"),
    }
    status = next(c for c in changes if c["path"] == "/status")
    assert (status["oldValue"], status["newValue"], status["agentId"], status["workflowId"]) == (
        "running",
        "completed",
        "bob",
        "w",
    )
    assert len({c["id"] for c in changes}) == 4


async def test_a_failing_subscriber_is_tried_again_and_disturbs_nobody(manager):
    got, broken = [], [True]

    def moody(message):
        if broken[0]:
            broken[0] = False
            raise ValueError("not today")
        got.append(("moody", message["payload"]["change"]["newValue"]))

    manager.register_agent("moody", moody)
    manager.register_agent("calm", lambda m: got.append(("calm", m["payload"]["change"]["newValue"])))
    for agent in ("moody", "calm"):
        await manager.subscribe_to_state_changes("w", agent)
    await manager.persist_workflow_state("w", state())
    await manager.persist_workflow_state("w", state(status="completed"))
    await eventually(lambda: ("moody", "completed") in got and ("calm", "completed") in got)


async def test_an_agent_that_registers_and_subscribes_at_once_is_told_once(manager, monkeypatch):
    got, load = [], Cursor.load

    async def slow(self, after):
        await asyncio.sleep(0.05)
        return await load(self, after)

    monkeypatch.setattr(Cursor, "load", slow)
    await manager.persist_workflow_state("w", state())
    await manager.subscribe_to_state_changes("w", "ann")
    manager.register_agent("ann", lambda m: got.append(m["payload"]["change"]["newValue"]))
    await manager.subscribe_to_state_changes("w", "ann")
    await manager.persist_workflow_state("w", state(status="completed"))
    await eventually(lambda: "completed" in got)
    await asyncio.sleep(0.2)
    assert got.count("completed") == 1


@pytest.mark.parametrize("turns", range(12))
async def test_a_subscription_that_is_begun_while_the_manager_closes_is_not_delivered_to(turns):
    async with quire.open("memory:") as store:
        manager, got = StateManager(store), []
        await manager.start()
        wf = await store.create("w", state())
        manager.register_agent("ann", got.append)
        subscribing = asyncio.create_task(manager.subscribe_to_state_changes("w", "ann"))
        for _ in range(turns):
            await asyncio.sleep(0)
        await manager.close()
        await subscribing
        await wf.set("/n", 5)
        await asyncio.sleep(0.05)
        assert got == []


async def test_everything_is_there_after_a_restart(tmp_path):  # A9 A11 A12 E2
    url, got = str(tmp_path / "s.db"), []
    async with StateManager(url) as manager:
        await manager.persist_workflow_state("w", state())
        await manager.subscribe_to_state_changes("w", "ann")
        await manager.persist_workflow_state("w", state(n=1, updatedAt=5))
        snapshot = await manager.create_state_snapshot("w")
        conflicts = await manager.list_conflicts()
        history = await manager.get_workflow_history("w")
    async with StateManager(url) as manager:
        manager.register_agent("ann", lambda m: got.append(m["payload"]["change"]["newValue"]))
        assert await manager.get_workflow_history("w") == history
        assert await manager.list_conflicts() == conflicts
        assert len(conflicts) == 1
        assert await manager.get_snapshot("w", snapshot.id) == snapshot
        await eventually(lambda: got == [1])  # what it missed while nobody was there


async def test_snapshots(manager):  # A7 B12 B13 B14 B15 B16
    with pytest.raises(NotFound, match="Workflow not found: ghost"):
        await manager.create_state_snapshot("ghost")
    await manager.persist_workflow_state("w", state(n=1))
    snapshot = await manager.create_state_snapshot("w")
    assert snapshot.description == "Manual snapshot"
    assert len(snapshot.checksum) == 64
    assert snapshot.state["n"] == 1
    await manager.persist_workflow_state("w", state(n=2))
    before = len(await manager.get_workflow_history("w"))
    assert await manager.restore_from_snapshot("w", snapshot.id) is None
    history = await manager.get_workflow_history("w")
    assert len(history) == before + 1
    assert (history[0].author, history[0].change_description) == (
        "state-manager",
        f"Restored from snapshot: {snapshot.id}",
    )
    assert (await manager.get_workflow_state("w"))["n"] == 1
    assert await manager.list_conflicts() == []  # a restore is no conflict
    with pytest.raises(NotFound, match="Snapshot not found: nope"):
        await manager.restore_from_snapshot("w", "nope")


async def test_a_damaged_snapshot_is_refused_and_nothing_changes(tmp_path):  # B16 G6
    url = str(tmp_path / "s.db")
    async with StateManager(url) as manager:
        await manager.persist_workflow_state("w", state(n=1))
        snapshot = await manager.create_state_snapshot("w")
        whole = (await manager.store.workflow("w").checkpoints())[0]
        assert hashlib.sha256(await manager.store.blob(whole.blob)).hexdigest() == snapshot.checksum
        assert snapshot.size == whole.size_bytes
    db = apsw.Connection(url)
    db.execute("UPDATE blobs SET body = CAST(replace(CAST(body AS TEXT), '\"n\":1', '\"n\":7') AS BLOB)")
    db.close()
    async with StateManager(url) as manager:
        with pytest.raises(CorruptRecord, match=r"Snapshot integrity check failed"):
            await manager.restore_from_snapshot("w", snapshot.id)
        assert len(await manager.get_workflow_history("w")) == 1


async def test_stale_writes_are_detected_queued_and_resolved_once(manager):  # E1 E2 E4 B17
    first = await manager.persist_workflow_state("w", state())
    stale = dict(first.state)
    await manager.persist_workflow_state("w", {**first.state, "n": 1})
    await manager.persist_workflow_state("w", {**stale, "n": 2}, "late")
    (conflict,) = await manager.list_conflicts("w")
    assert (conflict.status, conflict.resolution_strategy, conflict.conflicting_changes[0]["author"]) == (
        "pending",
        "last-write-wins",
        "late",
    )
    assert (await manager.resolve_state_conflict(conflict.id))["n"] == 2
    (conflict,) = await manager.list_conflicts()
    assert conflict.status == "resolved"
    assert (await manager.get_state_metrics()).conflicts_resolved == 1
    with pytest.raises(NotFound, match="Conflict not found: nope"):
        await manager.resolve_state_conflict("nope")


async def test_metrics_and_debugging(manager, caplog):  # B18 B19 B20 G4 G5 G12
    sunk = []
    async with StateManager("memory:", {"analytics": sunk.append, "STATE_MANAGER_DEBUG": "true"}) as debugged:
        with caplog.at_level(logging.NOTSET):
            await debugged.persist_workflow_state("w", state())
            await debugged.get_workflow_state("w")
            debugged.log_metrics("custom_operation", {"duration": 3, "success": 1})
        metrics = await debugged.get_state_metrics()
        assert {"custom_operation", "persist", "get"} <= {m["name"] for m in sunk}
        assert any("custom_operation" in r.message for r in caplog.records)
        debugged.set_debug_mode(False)
    assert (metrics.total_states, metrics.active_workflows, metrics.versions_created) == (1, 1, 1)
    assert metrics.average_retrieval_time > 0
    assert metrics.average_persistence_time > 0
    assert metrics.average_state_size > 50


async def test_metrics_follow_what_changed_since_they_were_asked_for(manager, monkeypatch):
    store, read = manager.store, []
    state_of = store.engine.state_of

    async def noted(head):
        read.append(head.stream)
        return await state_of(head)

    monkeypatch.setattr(store.engine, "state_of", noted)

    async def counts():
        read.clear()
        found = await manager.get_state_metrics()
        assert found.average_state_size == sum(
            [len(msgspec.json.encode(await store.workflow(w).state())) for w in await store.workflows()]
        ) / max(1, found.total_states)
        return found.total_states, found.active_workflows, found.versions_created, len(read)

    assert await counts() == (0, 0, 0, 0)
    for n in range(5):
        await store.create(f"m{n}", {"status": "running", "n": n})
    assert await counts() == (5, 5, 5, 5)
    await store.workflow("m1").set("/status", "completed")
    assert await counts() == (5, 4, 6, 1)
    await store.delete("m2")
    await store.create("m9", {"status": "pending"})
    assert await counts() == (5, 4, 6, 1)
    await manager.create_state_snapshot("m9", "before")
    await manager.subscribe_to_state_changes("m9", "ann")
    found = await manager.get_state_metrics()
    assert (found.snapshots_created, found.subscriptions) == (1, 1)


def task(kind, payload, **more):
    return {
        "id": f"t-{kind}",
        "type": kind,
        "priority": "high",
        "payload": payload,
        "context": {"workflowId": "w", "metadata": {}},
        "createdAt": 0,
        "retryCount": 0,
        "maxRetries": 3,
        **more,
    }


async def test_every_type_of_task(manager):  # C1..C8 C10 C11 C12 B21
    async def do(kind, **payload):
        result = await manager.process_task(task(kind, payload))
        assert result.status == "success", result.error
        assert result.task_id == f"t-{kind}"
        return result.result

    made = await do("persist-state", workflowId="w", state=state(), author="ann", changeDescription="first")
    assert (made["author"], made["changeDescription"], made["workflowId"]) == ("ann", "first", "w")
    assert (await do("get-state", workflowId="w"))["name"] == "Data"
    assert len(await do("get-history", workflowId="w")) == 1
    assert await do("subscribe-changes", workflowId="w", agentId="ann") == {"subscribed": True}
    snapshot = await do("create-snapshot", description="before")
    assert snapshot["description"] == "before"
    assert await do("restore-snapshot", snapshotId=snapshot["id"]) == {"restored": True}
    await manager.persist_workflow_state("w", state(updatedAt=1))
    conflict = (await manager.list_conflicts())[0]
    assert (await do("resolve-conflict", conflictId=conflict.id))["name"] == "Data"
    assert (await do("validate-state"))["isValid"] is True
    assert (await do("archive-old-versions"))["archived"] == 0
    assert (await do("get-metrics"))["versionsCreated"] == 3


async def test_a_failing_task_is_a_result(manager):  # C13 C14
    for bad, said in [
        (task("spam", {}), "Unknown task type: spam"),
        (task("persist-state", {"workflowId": "w", "state": {}}), "State validation failed"),
        (task("create-snapshot", {"workflowId": "ghost"}), "Workflow not found: ghost"),
        ({"id": "x", "type": "get-state", "payload": {}}, "workflowId"),
        ({"type": "get-state"}, "payload"),
        ({}, "Unknown task type: None"),
    ]:
        result = await manager.process_task(bad)
        assert result.status == "failure"
        assert said in result.error


async def test_transient_failures_are_retried_up_to_the_limit(manager, monkeypatch):  # C13 G2 G10
    real, left = manager.store.engine.backend.commit, [2]

    async def flaky(items):
        if left[0]:
            left[0] -= 1
            raise StorageUnavailable("not now")
        return await real(items)

    monkeypatch.setattr(manager.store.engine.backend, "commit", flaky)
    result = await manager.process_task(task("persist-state", {"workflowId": "w", "state": state()}))
    assert (result.status, result.metrics["retryCount"]) == ("success", 2)
    left[0] = 99
    result = await manager.process_task(task("persist-state", {"workflowId": "w", "state": state(n=1)}, maxRetries=1))
    assert (result.status, result.error, result.metrics["retryCount"]) == ("failure", "not now", 1)
    with pytest.raises(StorageUnavailable, match="not now"):
        await manager.persist_workflow_state("w", state(n=2))
    left[0] = 0
    assert len(await manager.get_workflow_history("w")) == 1


async def test_higher_priority_is_served_first(manager, monkeypatch):  # C15 G15
    served = []
    real = manager.get_workflow_state

    async def note(workflow_id, version=None):
        served.append(workflow_id)
        return await real(workflow_id, version)

    monkeypatch.setattr(manager, "get_workflow_state", note)
    waiting = [
        manager.process_task(task("get-state", {"workflowId": p}, priority=p))
        for p in ("low", "medium", "critical", "high")
    ]
    await asyncio.gather(*waiting)
    assert served == ["critical", "high", "medium", "low"]


async def test_concurrent_writers_all_count(manager):  # E5 G11
    await manager.persist_workflow_state("w", state())
    versions = await asyncio.gather(*(manager.persist_workflow_state("w", state(n=i)) for i in range(50)))
    assert sorted(v.version for v in versions) == list(range(2, 52))


async def test_the_coordinator_story(manager):  # G3
    workflow = state(id="order-1")
    await manager.persist_workflow_state(workflow["id"], workflow, "coordinator", "Workflow initialization")
    for agent in ("a", "b"):
        await manager.subscribe_to_state_changes(workflow["id"], agent)
    assert await manager.subscribers("order-1") == ["a", "b"]
    assert (await manager.get_workflow_history("order-1"))[0].change_description == "Workflow initialization"
    with pytest.raises(AlreadyExists):
        await manager.store.create("order-1", {})
