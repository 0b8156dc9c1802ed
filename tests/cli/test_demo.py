"""The demo, as a person or a script runs it: it proves what it says, and leaves nothing behind."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import quire
from quire.demo.audience import proof, steps_of
from quire.demo.survey import RUN, STAGES, STEPS

DEMO = [sys.executable, "-m", "quire", "demo", "--modules", "80"]


def processes_in(folder):
    """Return ids of processes of the team that work in a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and b"--child" in (entry / "cmdline").read_bytes():
                found += [entry.name] if (entry / "cwd").resolve() == Path(folder) else []
        except OSError:  # it ended meanwhile
            continue
    return found


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    result = subprocess.run(DEMO, cwd=folder, capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder, result


def test_it_says_what_the_log_says(done):
    folder, result = done
    assert result.stderr == ""
    said = dict(re.findall(r"^   (\S.*?)  +(\S.*)$", result.stdout, re.MULTILINE))
    assert said["done more than once"] == f"0 of {STEPS} steps"
    assert re.fullmatch(r"0 of \d+ steps", said["lost by the kill"])
    assert said[f"log of {said_versions(result)} versions"] == "chain and folds sound"
    with quire.sync.open(str(folder / "demo-out" / "survey.db")) as store:
        wf = store.workflow(RUN)
        killed = wf.version("killed").number
        steps = [step for v in wf.history() for step in steps_of(v)]
        before = [s for s in steps if s.version <= killed]
        assert len(steps) == STEPS == len({s.key for s in steps})
        assert {s.epoch for s in before} == {1} and len({s.pid for s in before}) == 1
        assert {s.epoch for s in steps if s.version > killed} == {2}
        cut_off = [a for a, is_ in wf.get("/agents", version="killed").items() if is_["status"] == "reading"]
        assert cut_off and all(wf.get(f"/agents/{a}/status") == "done" for a in cut_off)
        assert not {f"read/{a}" for a in cut_off} & {s.key for s in before}


def said_versions(result):
    return re.search(r"log of (\d+) versions", result.stdout)[1]


def test_it_shows_every_stage_and_commands_that_answer(done):
    _, result = done
    for stage, size in STAGES.items():
        assert re.search(rf"{stage} +{size}/{size} ", result.stdout), result.stdout
    for command in ("quire log", "quire diff", "quire blame"):
        assert re.search(rf"\$ {command}.*\n\S+", result.stdout)
    assert '"reading" -> "done"' in result.stdout


def test_the_report_stands_alone(done):
    folder, _ = done
    out = folder / "demo-out"
    text = (out / "report.md").read_text()
    charts = re.findall(r"!\[.*\]\((.*)\)", text)
    assert charts and all((out / c).read_text().startswith("<svg") for c in charts)
    assert "80" in text and "nan" not in text.lower().split()


def test_it_runs_again_in_the_same_folder_and_spares_what_is_not_its_own(done):
    folder, _ = done
    (folder / "demo-out" / "mine.txt").write_text("precious")
    again = subprocess.run(DEMO, cwd=folder, capture_output=True, text=True, timeout=100, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert (folder / "demo-out" / "mine.txt").read_text() == "precious"
    with quire.sync.open(str(folder / "demo-out" / "survey.db")) as store:
        store.create("mine", {"n": 1})
    refused = subprocess.run(DEMO, cwd=folder, capture_output=True, text=True, timeout=100, check=False)
    assert refused.returncode == 2 and "not the demo's" in refused.stderr
    with quire.sync.open(str(folder / "demo-out" / "survey.db")) as store:
        assert store.workflow("mine").state() == {"n": 1}


@pytest.mark.parametrize("stream", [">&-", ">&- 2>&-", "2>&-", "| head -1"])
def test_it_works_for_nobody_watching(tmp_path, stream):
    line = " ".join(DEMO) + f" {stream}"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert processes_in(tmp_path) == []


def test_an_interrupt_leaves_no_process(tmp_path):
    demo = subprocess.Popen(
        DEMO,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    for line in demo.stdout:
        if "collect" in line:
            break
    demo.send_signal(signal.SIGINT)
    _, error = demo.communicate(timeout=60)
    assert demo.returncode == 130 and error == ""
    assert processes_in(tmp_path) == []


def test_two_in_one_folder_do_not_meet(tmp_path):
    first = subprocess.Popen(DEMO, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert first.stdout.readline()
    second = subprocess.run(DEMO, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert second.returncode == 6 and "another demo runs" in second.stderr
    _, error = first.communicate(timeout=100)
    assert first.returncode == 0, error


def test_an_unfit_folder_is_said(tmp_path):
    (tmp_path / "file").write_text("x")
    for folder in ("file", "file/below", "/proc/nowhere"):
        done = subprocess.run([*DEMO, "--folder", folder], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode in (2, 6) and "Traceback" not in done.stderr, done.stderr
    assert os.listdir(tmp_path) == ["file"]


# the proof must be able to fail


@pytest.fixture
def history(tmp_path):
    """Return a function that makes a log of (key, pid, epoch) steps and reads it back."""

    def make(steps):
        with quire.sync.open("memory:") as store:
            wf = store.create(RUN, {"_run": {"steps": {}}})
            for i, (key, pid, epoch) in enumerate(steps):
                entry = {"status": "done", "epoch": epoch, "result": {"pid": pid, "i": i}}
                wf.set(["_run", "steps", key], entry, kind="step")
            return wf.history()

    return make


KEYS = [f"k{i}" for i in range(STEPS)]
GOOD = [(key, 11, 1) if i < 10 else (key, 22, 2) for i, key in enumerate(KEYS)]
KILLED = 11
"""The version of the tenth step; version 1 is the beginning."""


def test_a_sound_log_is_sound(history):
    assert proof(history(GOOD), KILLED, (11, 22), KEYS).holds


@pytest.mark.parametrize(
    ("steps", "kept"),
    [
        ([*GOOD, (KEYS[3], 22, 2)], KEYS),  # done again by the second process
        ([*GOOD[:10], (KEYS[0], 11, 1), *GOOD[10:]], KEYS),  # done again
        (GOOD[:-1], KEYS[:-1]),  # never done
        (GOOD, KEYS[1:]),  # done, but not in the state any more
        ([*GOOD[:-1], (KEYS[-1], 11, 1)], KEYS),  # the dead process went on
        ([*GOOD[:-1], (KEYS[-1], 33, 3)], KEYS),  # a third one joined in
    ],
)
def test_a_log_with_a_fault_is_not(history, steps, kept):
    assert not proof(history(steps), KILLED, (11, 22), kept).holds


def test_json_of_the_store_is_open_to_others(done):
    folder, _ = done
    command = [sys.executable, "-m", "quire", "-s", "demo-out/survey.db", "show", RUN, "/summary/sizes"]
    shown = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert json.loads(shown.stdout)["modules"] == 80
