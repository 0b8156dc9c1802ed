"""The command line: what it prints, its exit codes, and that nobody ever sees a traceback."""

import json
import os
import signal
import subprocess
import sys

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
        return done.stdout

    return call


def test_a_day_with_it(quire, tmp_path):
    assert "0 workflows" in quire("init")
    assert quire("set", "w", "/topic", "tides", "--as", "ann", "-m", "begin").startswith("w@2 ")
    quire("set", "w", "/list", "[1, 2]", "--as", "bob")
    assert json.loads(quire("show", "w")) == {"topic": "tides", "list": [1, 2]}
    assert quire("show", "w@2", "/topic") == '"tides"\n'
    assert quire("show", "w@~1").count("list") == 0
    assert "ann" in quire("log", "w") and "begin" in quire("log", "w", "--oneline")
    assert [v["version"] for v in json.loads(quire("log", "w", "--json"))["versions"]] == [3, 2, 1]
    assert [v["version"] for v in json.loads(quire("log", "w@2", "--by", "ann", "--json"))["versions"]] == [2, 1]
    assert "/list" in quire("diff", "w@2", "w")
    quire("diff", "w@2", "--exit-code", code=1)
    quire("diff", "w", "w", "--exit-code")
    assert json.loads(quire("diff", "w@2", "--patch")) == [{"op": "add", "path": "/list", "value": [1, 2]}]
    assert "bob" in quire("blame", "w", "/list")
    quire("patch", "w", input='[{"op": "add", "path": "/list/-", "value": 3}]')
    quire("patch", "w", input='{"topic": null}')
    assert json.loads(quire("show", "w")) == {"list": [1, 2, 3]}
    quire("rm", "w", "/list/0")
    assert "w@good" in quire("checkpoint", "w@3", "good", "--tag", "t")
    assert "good" in quire("log", "w", "--checkpoints")
    quire("restore", "w@good")
    assert json.loads(quire("show", "w")) == {"topic": "tides", "list": [1, 2]}
    quire("fork", "w@2", "f")
    assert "f " in quire("ls") and [v["workflow"] for v in json.loads(quire("ls", "--json"))["workflows"]] == ["f", "w"]
    assert len(quire("watch", "w", "--since", "0", "--count", "3", "--jsonl").splitlines()) == 3
    assert "sound" in quire("verify") and json.loads(quire("verify", "--json"))["ok"]
    assert json.loads(quire("stats", "--json"))["workflows"] == 2
    quire("export", "w", "w.jsonl")
    assert (tmp_path / "w.jsonl").stat().st_mode & 0o777 == 0o600
    quire("import", "w.jsonl", "--name", "copy")
    quire("diff", "w", "copy", "--exit-code")
    assert quire("export", "f").count("\n") >= 2
    quire("rm", "f", "")
    assert "f" not in json.loads(quire("ls", "--json"))["workflows"]
    assert "complete" in quire("completion", "bash")


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["show", "ghost"], 3, "Workflow not found"),
        (["show", "w@99"], 3, "1 to 2"),
        (["show", "w@nope"], 3, "Checkpoint not found"),
        (["show", "w", "/no"], 3, "nothing at /no"),
        (["show", "../x"], 2, "workflow id"),
        (["show", "%00"], 2, "workflow id"),
        (["set", "w", "topic", "x"], 2, "must start with '/'"),
        (["set", "w", "/a/b/c", "1"], 2, "/a"),
        (["set", "w", "/n", "2", "--if-version", "1"], 4, "version 2"),
        (["set", "w", "/" + "k" * 2000, "2"], 2, "512"),
        (["patch", "w", "none.json"], 3, "none.json"),
        (["rm", "w", "/nope"], 2, "nothing to delete"),
        (["restore", "w"], 2, "REVISION"),
        (["checkpoint", "w", "5"], 2, "reads like"),
        (["import", "none"], 3, "none"),
        (["spam"], 2, "No such command"),
        (["--store", "postgresql://u:pw@h/d", "ls"], 6, "no postgresql backend"),
        (["--store", "no/such/folder/s.db", "init"], 6, "folder"),
        (["--store", "mistyped.db", "ls"], 3, "there is no store at mistyped.db"),
        (["--namespace", "a/b", "ls"], 2, "namespace"),
    ],
)
def test_mistakes_get_a_sentence_and_a_code(quire, args, code, said):
    quire("set", "w", "/n", "1")
    done = CliRunner().invoke(main, args)
    assert done.exit_code == code, done.output
    assert said in done.output
    assert "Traceback" not in done.output
    assert json.loads(quire("show", "w")) == {"n": 1}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "NaN",
        "[" * 5000,
        '[{"op": "spam"}]',
        "5",
        '"x"',
        "null",
        "[1]",
        "\ud800".encode("utf-8", "surrogatepass"),
        b"\xff",
    ],
)
def test_hostile_patches_change_nothing(quire, text):
    quire("set", "w", "/n", "1")
    done = CliRunner().invoke(main, ["patch", "w"], input=text)
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output
    assert json.loads(quire("show", "w")) == {"n": 1}


def test_files_that_are_not_ours(quire, tmp_path):
    (tmp_path / "text.db").write_text("hello, this is certainly not a database of any kind whatsoever.....")
    quire("--store", "text.db", "ls", code=5)
    quire("--store", ".", "ls", code=2)
    for damaged in (
        "",
        "{}",
        '{"quire":"export","schema":99}',
        '{"quire":"export","schema":1,"workflow":"z"}\n{"version":1,"changes":5}',
        "[1]\n[2]",
    ):
        (tmp_path / "x.jsonl").write_text(damaged)
        quire("import", "x.jsonl", code=2)


def test_an_editor_writes_what_was_changed(quire, monkeypatch):
    quire("set", "w", "/n", "1")
    monkeypatch.setenv("EDITOR", "sed -i s/1/2/")
    assert quire("edit", "w").startswith("w@3")
    assert json.loads(quire("show", "w")) == {"n": 2}
    monkeypatch.setenv("EDITOR", "sed -i s/2/}/")
    quire("edit", "w", code=2)
    monkeypatch.setenv("EDITOR", "false")
    quire("edit", "w", code=2)


def test_an_interrupt_is_quiet(quire, tmp_path):
    for i in range(3):
        quire("set", "w", "/n", str(i))
    run = [sys.executable, "-m", "quire.cli.main"]
    watcher = subprocess.Popen(
        [*run, "watch", "w", "--since", "0"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert watcher.stdout.readline().startswith("w@1")
    watcher.send_signal(signal.SIGINT)
    _, error = watcher.communicate(timeout=20)
    assert watcher.returncode == 130
    assert "Traceback" not in error


def test_the_demo_loses_and_repeats_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "quire.cli.main", "demo", "--fast", "--modules", "60"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "steps that ended twice:             0 of 27" in done.stdout
    assert (tmp_path / "demo-out" / "report.md").exists()
