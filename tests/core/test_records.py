"""Chains, the format as released, keyframes, and what a fold says of a damaged log."""

import json
from pathlib import Path
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.core import keyframes, record
from quire.core.descent import Descent
from quire.core.fold import fold
from quire.core.path import get
from quire.core.values import same
from quire.errors import CorruptRecord
from quire.model import DELETED, GENESIS, Head, Set, restored_in
from quire.testing import strategies as qs


def chained(changes_of_versions):
    records, parent = [], GENESIS
    for version, changes in enumerate(changes_of_versions, 1):
        records.append(
            record.seal("workflows/w", version, 1000 + version, "a", "m", "change", record.encode(changes), parent)
        )
        parent = records[-1].chain
    return records


def test_a_chain_notices_any_alteration():
    records = chained([[Set((), {"a": 1})], [Set(("a",), 2)], [Set(("a",), 3)]])
    assert record.check_all(records, 0, GENESIS) == records[-1].chain
    for field, value in [
        ("author", "x"),
        ("message", "x"),
        ("kind", "x"),
        ("time", 1),
        ("body", b"[]"),
        ("stream", "workflows/v"),
        ("chain", bytes(32)),
    ]:
        forged = [records[0], msgspec.structs.replace(records[1], **{field: value}), records[2]]
        with pytest.raises(CorruptRecord):
            record.check_all(forged, 0, GENESIS)
    with pytest.raises(CorruptRecord, match="missing"):
        record.check_all([records[0], records[2]], 0, GENESIS)


def test_the_format_is_the_one_released():
    golden = json.loads((Path(__file__).parent / "golden.json").read_text())
    for entry in golden["records"]:
        body = entry["body"].encode()
        head = record.header(*entry["header"])
        assert head.decode() == entry["header_bytes"]
        assert record.link(head, body, bytes.fromhex(entry["parent"])).hex() == entry["chain"]
        sealed = record.seal(*entry["header"], body, bytes.fromhex(entry["parent"]))
        assert record.encode(record.decode(sealed), restored=restored_in(body)) == body
        if "redacted" in entry:
            left = msgspec.structs.replace(sealed, body=entry["redacted"].encode())
            record.check(left, sealed.version, bytes.fromhex(entry["parent"]))
            assert record.redacted(body, record.decode(left)) == left.body
            assert restored_in(left.body) == restored_in(body) is not None
    assert record.state_hash(golden["state"]) == golden["state_hash"]


def test_a_restore_says_which_version_it_brought_back_and_no_reader_of_changes_sees_it():
    changes = [Set(("a",), 2)]
    body = record.encode(changes, restored=17)
    assert (body, restored_in(body)) == (b'[["restored",17],["set",["a"],2]]', 17)
    sealed = record.seal("workflows/w", 18, 1, "a", "m", "anything", body, GENESIS)
    assert record.decode(sealed) == changes
    assert record.decode(msgspec.structs.replace(sealed, body=record.encode([], restored=17))) == []
    with pytest.raises(CorruptRecord):  # the chain covers it
        record.check(msgspec.structs.replace(sealed, body=record.encode(changes, restored=16)), 18, GENESIS)


def test_what_redaction_leaves_of_a_restore_goes_on_saying_so():
    body = record.encode([Set(("a",), "secret")], restored=17)
    once = record.redacted(body, [Set(("a",), "[REDACTED]")])
    again = record.redacted(once, [Set(("a",), "-")])
    for left in (once, again):
        assert msgspec.json.decode(left)[:2] == [["redacted", record.digest(body).hex()], ["restored", 17]]
        assert (restored_in(left), record.digest(left)) == (17, record.digest(body))
    assert restored_in(record.redacted(record.encode([Set((), {})]), [Set((), {})])) is None


@given(st.lists(st.tuples(st.sampled_from(["go on", "restore", "restore", "end"]), st.integers(0, 30)), max_size=30))
def test_a_head_descends_from_what_a_walk_back_meets_and_from_nothing_else(steps):
    """Beside sets that are copied with every version, whatever of the log was followed and whatever is read later."""
    whole = [{1}]
    records = chained([[Set((), {})]])
    for what, number in steps:
        version = len(records) + 1
        back = 1 + number % (version - 1) if what == "restore" else None
        kind, body = DELETED if what == "end" else "change", record.encode([], restored=back)
        records.append(record.seal("workflows/w", version, 1, "a", "m", kind, body, GENESIS))
        line = whole[-1] if back is None else whole[back - 1]
        whole.append({version} if what == "end" else line | {version})
    for begin in {1, len(records) // 2 or 1, len(records)}:
        for page, most in ((1, 100), (3, 2), (100, 1)):
            descent = Descent("workflows/w", begin)
            with patch("quire.core.descent._TURNS_MAX", most):  # where there are more, the older half is forgotten
                for entry in records[begin:]:
                    descent.follow([entry])
            assert len(descent._turns) <= most or descent.known == begin
            for version in range(len(records) + 1, 0, -1):
                while (found := descent.includes(version)) is None:
                    after, upto = max(version, descent.known - page), descent.known
                    descent.learn([], after, upto - 1)  # of another reader, who was late: it is ignored
                    descent.learn(records[after:upto], after, upto)
                    assert descent.known == after
                assert found == (version in whole[-1]), (version, whole)


@given(qs.states)
def test_a_keyframe_gives_its_state_back_and_notices_damage(state):
    frame = keyframes.make(Head("workflows/w", 7, bytes(32)), state)
    assert same(keyframes.state_of(frame), state)
    broken = bytearray(frame.body)
    broken[len(broken) // 2] ^= 1
    with pytest.raises(CorruptRecord):
        keyframes.state_of(msgspec.structs.replace(frame, body=bytes(broken)))


@given(st.lists(st.integers(1, 10_000), unique=True, max_size=200).map(sorted))
def test_old_keyframes_thin_out_to_a_logarithm(versions):
    dropped = keyframes.surplus(versions)
    kept = [v for v in versions if v not in dropped]
    assert len(kept) <= 2 + 2 * 15
    assert kept[-2:] == versions[-2:]


def test_a_fold_of_a_damaged_log_says_where():
    records = chained([[Set((), {})], [Set(("a", "b"), 1)]])
    with pytest.raises(CorruptRecord, match="v2"):
        fold({}, records)
    assert get({"a": [1]}, ("a", "0")) == 1
