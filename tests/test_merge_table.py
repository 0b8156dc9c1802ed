"""Every row of the tables in "Merged, refused or lost?" is run as two agents, and gives the outcome it says."""

import io
import re
from pathlib import Path

import msgspec
import pytest

import quire
from quire.errors import MergeConflict, OutOfBounds

PAGE = Path(__file__).parent.parent / "docs" / "merged-refused-or-lost.md"
CELL = re.compile(r"(?<!\\)\|")
CODE = re.compile(r"`([^`]*)`")


def rows():
    found, strict = [], False
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in CELL.split(line)[1:-1]]
        if len(cells) != 5 or set(cells[0]) <= {"-"}:
            continue
        if cells[0] == "state before":
            strict = "serializable" in cells[2]
            continue
        first, second = ([code.replace("\\|", "|") for code in CODE.findall(cell)] for cell in cells[1:3])
        before, after = (msgspec.json.decode(CODE.fullmatch(cells[i])[1]) for i in (0, 4))
        found.append(
            pytest.param(before, first, second, strict, cells[3], after, id=f"{line[:90]}{' !' if strict else ''}")
        )
    return found


class Agent:
    """One agent of a row: looks at the state first, and commits when it is told to."""

    def __init__(self, wf, author, code, strict):
        self.names = {"wf": wf, "null": io.StringIO()}
        self.edit, self.late = None, None
        if "wf." not in code[0]:
            self.edit = wf.edit(author=author, isolation="serializable" if strict else "default")
            self.names["s"] = self.edit.__enter__()
            exec(code[0], self.names)
        elif len(code) == 2:
            exec(code[0], self.names)
            self.late = code[1]
        else:
            self.late = code[0]

    def commit(self):
        if self.edit is not None:
            self.edit.__exit__(None, None, None)
        else:
            exec(self.late, self.names)


def outcome(before, first, second, strict, path="memory:"):
    with quire.sync.open(path) as store:
        wf = store.create("w", before)
        one, two = Agent(wf, "one", first, strict=False), Agent(wf, "two", second, strict)
        one.commit()
        numbers = wf.version().number
        try:
            two.commit()
        except MergeConflict as error:
            said = "refused"
            assert error.retryable
            assert error.changes
            assert wf.version().number == numbers
        except OutOfBounds:
            said = "out of bounds"
        else:
            said = "recorded" if wf.conflicts() else "merged"
            assert wf.version().number == numbers + 1
        return said, wf.state()


@pytest.mark.parametrize(("before", "first", "second", "strict", "said", "after"), rows())
def test_the_row_is_true(before, first, second, strict, said, after):
    told, state = outcome(before, first, second, strict)
    assert state == after
    assert told == ("merged" if said == "lost" else said)


def test_there_are_rows_of_every_outcome():
    outcomes = [row.values[4] for row in rows()]
    assert set(outcomes) == {"merged", "refused", "recorded", "lost", "out of bounds"}
    assert len(outcomes) > 50


def test_a_wrong_row_is_noticed():
    assert outcome({"n": 1}, ['s["n"] += 10'], ['s["n"] += 100'], False) != ("merged", {"n": 101})
