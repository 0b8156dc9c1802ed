"""Examples of the documentation, run and compared with the output that the page shows.

How a page shows an example (CONTRIBUTING.md says it in short):

- A `python` block is a whole program. What it prints is in a `text` block below it, with at most prose between the two;
  a program that prints nothing has none.
- A `console` block has lines `$ command`, each followed by what the command prints. A command that ends in a backslash
  goes on in the next line.
- A `lua` block is a file for the commands below it, named in its first line: `-- NAME`.
- A block without a language, or of `sql`, is shown and not run, such as the settings of a server.
- In an expected line `...` stands for one or more characters that vary from run to run; alone in a line it stands for
  one or more lines. Whitespace at the end of a line or of the output does not count.
- Nothing may be written to stderr, and the exit code must be 0. Where stderr is to be seen the command says `2>&1`;
  where a command is to fail it says so too: `|| echo "exit code $?"`.

The examples of one page run in their order, in one folder that is empty at first.
"""

import difflib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(.*)\n((?:.*\n)*?)```$", re.MULTILINE)
LANGUAGES = {"python", "console", "text", "lua", "", "sql"}
LOOKS_RUN = re.compile(r"^(\$ |import |from )", re.MULTILINE)
COMMAND = re.compile(r"\$ ((?:.*\\\n)*.*\n)((?:(?!\$ ).*\n)*)")


class Example(NamedTuple):
    """A program, a command, or a Lua file, and what it is to print."""

    block: int  # line of the page where its block begins
    kind: str
    code: str
    shown: str = ""


def examples(page: str) -> list[Example]:
    """Return the examples of a page in their order."""
    found: list[Example] = []
    before, end = "", 0
    for fence in FENCE.finditer(page):
        language, body = fence.groups()
        line = page.count("\n", 0, fence.start()) + 1
        prose, end = page[end : fence.start()], fence.end()
        assert "```" not in prose, f"line {line}: a fence above it is indented or not closed"
        assert language in LANGUAGES, f"line {line}: nothing is known of blocks of {language}"
        assert language or not LOOKS_RUN.search(body), f"line {line}: an example without a language is not run"
        if language == "text":
            assert before == "python" and "\n#" not in prose, f"line {line}: output without a program above it"
            found[-1] = found[-1]._replace(shown=body)
        elif language == "console":
            found += commands(line, body)
        elif language in {"python", "lua"}:
            found.append(Example(line, language, body))
        before = language
    assert "```" not in page[end:], "the last fence is indented or not closed"
    return found


def commands(line: int, body: str) -> list[Example]:
    """Return the commands of a console block."""
    found = [Example(line, "console", *command.groups()) for command in COMMAND.finditer(body)]
    assert body == "".join(f"$ {e.code}{e.shown}" for e in found) != "", f"line {line}: output before the first command"
    return found


def run(example: Example, folder: Path, tools: Path) -> subprocess.CompletedProcess[str]:
    """Run a program or a command in the page's folder; `tools` has what is not part of it."""
    (tools / "quire").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m quire "$@"\n')
    (tools / "quire").chmod(0o755)
    (tools / "example.py").write_text(example.code)
    words = [sys.executable, str(tools / "example.py")] if example.kind == "python" else ["sh", "-c", example.code]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("QUIRE_", "PYTHONWARN"))}
    env |= {"PATH": f"{tools}:{os.environ['PATH']}", "COLUMNS": "80"}
    return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=60)


def tidy(text: str) -> str:
    """Return text without whitespace at the ends of lines, and of itself."""
    return "".join(f"{line.rstrip()}\n" for line in text.rstrip().splitlines())


def matches(shown: str, printed: str) -> bool:
    """True if the output is what the page shows, where `...` stands for what varies."""
    lines = [
        r"(?:.*\n)+" if line == "..." else ".+".join(re.escape(part) for part in line.split("...")) + r"\n"
        for line in tidy(shown).splitlines()
    ]
    return re.fullmatch("".join(lines), tidy(printed)) is not None


def check(example: Example, done: subprocess.CompletedProcess[str]) -> None:
    """Compare what an example did with what the page shows."""
    where = f"the example in the block at line {example.block}: {example.code}"
    assert done.returncode == 0, f"exit code {done.returncode} of {where}\n{done.stderr}"
    assert done.stderr == "", f"something on stderr of {where}\n{done.stderr}"
    assert not example.shown or example.shown.strip(". \n"), f"only dots are shown as output of {where}"
    if not matches(example.shown, done.stdout):
        difference = difflib.ndiff(tidy(example.shown).splitlines(), tidy(done.stdout).splitlines())
        raise AssertionError(f"another output (-: shown, +: printed) of {where}\n" + "\n".join(difference))


def run_page(page: str, folder: Path) -> int:
    """Run and check all examples of a page; return how many of its blocks were run."""
    tools, work = folder / "tools", folder / "work"
    tools.mkdir()
    work.mkdir()
    ran: set[int] = set()
    for example in examples(page):
        if example.kind == "lua":
            (work / example.code.splitlines()[0].removeprefix("-- ")).write_text(example.code)
            continue
        check(example, run(example, work, tools))
        ran.add(example.block)
    there = len(re.findall(r"(?:```|~~~)\s*(?:python|console)", page))
    assert len(ran) == there, f"{there - len(ran)} of {there} blocks were not run"
    return there


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_print_what_the_page_shows(page, tmp_path):
    run_page(page.read_text(), tmp_path)


# Negative controls: pages that must fail, and why.

HELLO = "```python\nprint('one')\nprint('two')\n```\n"
CONSOLE = "```console\n$ {}\n```\n"
WRONG = {
    "wrong output": (HELLO + "```text\none\nTWO\n```\n", "another output"),
    "extra line": (HELLO + "```text\none\n```\n", "another output"),
    "missing line": (HELLO + "```text\none\ntwo\nthree\n```\n", "another output"),
    "no output shown": (HELLO, "another output"),
    "output of nothing": ("```python\npass\n```\n```text\none\n```\n", "another output"),
    "dots that match nothing": (HELLO + "```text\none...\ntwo\n```\n", "another output"),
    "dots beside another text": (HELLO + "```text\no...\nw...\n```\n", "another output"),
    "dots for no line": (HELLO + "```text\none\ntwo\n...\n```\n", "another output"),
    "dots before another line": (HELLO + "```text\n...\nthree\n```\n", "another output"),
    "dots only": (HELLO + "```text\n...\n...\n```\n", "only dots"),
    "warning": ("```python\nimport warnings\nwarnings.warn('old')\n```\n", "stderr"),
    "exception": ("```python\nraise SystemExit(3)\n```\n", "exit code 3"),
    "wrong output of a command": (CONSOLE.format("echo one\ntwo"), "another output"),
    "no output shown of a command": (CONSOLE.format("echo one\n$ true"), "another output"),
    "remark of a command": (CONSOLE.format("echo one >&2"), "stderr"),
    "command that fails": (CONSOLE.format("false"), "exit code 1"),
    "output before a command": ("```console\none\n$ echo one\n```\n", "before the first command"),
    "output under another heading": (HELLO + "\n# Next\n\n```text\none\ntwo\n```\n", "without a program"),
    "output after a command": (CONSOLE.format("true") + "```text\none\n```\n", "without a program"),
    "block between tildes": (HELLO.replace("```", "~~~"), "1 of 1 blocks were not run"),
    "indented block": ("- So:\n\n  ```python\n  pass\n  ```\n", "indented"),
    "no language": (HELLO.replace("python\n", "\nimport this\n"), "without a language"),
    "another language": ("```py\nprint('one')\n```\n", "nothing is known"),
}


@pytest.mark.parametrize(("page", "reason"), WRONG.values(), ids=WRONG)
def test_wrong_page_fails(page, reason, tmp_path):
    with pytest.raises(AssertionError, match=reason):
        run_page(page, tmp_path)


def test_right_page_passes(tmp_path):
    program = HELLO + "\nIt prints:\n\n```text\no...\n...\n```\n\n```\nnot run\n```\n"
    shell = CONSOLE.format("echo one \\\n  two | tee file\none two\n$ cat file\n...wo\n$ true")
    lua = "```lua\n-- part.lua\nreturn 1\n```\n" + CONSOLE.format("tail -n 1 part.lua\nreturn 1")
    assert run_page(program + shell + lua, tmp_path) == 3


def test_every_link_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} -> {target}"
