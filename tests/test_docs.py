"""Every example of the documentation is run, in an empty folder, in its order."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(python|console|lua)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def pages_with_examples():
    return [p for p in PAGES if BLOCK.search(p.read_text())]


@pytest.mark.parametrize("page", pages_with_examples(), ids=lambda p: p.stem)
def test_the_examples_run(page, tmp_path):
    ran = 0
    for kind, text in BLOCK.findall(page.read_text()):
        if kind == "lua":  # a file for the commands that follow, named in its first line
            (tmp_path / text.splitlines()[0].removeprefix("-- ")).write_text(text)
            continue
        if kind == "python":
            script = tmp_path / "example.py"
            script.write_text(text)
            done = subprocess.run(
                [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
            )
            assert done.returncode == 0, done.stderr
            ran += 1
            continue
        (tmp_path / "quire").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m quire.cli.main "$@"\n')
        (tmp_path / "quire").chmod(0o755)
        for line in text.splitlines():
            assert line.startswith("$ "), line
            path = f"{tmp_path}:{os.environ['PATH']}"
            done = subprocess.run(
                ["sh", "-c", line[2:]],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
                env={**os.environ, "PATH": path},
            )
            assert done.returncode == 0, f"{line}\n{done.stderr}"
            ran += 1
    assert ran


def test_the_readme_shows_what_it_prints(tmp_path):
    text = (ROOT / "README.md").read_text()
    example = BLOCK.search(text).group(2)
    expected = re.search(r"It prints.*?```\n(.*?)```", text, re.DOTALL).group(1)
    (tmp_path / "e.py").write_text(example)
    done = subprocess.run([sys.executable, "e.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == expected


def test_every_link_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} -> {target}"
