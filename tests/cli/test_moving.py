"""`export` and `import`: whole or not at all."""

import json

import pytest


def lines(*entries):
    head = {"quire": "export", "schema": 1, "workflow": "z"}
    return "\n".join(json.dumps(e) for e in (head, *entries))


def version(number, *changes):
    return {"version": number, "author": "a", "message": "m", "kind": "change", "changes": list(changes)}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not an export"),
        ("{}", "not an export"),
        ("[1]\n[2]", "not an export"),
        ('{"quire":"export","schema":99}', "upgrade"),
        (lines(), "cut off"),
        (lines({"version": 1, "changes": 5}), "line 2"),
        (lines(version(1, ["set", [], {}]), {"version": 2}), "line 3"),
        (lines(version(1, ["set", [], {}]), version(2, ["del", ["gone"]])), "line 3"),
        (lines(version(1, ["set", [], {}]), version(3, ["set", ["a"], 1])), "version 3 where 2 belongs"),
        (lines(version(1, ["set", [], {}]), {"checkpoint": {"name": 5}}), "line 3"),
        (lines(version(1, ["set", [], {}])) + '\n{"version": ', "line 3"),
    ],
)
def test_a_damaged_export_makes_no_workflow(quire, tmp_path, text, why):
    quire("init")
    (tmp_path / "x.jsonl").write_text(text)
    from click.testing import CliRunner

    from quire.cli.main import main

    done = CliRunner().invoke(main, ["import", "x.jsonl"])
    assert done.exit_code == 2 and why in done.output, done.output
    assert json.loads(quire("ls", "--json"))["workflows"] == []


def test_an_export_replaces_nothing_unasked(quire, tmp_path):
    quire("set", "w", "/n", "1")
    (tmp_path / "w.jsonl").write_text("precious")
    quire("export", "w", "w.jsonl", code=4)
    assert (tmp_path / "w.jsonl").read_text() == "precious"
    quire("export", "w", "w.jsonl", "--force")
    quire("import", "w.jsonl", "--name", "copy")
    quire("diff", "w", "copy", "--exit-code")
    assert sorted(p.name for p in tmp_path.iterdir() if "export" in p.name) == []


def test_a_failed_export_leaves_what_was_there(quire, tmp_path):
    quire("init")
    (tmp_path / "w.jsonl").write_text("precious")
    quire("export", "ghost", "w.jsonl", "--force", code=3)
    assert (tmp_path / "w.jsonl").read_text() == "precious"


def test_an_import_comes_through_a_pipe(quire):
    quire("set", "w", "/n", "1")
    quire("import", "--name", "copy", input=quire("export", "w"))
    quire("import", "--name", "copy", input=quire("export", "w"), code=4)
    quire("diff", "w", "copy", "--exit-code")
