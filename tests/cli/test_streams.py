"""Pipes that close, streams that are closed or full, interrupts, terminals of every width: never a traceback."""

import fcntl
import json
import os
import pty
import shutil
import signal
import struct
import subprocess
import sys
import termios

import pytest

RUN = [sys.executable, "-m", "quire"]


@pytest.fixture
def run(quire, tmp_path):
    quire("set", "w", "/n", "0", "-m", "begin\nwith two lines \x1b[31mred")
    quire("set", "w", "/text", "日本語" * 60)
    for i in range(5):
        quire("set", "w", "/n", str(i))

    def call(line, **more):
        script = line.replace("quire", " ".join(RUN))
        done = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False, **more)
        assert "Traceback" not in done.stderr and "Exception" not in done.stderr, done.stderr
        return done

    return call


@pytest.mark.parametrize(
    "command", ["log w -p", "show w", "export w", "watch --since 0", "log w --json", "ls", "log --help"]
)
def test_a_reader_that_leaves_ends_it_quietly(run, command):
    done = run(f"{{ quire {command}; echo $? >&2; }} | true")
    assert done.stderr.strip() in ("0", "")  # the shell may be gone before it could say


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(("command", "code"), [("set w /n 7", 0), ("log w -p", 0), ("show ghost", 3), ("diff w@1", 0)])
def test_closed_streams_change_nothing(run, command, code, closed):
    assert run(f"quire {command} {closed}").returncode == code
    assert "sound" in run("quire verify").stdout


def test_a_full_disk_behind_stdout_is_said(run):
    done = run("quire log w > /dev/full")
    assert done.returncode == 6 and "No space left" in done.stderr


def test_an_interrupt_is_quiet(run, tmp_path):
    watcher = subprocess.Popen(
        [*RUN, "watch", "w", "--since", "0"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    assert watcher.stdout.readline().startswith("w@1")
    watcher.send_signal(signal.SIGINT)
    _, error = watcher.communicate(timeout=20)
    assert watcher.returncode == 130
    assert error == ""


def on_terminal(args, width, cwd, **environ):
    """Return what a terminal of so many columns is sent."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR")} | environ
    child = subprocess.Popen([*RUN, *args], cwd=cwd, stdin=slave, stdout=slave, stderr=slave, env=env)
    os.close(slave)
    seen = b""
    while True:
        try:
            data = os.read(master, 65536)
        except OSError:  # the child closed the other end
            break
        if not data:
            break
        seen += data
    os.close(master)
    child.wait()
    return seen.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("width", [20, 40, 80])
@pytest.mark.parametrize("args", [["ls"], ["log", "w", "--oneline"], ["blame", "w"], ["diff", "w@1"]])
def test_lines_fit_the_terminal(run, tmp_path, args, width):
    from quire.cli.lines import cells

    seen = on_terminal(args, width, tmp_path, NO_COLOR="1")
    assert seen and "\x1b" not in seen
    if args[0] in ("ls", "log") or width >= 40:
        assert max(map(cells, seen.splitlines())) <= width


def test_what_agents_wrote_cannot_steer_the_terminal(run, tmp_path):
    for args in (["log", "w"], ["log", "w", "--oneline"], ["watch", "w", "--since", "0", "--count", "1"]):
        seen = on_terminal(args, 80, tmp_path)
        assert "\x1b[31mred" not in seen
    assert "\\u001b[31mred" in on_terminal(["log", "w"], 80, tmp_path)
    assert "with two lines" in on_terminal(["log", "w"], 80, tmp_path)


def test_colour_is_for_terminals_that_want_it(run, tmp_path):
    assert "\x1b[" in on_terminal(["log", "w"], 80, tmp_path)
    assert "\x1b[" not in on_terminal(["log", "w"], 80, tmp_path, NO_COLOR="1")
    assert "\x1b[" not in run("quire log w").stdout


UNPRIVILEGED = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
"""Makes root obey the permissions of files, as everybody else does."""


@pytest.mark.skipif(bool(UNPRIVILEGED) and not shutil.which("setpriv"), reason="root may do everything")
def test_what_may_not_be_read_or_written_is_denied(quire, tmp_path):
    def call(*args):
        done = subprocess.run([*UNPRIVILEGED, *RUN, *args], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stderr

    quire("set", "w", "/n", "1")
    closed, secret, store = tmp_path / "closed", tmp_path / "secret", tmp_path / "quire.db"
    secret.write_text("{}")
    closed.mkdir()
    for file in (closed, secret):
        file.chmod(0)
    assert call("ls")[0] == 0
    for args in (["import", "secret"], ["patch", "w", "secret"], ["export", "w", "closed/x"]):
        assert call(*args)[0] == 7, args
    assert "closed/x.db: you may not look" in call("--store", "closed/x.db", "ls")[1]
    store.chmod(0o444)
    for args in (["ls"], ["set", "w", "/n", "2"], ["init"]):
        code, said = call(*args)
        assert code == 7 and "may not read and write" in said
    store.chmod(0o600)
    tmp_path.chmod(0o555)
    code, said = call("ls")
    tmp_path.chmod(0o700)
    closed.chmod(0o700)
    assert code == 7 and str(tmp_path) in said
    assert json.loads(quire("show", "w")) == {"n": 1}
