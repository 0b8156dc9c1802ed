"""`quire lua`, called in an empty folder."""

import json

import pytest
from click.testing import CliRunner

from quire.cli.main import main


@pytest.fixture
def quire(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QUIRE_STORE", raising=False)

    def call(*args, input=None, code=0):
        done = CliRunner().invoke(main, list(args), input=input)
        assert done.exit_code == code, (done.output, done.stderr, done.exception)
        assert "Traceback" not in done.output
        return done

    return call


def test_a_script_from_a_file_changes_the_workflow(quire, tmp_path):
    quire("set", "w", "/n", "1")
    (tmp_path / "add.lua").write_text('print("adding", input.by) return workflow.increment("n", input.by)')
    done = quire("lua", "add.lua", "--workflow", "w", "--input", '{"by": 4}', "--as", "ann", "-m", "why not")
    assert done.stdout == "adding\t4\n5\n"
    assert done.stderr.startswith("w@2 ")
    assert json.loads(quire("show", "w").stdout) == {"n": 5}
    newest = json.loads(quire("log", "w", "--json").stdout)["versions"][0]
    assert (newest["author"], newest["message"], newest["kind"]) == ("ann", "why not", "script")


def test_a_script_from_stdin_keeps_shared_state_in_a_new_store(quire):
    assert quire("lua", input='return State.increment("visits")').stdout == "1\n"
    assert quire("lua", input='State.increment("visits")').stdout == ""
    assert quire("show", "scope-global", "/values/visits/value").stdout.strip() == "2"


def test_json_is_one_document(quire):
    found = json.loads(quire("lua", "--json", input='print("x") State.set("k", 1) return {}').stdout)
    assert (found["value"], found["output"], found["versions"][0]["workflow"]) == ({}, "x\n", "scope-global")


def test_step_state_is_the_steps_own(quire):
    quire("set", "w", "/n", "1")
    quire("lua", "-w", "w", "--step", "draft", input='step.state.set("progress", 0.5)')
    assert json.loads(quire("show", "w").stdout) == {"n": 1}
    assert quire("lua", "-w", "w", "--step", "draft", input='return step.state.get("progress")').stdout == "0.5\n"
    assert quire("lua", "-w", "w", "--step", "other", input='return step.state.get("progress")').stdout == ""


@pytest.mark.parametrize(
    ("args", "script", "code", "said"),
    [
        (["lua"], "local x\nerror('no')", 2, "stdin:2: no"),
        (["lua"], "x x", 2, "stdin:1: syntax error"),
        (["lua", "-w", "absent"], "return 1", 3, "absent"),
        (["lua", "-w", "w"], "workflow.set('n', print)", 2, "a function is not JSON"),
        (["lua", "--step", "s"], "return 1", 2, "part of a workflow"),
        (["lua", "--limit", "calls=3"], "while true do State.get('x') end", 2, "limit calls"),
        (["lua", "--limit", "nonsense=3"], "return 1", 2, "NAME=N"),
        (["lua", "--limit", "calls=-3"], "return 1", 2, "NAME=N"),
        (["lua", "absent.lua"], "", 3, "no such file"),
        (["lua"], b"\xff", 2, "UTF-8"),
        (["lua", "--input", "[1"], "return 1", 2, "not JSON"),
    ],
)
def test_what_is_wrong_is_one_sentence(quire, args, script, code, said):
    quire("set", "w", "/n", "1")
    assert said in quire(*args, input=script, code=code).stderr
    assert json.loads(quire("show", "w").stdout) == {"n": 1}
    assert quire("show", "scope-global", code=3)
