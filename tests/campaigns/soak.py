"""Campaigns of concurrent edits for as long as is wanted, on any store; the status is 1 where something was found.

    python -m tests.campaigns.soak --minutes 60 --store sqlite
    python -m tests.campaigns.soak --rounds 1 --store sqlite --seed 17   # one round of it again

Each round is a campaign of its own kind: as tasks, threads or processes (by the store), by default, serializable, or by one
of the policies, with all ways to write or few. What it writes follows from its seed, which is the number of the round.
Who comes first does not, but with tasks of one handle in memory. Stores on servers start private ones, see
quire.testing.servers. A line for each round tells writes, versions, conflicts and refusals, and the rate.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from itertools import count
from pathlib import Path

import msgspec

from quire.testing.edits.campaign import Campaign, run
from quire.testing.servers.nats import NatsServer
from quire.testing.servers.postgres import PostgresServer
from quire.testing.servers.redis import RedisServer

SERVERS = {"postgres": PostgresServer, "redis": RedisServer, "nats": NatsServer}
STORES = ("memory", "sqlite", "files", "rocksdb", *SERVERS)
BLIND_AND_BASED = ("edit", "edit", "old", "set", "save", "update", "increment")
KINDS = (
    {},
    {"handles": 1, "clients": 8},
    {"handles": 5, "clients": 1},
    {"ways": ("decided", "edit", "update", "save"), "handles": 1, "clients": 8},
    {"ways": ("strict", "strict", "update", "restore")},
    {"handles": 1, "clients": 8, "writes": 15, "steps": ("count", "lead")},
    {"handles": 1, "clients": 8, "writes": 15, "steps": ("group",)},
    {"handles": 1, "clients": 8, "writes": 15, "steps": ("tree", "pool")},
    {"handles": 1, "clients": 8, "writes": 15, "steps": ("queue", "row")},
    *({"policy": policy, "ways": BLIND_AND_BASED, "handles": 1} for policy in ("last", "theirs", "queue", "both")),
    *({"policy": policy, "ways": BLIND_AND_BASED} for policy in ("ours", "queue", "reject", "smaller")),
)
"""What rounds take turns in being."""


def campaign_of(store, place, number):
    """Return the campaign of a round."""
    crowds = {"memory": ["tasks"], "rocksdb": ["tasks", "threads"], "sqlite": ["processes", "threads", "tasks"]}
    crowd = crowds.get(store, ["processes"])
    campaign = Campaign(
        url=place,
        seed=str(number),
        crowd=crowd[number % len(crowd)],
        handles=4,
        clients=2,
        writes=30,
        prefix=f"{number}-",
    )
    campaign = msgspec.structs.replace(campaign, **KINDS[number % len(KINDS)])
    return msgspec.structs.replace(campaign, handles=1) if store == "rocksdb" else campaign


def rounds(store, place, *, first, limit=sys.maxsize, until=float("inf")):
    """Yield campaigns and what became of them. place: URL of a server, None for a store of this machine."""
    with tempfile.TemporaryDirectory(prefix="quire-soak-") as folder:
        for number in count(first):
            if number >= first + limit or time.monotonic() >= until:
                return
            url = (
                place
                or {
                    "memory": "memory:soak",
                    "sqlite": f"sqlite:///{folder}/{number}.db",
                    "files": f"file:///{folder}/{number}",
                    "rocksdb": f"rocksdb:///{folder}/{number}",
                }[store]
            )
            campaign = campaign_of(store, url, number)
            yield campaign, asyncio.run(run(campaign, Path(folder)))


def told(found, campaign):
    """Return findings as text that says how to repeat them."""
    return "\n".join([str(campaign), *(f"{f.kind}: {f.text}\n    {f.entry}" for f in found)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=STORES, default="memory")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=sys.maxsize)
    parser.add_argument("--seed", type=int, default=int(time.time()) % 1_000_000, help="of the first round")
    given = parser.parse_args()
    server = SERVERS[given.store]() if given.store in SERVERS else None
    if server is not None:
        server.start()
    begun = last = time.monotonic()
    totals = Counter()
    try:
        place = server.url if server is not None else None
        until = begun + given.minutes * 60
        for campaign, outcome in rounds(given.store, place, first=given.seed, limit=given.rounds, until=until):
            now, found = time.monotonic(), outcome.findings
            totals += Counter(rounds=1, writes=len(outcome.entries), versions=sum(log.head for log in outcome.logs))
            totals += Counter(findings=len(found))
            kind = " ".join(f"{k}={v}" for k, v in KINDS[int(campaign.seed) % len(KINDS)].items())
            rate = len(outcome.entries) / (now - last)
            print(f"seed {campaign.seed} {campaign.crowd} {kind}: {outcome.summary}; {rate:.0f} writes/s", flush=True)
            if found:
                print(told(found, campaign), flush=True)
            last = now
    finally:
        if server is not None:
            server.stop()
    took_s = time.monotonic() - begun
    print(", ".join(f"{value} {name}" for name, value in totals.items()), f"in {took_s:.0f} s", flush=True)
    return 1 if totals["findings"] else 0


if __name__ == "__main__":
    sys.exit(main())
