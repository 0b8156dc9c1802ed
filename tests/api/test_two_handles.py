"""Two handles on one store, as two processes have: whoever writes what, both answer what the log says."""

import asyncio

import hypothesis.strategies as st
from hypothesis import given, settings

import quire
from quire.errors import QuireError

STEP = st.tuples(
    st.integers(0, 1),
    st.sampled_from(["set", "same", "fails", "inc", "append", "both", "stale", "read"]),
    st.integers(0, 3),
)


async def step(store, what, number):
    wf = store.workflow("w")
    try:
        if what == "set":
            await wf.set(f"/k{number}", number)
        elif what == "same":  # changes nothing, and makes no version
            await wf.set("/n", await wf.get("/n"))
        elif what == "fails":
            await wf.set("/no/such/place", 1)
        elif what == "inc":
            await wf.inc("/n", number)
        elif what == "append":
            await wf.append("/log", number)
        elif what == "both":  # the second part fails, so does the first
            await store.transact([wf.change([quire.Set(("t",), number)]), store.workflow("absent").change([])])
        elif what == "stale":
            await wf.set("/s", number, if_version=number)
        else:
            await wf.state()
    except QuireError:
        pass


@settings(max_examples=80, deadline=None)
@given(st.lists(STEP, min_size=8, max_size=25))
def test_both_answer_what_the_log_says(steps):
    async def run():
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/s.db"
            async with quire.open(path) as one, quire.open(path) as other:
                await one.create("w", {"n": 0, "log": []})
                for which, what, number in steps:
                    await step((one, other)[which], what, number)
                states = [await each.workflow("w").state() for each in (one, other)]
                async with quire.open(path) as fresh:
                    assert states == [await fresh.workflow("w").state()] * 2
                    assert (await fresh.verify()).ok

    asyncio.run(run())


async def test_a_write_that_changed_nothing_does_not_hide_what_another_process_wrote(tmp_path):
    path = str(tmp_path / "s.db")
    async with quire.open(path) as one, quire.open(path) as other:
        wf = await one.create("w", {"n": 1})
        await wf.set("/n", 1)
        await other.workflow("w").set("/m", 1)
        assert await wf.state() == {"n": 1, "m": 1}
        await wf.set("/k", 1)
        assert await wf.state() == {"n": 1, "m": 1, "k": 1} == await other.workflow("w").state()


async def test_of_many_who_write_and_read_at_once_each_reads_what_was_acknowledged_before(tmp_path):
    path = str(tmp_path / "s.db")
    async with quire.open(path) as one, quire.open(path) as other:
        await one.create("w", {"n": 0})
        acknowledged = 0

        async def write(store):
            nonlocal acknowledged
            for _ in range(60):
                version = await store.workflow("w").inc("/n")
                acknowledged = max(acknowledged, version.number)

        async def read(store):
            for _ in range(200):
                before = acknowledged
                assert (await store.workflow("w").version()).number >= before
                await asyncio.sleep(0)

        await asyncio.gather(write(one), write(other), read(one), read(other))
        assert await one.workflow("w").get("/n") == 120
