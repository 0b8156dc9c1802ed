"""`edit`: whatever goes wrong, what the user wrote is there to be picked up."""

import json
import os
import re
import subprocess
import sys

import pytest
from click.testing import CliRunner

from quire.cli.main import main


@pytest.fixture
def edit(quire, tmp_path, monkeypatch):
    """Run `quire edit w` with a shell script for an editor; return what was said and which files stayed."""
    quire("set", "w", "/n", "1")
    monkeypatch.delenv("VISUAL", raising=False)
    drafts = tmp_path / "drafts"
    drafts.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(drafts))

    def call(script, *args, code=0):
        editor = tmp_path / "editor"
        editor.write_text(f"#!/bin/sh\n{script}\n")
        editor.chmod(0o755)
        monkeypatch.setenv("EDITOR", str(editor))
        done = CliRunner().invoke(main, ["edit", "w", *args])
        assert done.exit_code == code, (done.output, done.exception)
        assert "Traceback" not in done.output
        return done.output, list(drafts.iterdir())

    return call


def test_what_was_changed_is_one_version(quire, edit):
    said, left = edit('sed -i s/1/2/ "$1"')
    assert said.startswith("w@2") and left == []
    assert json.loads(quire("show", "w")) == {"n": 2}


def test_nothing_changed_is_nothing_written(quire, edit):
    said, left = edit("true")
    assert "nothing changed" in said and left == []
    assert len(json.loads(quire("log", "w", "--json"))["versions"]) == 1


@pytest.mark.parametrize(
    ("script", "code", "why"),
    [
        ("printf '{\\n  \"n\": oops' > $1", 2, "line 2, column 8"),
        ("echo '{\"n\": NaN}' > $1", 2, "not JSON"),
        ("echo '[1]' > $1", 2, "not an object"),
        ("echo '{\"n\": 3}' > $1; exit 1", 2, "ended with code 1"),
        ("echo '{\"n\": 3}' > $1; kill -INT $$", 2, "ended with code -2"),
        ("echo '{\"n\": 3}' > $1; rm quire.db*", 3, "no store"),
        ('echo \'{"n": 3}\' > $1; "$PYTHON" -m quire set w /n 9 >&2', 4, "version 2, not 1"),
    ],
)
def test_what_could_not_be_stored_is_kept(edit, script, code, why, monkeypatch):
    monkeypatch.setenv("PYTHON", sys.executable)
    more = ["--if-version", "1"] if code == 4 else []
    said, left = edit(script, *more, code=code)
    assert why in said, said
    assert len(left) == 1 and str(left[0]) in said
    assert left[0].read_text().strip() and left[0].stat().st_mode & 0o777 == 0o600


def test_kept_text_can_be_gone_on_with(quire, edit):
    said, left = edit('sed -i "s/1/2,/" "$1"', code=2)
    quire("set", "w", "/other", "5")  # meanwhile
    options = re.search(r"quire edit w (.*)", said)[1].split()
    assert options == ["--base", "1", "--text", str(left[0])]
    said, now = edit('sed -i "s/2,/2/" "$1"', *options)
    assert said.startswith("w@3")
    assert json.loads(quire("show", "w")) == {"n": 2, "other": 5}
    assert now == left  # what the user was told about is the user's to remove


def test_kept_text_without_its_base_undoes_nothing(quire, edit, tmp_path):
    quire("set", "w", "/n", "1")
    kept = tmp_path / "kept.json"
    kept.write_text(quire("show", "w"))
    quire("set", "w", "/n", "2")
    said, _ = edit('echo >> "$1"', "--text", str(kept), code=2)
    assert "--base" in said
    assert json.loads(quire("show", "w")) == {"n": 2}


@pytest.mark.parametrize("script", ["exit 1", "rm $1", "rm $1; exit 1", ": > $1; exit 1"])
def test_no_text_leaves_no_file(quire, edit, script):
    said, left = edit(script, code=2)
    assert "Nothing was written" in said and left == []
    assert json.loads(quire("show", "w")) == {"n": 1}


@pytest.mark.parametrize(
    ("editor", "why"), [("", "set EDITOR"), ("no-such-editor", "no such program"), ("'", "EDITOR")]
)
def test_without_an_editor_it_says_so(quire, monkeypatch, editor, why):
    quire("set", "w", "/n", "1")
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", editor)
    done = CliRunner().invoke(main, ["edit", "w"])
    assert done.exit_code == 2 and why in done.output


def test_ctrl_c_is_the_editors_while_it_runs(quire, tmp_path):
    quire("set", "w", "/n", "1")
    editor = tmp_path / "editor"
    editor.write_text("#!/bin/sh\ntrap '' INT\nkill -INT $PPID\nsed -i s/1/2/ \"$1\"\n")
    editor.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-m", "quire", "edit", "w"],
        cwd=tmp_path,
        env={**os.environ, "EDITOR": str(editor), "VISUAL": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(quire("show", "w")) == {"n": 2}
