"""The command line asks a history, merges, decides, undoes, takes out and migrates."""

import json

import pytest

GRAPH = """\
* w@8  boss: resolved merge-7-1: theirs
* w@7  cli: merged f@3
|\\
| * f@3  cat: change
* | w@6  ann: other name
| * f@2  cat: rename
| * f@1  cat: forked from w@3
|/
* w@5  bob: count 4
* w@4  bob: count 3
* w@3  bob: count 2
* w@2  bob: count 1
* w@1  ann: created
"""


@pytest.fixture
def two(quire):
    """A workflow and a fork of it that named something differently."""
    quire("set", "w", "", '{"topic": "tides", "n": 0}', "--as", "ann")
    for n in range(1, 5):
        quire("set", "w", "/n", str(n), "--as", "bob", "-m", f"count {n}")
    quire("fork", "w@3", "f", "--as", "cat")
    quire("set", "f", "/topic", "neaps", "--as", "cat", "-m", "rename")
    quire("set", "w", "/topic", "moon", "--as", "ann", "-m", "other name")
    quire("set", "f", "/extra", '{"deep": [1, 2]}', "--as", "cat")
    return quire


def test_forks_are_merged_and_what_both_changed_is_decided(two):
    planned = two("merge", "w", "f", "--dry-run", code=1)
    assert "1 conflict(s), 1 pending" in planned and "+ /extra" in planned or "~ /extra" in planned
    assert "extra" not in two("show", "w"), "it was only said"
    done = json.loads(two("merge", "w", "f", "--json", code=1))
    assert (done["version"]["version"], done["base"], done["conflicts"][0]["status"]) == (7, ["w", 3], "pending")
    assert json.loads(two("show", "w")) == {"topic": "moon", "n": 4, "extra": {"deep": [1, 2]}}
    assert "merge-7-1  /topic  pending" in two("conflicts", "w")
    two("conflicts", "w", "merge-7-1", "--take", "theirs", "--as", "boss")
    assert two("show", "w", "/topic") == '"neaps"\n'
    assert two("conflicts", "w") == ""
    assert json.loads(two("conflicts", "w", "--all", "--json"))["conflicts"][0]["resolution"] == "theirs"
    assert two("log", "w", "--graph") == GRAPH
    nodes = json.loads(two("log", "w", "--graph", "--json"))["versions"]
    assert [n["parents"] for n in nodes if n["version"] == 7] == [["w@6", "f@3"]]
    assert "nothing to merge" in two("merge", "w", "f")
    two("merge", "w", "f", "--on-conflict", "sideways", code=2)
    two("merge", "w", "ghost", code=3)


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("conflicts", "ghost"), 3),
        (("conflicts", "w", "conflict-9", "--take", "ours"), 3),
        (("conflicts", "w", "conflict-9"), 2),
        (("conflicts", "w", "--take", "ours"), 2),
        (("log", "w", "--graph", "--by", "ann"), 2),
        (("log", "w", "--since", "never"), 2),
        (("revert", "w"), 2),
        (("revert", "w@1"), 2),
        (("revert", "w@99"), 3),
        (("bisect", "w"), 2),
        (("bisect", "w", "--path", "/n", "--", "true"), 2),
        (("bisect", "w", "--", "no-such-command"), 2),
        (("bisect", "w", "--", "sh", "-c", "exit 125"), 2),
        (("replay", "w", "--", "false"), 2),
        (("redact", "w", "/n"), 2),
        (("redact", "w", "/n", "--text", "x", "--yes"), 2),
        (("redact", "w@1", "/n", "--yes"), 2),
        (("redact", "w", "", "--yes"), 2),
        (("migrate", "--schemas", "nothing"), 2),
        (("migrate", "--schemas", "no_such_module:X"), 2),
        (("migrate", "--schemas", "json:NOTHING"), 2),
        (("migrate", "--schemas", "json:loads"), 2),
    ],
)
def test_a_mistake_is_a_sentence_and_changes_nothing(two, args, code):
    before = two("export", "w")
    two(*args, code=code)
    assert two("export", "w") == before


def test_log_takes_moments_and_kinds(two):
    assert two("log", "w", "--kind", "create", "--oneline") == "1 ann: created\n"
    assert two("log", "w", "--until", "2001-01-01") == ""
    assert two("log", "w", "--since", "2001-01-01", "--oneline").count("\n") == 6


def test_bisect_finds_where_it_began(two):
    found = two("bisect", "w", "--path", "/topic")
    assert "w@6" in found and "other name" in found
    script = "import json, sys; sys.exit(json.load(sys.stdin)['n'] >= 3)"
    done = json.loads(two("bisect", "w", "--json", "--", "python3", "-c", script))
    assert (done["version"], done["author"]) == (4, "bob")
    assert done["looked_at"] <= 5


def test_replay_prints_states_or_gives_them_to_a_command(two, tmp_path):
    lines = [json.loads(line) for line in two("replay", "w@4", "--first", "2").splitlines()]
    assert [(v["version"], v["state"]["n"]) for v in lines] == [(2, 1), (3, 2), (4, 3)]
    assert two("replay", "f", "--", "sh", "-c", "cat > state-$QUIRE_VERSION") == "3 versions\n"
    assert json.loads((tmp_path / "state-2").read_text())["topic"] == "neaps"


def test_one_version_is_undone(two):
    two("set", "w", "/extra", "1")
    two("revert", "w@6", "--as", "ann")
    assert two("show", "w", "/topic") == '"tides"\n'
    assert two("show", "w", "/extra") == "1\n"
    two("revert", "w@2", code=4)
    two("revert", "w@2", "--on-conflict", "ours")
    assert two("show", "w", "/n") == "0\n"


def test_something_is_taken_out_of_everything(two, tmp_path):
    two("set", "w", "/user/mail", "ann@example.org", code=2)
    two("set", "w", "/user", '{"mail": "ann@example.org"}', "-m", "ask ann@example.org")
    assert "workflows/w: 1 version rewritten" in two("redact", "w", "/user/mail", "--yes", "-m", "she asked")
    assert two("show", "w@7", "/user/mail") == '"[REDACTED]"\n'
    two("set", "w", "/note", "call ann@example.org")
    two("redact", "w", "--text", "-", "--yes", input="ann@example.org\n")
    assert two("show", "w", "/note") == '"call [REDACTED]"\n'
    assert two("redact", "w", "--text", "nowhere", "--yes") == "nothing was there to be taken out\n"
    two("set", "w", "/scratch", "old")
    two("set", "w", "/scratch", "new")
    two("redact", "w", "/scratch", "--keep-current", "--yes")
    assert two("show", "w", "/scratch") == '"new"\n'
    assert "sound" in two("verify")


def test_states_are_migrated_from_a_module_here(two, tmp_path):
    (tmp_path / "shop_states.py").write_text(
        "from quire import Schema\n"
        "def up(state): state['subject'] = state.pop('topic')\n"
        "SCHEMAS = [Schema('r', version=2, migrations={1: up})]\n"
        "BAD = Schema('r', version=2, migrations={1: lambda state: 1 / 0})\n"
    )
    two("set", "w", "/$schema", "r/1")
    assert "1 would be migrated" in two("migrate", "--schemas", "shop_states:SCHEMAS", "--plan")
    assert "ZeroDivisionError" in two("migrate", "--schemas", "shop_states:BAD", code=1)
    done = json.loads(two("migrate", "--schemas", "shop_states:SCHEMAS", "--json"))
    assert [(m["workflow_id"], m["before"], m["after"]) for m in done["workflows"]] == [("w", "r/1", "r/2")]
    assert two("show", "w", "/subject") == '"moon"\n'
    assert "0 migrated" in two("migrate", "--schemas", "shop_states:SCHEMAS")
