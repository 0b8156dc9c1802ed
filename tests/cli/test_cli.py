"""The command line: what it prints, its exit codes, and that nobody ever sees a traceback."""

import json
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

import quire as quire_package
from quire.cli.main import SECTIONS, main


def test_a_day_with_it(quire, tmp_path):
    assert "0 workflows" in quire("init")
    assert quire("set", "w", "/topic", "tides", "--as", "ann", "-m", "begin").startswith("w@1 ")
    quire("set", "w", "/list", "[1, 2]", "--as", "bob")
    assert json.loads(quire("show", "w")) == {"topic": "tides", "list": [1, 2]}
    quire("set", "w", "/n", "-5")
    quire("rm", "w", "/n")
    assert quire("show", "w@2", "/topic") == '"tides"\n'
    assert quire("show", "w@~3").count("list") == 0
    assert "ann" in quire("log", "w") and "begin" in quire("log", "w", "--oneline")
    assert [v["version"] for v in json.loads(quire("log", "w", "--json"))["versions"]] == [4, 3, 2, 1]
    assert [v["version"] for v in json.loads(quire("log", "w@2", "--by", "ann", "--json"))["versions"]] == [1]
    assert [v["version"] for v in json.loads(quire("log", "w@2", "--json"))["versions"]] == [2, 1]
    assert len(json.loads(quire("log", "w@~0", "-l", "3", "--json"))["versions"]) == 3
    assert quire("diff", "w@1", "w") == "+ /list = [1,2]\n"
    quire("diff", "w@1", "--exit-code", code=1)
    quire("diff", "w", "w", "--exit-code")
    assert json.loads(quire("diff", "w@1", "--patch")) == [{"op": "add", "path": "/list", "value": [1, 2]}]
    assert "bob" in quire("blame", "w", "/list")
    quire("patch", "w", input='[{"op": "add", "path": "/list/-", "value": 3}]')
    quire("patch", "w", input='{"topic": null}')
    assert json.loads(quire("show", "w")) == {"list": [1, 2, 3]}
    quire("rm", "w", "/list/0")
    assert "w@good" in quire("checkpoint", "w@2", "good", "--tag", "t")
    assert "good" in quire("log", "w", "--checkpoints")
    quire("restore", "w@good")
    assert json.loads(quire("show", "w")) == {"topic": "tides", "list": [1, 2]}
    quire("fork", "w@1", "f")
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
        (["show", "w@99"], 3, "1 to 1"),
        (["show", "w@"], 2, "after @"),
        (["blame", "w", "/no"], 3, "nothing at /no"),
        (["verify", "ghost"], 3, "Workflow not found"),
        (["log", "w", "-l", "0"], 2, "x>=1"),
        (["watch", "w", "--count", "0"], 2, "x>=1"),
        (["watch", "w", "--since", "-1"], 2, "x>=0"),
        (["set", "w", "/n", "NaN"], 2, "--text"),
        (["set", "w", "/n", "-Infinity"], 2, "--text"),
        (["set", "w", "/n", "1e999"], 2, "--text"),
        (["set", "w", "/n", "[1, 2"], 2, "--text"),
        (["set", "w", "/n", '{"a"'], 2, "--text"),
        (["set", "new", "", "[1]"], 2, "object"),
        (["set", "new", "/a/b", "1"], 2, "no /a"),
        (["patch", "w", "."], 2, "directory"),
        (["import", "."], 2, "directory"),
        (["export", "w", "no/such/folder/x"], 3, "no such folder"),
        (["export", "w", "."], 2, "folder"),
        (["export", "w", "quire.db"], 2, "the store itself"),
        (["export", "w", "quire.db", "--force"], 2, "the store itself"),
        (["--store", "", "ls"], 2, "no name"),
        (["--store", "quire.db/x", "ls"], 2, "Not a directory"),
        (["lgo"], 2, "Did you mean"),
        (["show", "w@nope"], 3, "Checkpoint not found"),
        (["show", "w", "/no"], 3, "nothing at /no"),
        (["show", "../x"], 2, "workflow id"),
        (["show", "%00"], 2, "workflow id"),
        (["set", "w", "topic", "x"], 2, "must start with '/'"),
        (["set", "w", "/a/b/c", "1"], 2, "/a"),
        (["set", "w", "/n", "2", "--if-version", "5"], 4, "version 1"),
        (["set", "w", "/" + "k" * 2000, "2"], 2, "512"),
        (["patch", "w", "none.json"], 3, "none.json"),
        (["rm", "w", "/nope"], 2, "nothing to delete"),
        (["restore", "w"], 2, "REVISION"),
        (["checkpoint", "w", "5"], 2, "reads like"),
        (["import", "none"], 3, "none"),
        (["spam"], 2, "No such command"),
        (["--store", "postgresql://u:pw@h/d?schema=A", "ls"], 2, "schema='A'"),
        (["--store", "no/such/folder/s.db", "init"], 6, "folder"),
        (["--store", "mistyped.db", "ls"], 3, "there is no store at mistyped.db"),
        (["--store", "file:///mistyped", "ls"], 3, "there is no store at mistyped"),
        (["--store", "rocksdb:///mistyped", "log", "x"], 3, "there is no store at mistyped"),
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
    assert [v["workflow"] for v in json.loads(quire("ls", "--json"))["workflows"]] == ["w"]


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


def test_help_says_what_the_commands_say():
    for entries in SECTIONS.values():
        for name, (_, said) in entries.items():
            command = main.get_command(click.Context(main), name)
            assert command.name == name
            assert command.help.startswith(said.removesuffix("."))
            assert len(said) + 14 <= 80
            assert CliRunner().invoke(main, [name, "--help"]).exit_code == 0
    listed = CliRunner().invoke(main, ["--help"], terminal_width=80).output
    assert all(f"  {name} " in listed for name in main.list_commands(click.Context(main)))


def test_text_is_text_when_said_so(quire):
    quire("set", "w", "/n", "NaN", "--text")
    quire("set", "w", "/m", "5", "--text")
    quire("set", "w", "/v", "1.2.3")
    quire("set", "w", "/zip", "01234")
    assert json.loads(quire("show", "w")) == {"n": "NaN", "m": "5", "v": "1.2.3", "zip": "01234"}


def test_an_idempotency_key_writes_once_even_when_it_makes_the_workflow(quire):
    first = quire("set", "w", "/n", "1", "--idempotency-key", "k")
    quire("set", "w", "/n", "2")
    assert quire("set", "w", "/n", "1", "--idempotency-key", "k") == first
    assert json.loads(quire("show", "w")) == {"n": 2}


def test_a_restore_frees_the_idempotency_keys_of_what_it_takes_back(quire):
    quire("set", "w", "/n", "0")
    first = quire("set", "w", "/n", "1", "--idempotency-key", "k")
    quire("restore", "w@1")
    second = quire("set", "w", "/n", "1", "--idempotency-key", "k")
    assert first.split()[0] == "w@2" and second.split()[0] == "w@4"
    assert quire("set", "w", "/n", "1", "--idempotency-key", "k") == second
    assert "restored" not in json.dumps([v["changes"] for v in json.loads(quire("log", "w", "--json"))["versions"]])
    assert "restored version 1\n    ~ /n = 0" in quire("log", "w", "--patch")


def test_a_version_other_than_the_newest_is_not_ended(quire):
    quire("set", "w", "/n", "1")
    quire("rm", "w", "", "--if-version", "7", code=4)
    quire("rm", "w", "", "--if-version", "1")


def test_the_shell_completes_names_and_checkpoints(quire):
    quire("set", "tides", "/n", "1")
    quire("set", "trip", "/n", "1")
    quire("checkpoint", "trip", "packed")

    def offered(words):
        environ = {"_QUIRE_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
        done = CliRunner().invoke(main, [], env=environ, prog_name="quire")
        return [line.partition(",")[2] for line in done.output.splitlines() if line]

    assert offered("quire show t") == ["tides", "trip"]
    assert offered("quire show trip@p") == ["trip@packed"]
    assert offered("quire show ghost@p") == []
    assert offered("quire --store nowhere.db show t") == []
    assert "log" in offered("quire lo")


def test_the_package_runs_as_the_command():
    ran = subprocess.run([sys.executable, "-m", "quire", "--version"], capture_output=True, text=True, check=True)
    assert ran.stdout == f"quire, version {quire_package.__version__}\n"
