"""Values cross between JSON and Lua and back without a change: what can be said in both is said in both."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quire import sync
from quire.core.values import same
from quire.errors import ScriptError
from quire.scripting.sync import run_script
from quire.testing.strategies import keys, texts

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from(
        [0, 1, 0.0, -0.0, 1.0, 1e16, 1e15, 5e-324, 1.7976931348623157e308, 2**53 + 1, 2.0**63, -(2**63), 2**63 - 1]
    ),
    st.floats(allow_nan=False, allow_infinity=False),
    texts,
    st.text(st.characters(codec="utf-8"), max_size=20),
    st.text(st.characters(max_codepoint=0x9F), max_size=20),
    st.text('"\\/bfnrtu\n\r\t\b\f\0\x1f\x7f', max_size=12),
)
names = st.one_of(keys, st.text('"\\\n\0[]{}:,', max_size=6))
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(names, inner, max_size=4)),
    max_leaves=20,
)
many = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def store():
    with sync.open("memory:") as opened:
        yield opened


@many
@given(st.lists(values, max_size=8))
def test_json_read_and_written_back_is_the_same(store, given_values):
    done = run_script(store, "State.set('out', input) return State.get('out')", input=given_values)
    assert same(done.value, given_values)
    assert same(sync.WorkflowStateManager(store).global_().get("out"), given_values)


@many
@given(st.lists(values, max_size=6))
def test_a_table_built_item_by_item_is_the_same(store, given_values):
    source = """
    local function copied(value)
        if type(value) ~= "table" or value == null then return value end
        local result = {}
        for key, item in pairs(value) do result[key] = copied(item) end
        return getmetatable(value) == "list" and list(result) or result
    end
    return copied(input)
    """
    assert same(run_script(store, source, input=given_values).value, given_values)


def test_what_a_script_writes_down_is_what_is_stored(store):
    source = r"""
    return list{ nil == null, true, 1, 1.0, -0.0, 1e300, 2^53, 7 // 2, 7 / 2, math.maxinteger, math.mininteger, "\u{1F600}\0\"",
        {}, list{}, { 1, 2 }, { a = { b = {} } }, { ["1"] = 1 }, { null, null }, null }
    """
    expected = [False, True, 1, 1.0, -0.0, 1e300, 2.0**53, 3, 3.5, 2**63 - 1, -(2**63), "\U0001f600\0\"",
        {}, [], [1, 2], {"a": {"b": {}}}, {"1": 1}, [None, None], None]  # fmt: skip
    found = run_script(store, source).value
    assert same(found, expected), found
    assert math.copysign(1, found[4]) == -1


def test_a_value_at_the_limit_of_depth_passes_and_one_deeper_does_not(store):
    deep = json.loads("[" * 63 + "]" * 63)
    store.create("deep", {"v": deep})
    source = "local v = workflow.get('v') workflow.set('w', v) return 1"
    assert run_script(store, source, workflow="deep").value == 1
    assert store.workflow("deep").get("/w") == deep
    with pytest.raises(ScriptError, match="nested deeper"):
        run_script(store, "workflow.set('w', { workflow.get('v') })", workflow="deep")


def children():
    """Every child of this process, those included that ended and were not waited for."""
    return {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


def test_the_script_s_process_is_not_ours(store):
    others = children()  # servers that other tests share
    assert run_script(store, "return 1").value == 1
    assert children() == others  # every one was waited for
