"""Campaigns of concurrent edits, short ones: on every store, as tasks, threads and processes, by every policy."""

import pytest
from tests.campaigns.soak import SERVERS, STORES, rounds, told

from quire.testing.edits.campaign import Campaign, run
from quire.testing.servers.fixtures import shared

pytestmark = pytest.mark.soak

LOCAL = {"sqlite": "sqlite:///{}/edits.db", "files": "file:///{}/edits", "rocksdb": "rocksdb:///{}/edits"}
ROUNDS = 150
"""Of the long campaign, on each store."""
DEFAULT = ("edit", "edit", "old", "set", "save", "update", "restore", "increment")


async def holds(campaign, folder):
    outcome = await run(campaign, folder)
    assert len({entry.error for entry in outcome.entries}) > 1, "none was refused: they did not meet"
    assert not outcome.findings, told(outcome.findings, campaign)


def url_of(store, folder):
    return LOCAL[store].format(folder) if store in LOCAL else shared(SERVERS[store]).url


@pytest.mark.parametrize("seed", ["1", "2", "3", "4"])
async def test_tasks_of_one_handle(tmp_path, seed):
    campaign = Campaign(url="memory:campaign", seed=seed, handles=1, clients=6, writes=60)
    await holds(campaign, tmp_path)


@pytest.mark.parametrize("seed", ["1", "2"])
async def test_tasks_of_several_handles(tmp_path, seed):
    campaign = Campaign(url="memory:campaign", seed=seed, handles=3, clients=2, writes=40)
    await holds(campaign, tmp_path)


async def test_several_handles_of_one_client_each(tmp_path):
    """No batch holds more than one write: whatever is refused is refused for what is in the log."""
    campaign = Campaign(url="memory:campaign", seed="1", handles=5, clients=1, writes=60)
    await holds(campaign, tmp_path)


@pytest.mark.parametrize("seed", ["1", "2"])
async def test_serializable_edits(tmp_path, seed):
    campaign = Campaign(
        url="memory:campaign",
        seed=seed,
        handles=1,
        clients=6,
        writes=40,
        ways=("strict", "strict", "update", "restore"),
    )
    await holds(campaign, tmp_path)


async def test_policies_of_each_write(tmp_path):
    ways = ("decided", "decided", "edit", "update", "save")
    campaign = Campaign(url="memory:campaign", seed="1", handles=1, clients=6, writes=60, ways=ways)
    await holds(campaign, tmp_path)


@pytest.mark.parametrize("handles", [1, 3])
@pytest.mark.parametrize("policy", ["last", "theirs", "both", "queue", "reject", "smaller"])
async def test_policies(tmp_path, policy, handles):
    ways = DEFAULT if policy in ("last", "reject") else tuple(way for way in DEFAULT if way != "restore")
    campaign = Campaign(
        url="memory:campaign", seed="1", handles=handles, clients=6 // handles, writes=40, ways=ways, policy=policy
    )
    outcome = await run(campaign, tmp_path)
    assert any(log.conflicts for log in outcome.logs)
    assert not outcome.findings, told(outcome.findings, campaign)


async def test_threads(tmp_path):
    campaign = Campaign(url=url_of("sqlite", tmp_path), seed="1", crowd="threads", handles=2, clients=3, writes=30)
    await holds(campaign, tmp_path)


async def test_four_processes_on_one_sqlite_file(tmp_path):
    campaign = Campaign(url=url_of("sqlite", tmp_path), seed="1", crowd="processes", handles=4, clients=2, writes=30)
    await holds(campaign, tmp_path)


@pytest.mark.parametrize("store", ["files", "postgres", "redis", "nats"])
async def test_processes(tmp_path, store):
    campaign = Campaign(
        url=url_of(store, tmp_path), seed="1", crowd="processes", handles=2, clients=3, writes=20, prefix="edits-"
    )
    await holds(campaign, tmp_path)


async def test_one_process_on_rocksdb(tmp_path):
    campaign = Campaign(url=url_of("rocksdb", tmp_path), seed="1", handles=1, clients=6, writes=20)
    await holds(campaign, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("store", STORES)
def test_many_rounds(tmp_path, store):
    place = shared(SERVERS[store]).url if store in SERVERS else None
    for campaign, outcome in rounds(store, place, first=1, limit=ROUNDS):
        assert not outcome.findings, told(outcome.findings, campaign)
