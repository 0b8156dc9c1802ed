"""The demo, run whole on a part of the library."""

import subprocess
import sys


def test_it_loses_and_repeats_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "quire.cli.main", "demo", "--modules", "60"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "steps that ended twice:             0 of 27" in done.stdout
    assert (tmp_path / "demo-out" / "report.md").exists()
