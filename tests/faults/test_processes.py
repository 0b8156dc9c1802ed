"""Eight processes write one workflow on one file: no update is lost, nobody starves."""

import subprocess
import sys

import quire

CODE = """
import asyncio, sys, quire
async def main(path, who, count):
    async with quire.open(path) as store:
        wf = store.workflow("w")
        for i in range(count):
            async with wf.edit(author=who) as state:
                state.increment("n")
                state["log"].append(f"{who}-{i}")
                state["by"][who] = i
asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


def test_eight_processes_lose_no_update(tmp_path):
    path, count, who = str(tmp_path / "s.db"), 40, [f"p{i}" for i in range(8)]
    with quire.sync.open(path) as store:
        store.create("w", {"n": 0, "log": [], "by": {}})
    processes = [subprocess.Popen([sys.executable, "-c", CODE, path, name, str(count)]) for name in who]
    assert [p.wait(timeout=100) for p in processes] == [0] * 8
    with quire.sync.open(path) as store:
        wf = store.workflow("w")
        state = wf.state()
        assert state["n"] == 8 * count
        assert sorted(state["log"]) == sorted(f"{name}-{i}" for name in who for i in range(count))
        for name in who:
            assert [e for e in state["log"] if e.startswith(f"{name}-")] == [f"{name}-{i}" for i in range(count)]
        versions = wf.history(order="oldest")
        assert [v.number for v in versions] == list(range(1, 8 * count + 2))
        # replayed from the log, every version holds exactly one more than the one before
        for number in (2, 100, 8 * count):
            assert wf.get("/n", version=number) == number - 1
        assert store.verify().ok
