"""`x[k] += v` is told from a read and a write, wherever it stands and whoever watches; a doubt is a no."""

import gc
import operator
import sys
import weakref
from contextlib import contextmanager
from textwrap import indent
from types import SimpleNamespace, coroutine

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.api import augmented
from quire.api.augmented import reading, storing

pytestmark = pytest.mark.skipif(not augmented.TESTED, reason="there is no yes on this version of Python")


class Draft:
    """One value under every key. Notes which reads gave a site and what each write was taken for."""

    def __init__(self, value=0, reading=reading, storing=storing):
        self.value, self.site, self.sites, self.answers = value, None, [], []
        self.reading, self.storing = reading, storing

    def __getitem__(self, key):
        self.site = self.reading()
        self.sites.append(self.site is not None)
        return [] if isinstance(key, slice) else self.value

    def __setitem__(self, key, value):
        site, self.site = self.site, None
        self.answers.append(site is not None and self.storing(site))


class Operand:
    """Takes every binary operator."""


for _name in "add sub mul matmul truediv floordiv mod pow lshift rshift and or xor".split():
    setattr(Operand, f"__{_name}__", lambda self, other: self)


@coroutine
def suspended(value):
    yield
    return value


def driven(awaitable):
    for _ in awaitable.__await__():
        pass


MANY = "".join(f"n{i} = o{i} = {i}\n" for i in range(300))  # more names than an argument of one byte can number

PLACES = {  # source of `run(x)` around statements
    "function": "def run(x):\n{1}",
    "module": "def run(x):\n    exec(MODULE, {{**globals(), 'x': x}})",
    "class body": "def run(x):\n    class Body:\n{2}",
    "closure": "def run(x):\n    def inner():\n{2}\n    inner()",
    "global": "def run(given):\n    global x\n    x = given\n{1}",
    "generator": "def run(x):\n    def steps():\n        yield\n{2}\n    list(steps())",
    "coroutine": "def run(x):\n    async def body():\n{2}\n    driven(body())",
    "many names": "def run(x):\n" + indent(MANY, " " * 4) + "{1}",
    "many globals": MANY + "def run(x):\n    " + "; ".join(f"n{i}, o{i}" for i in range(300)) + "\n{1}",
    "loop": "def run(x):\n    for _ in range(1):\n{2}",
    "branch": "def run(x):\n    if x is None:\n{2}\n    else:\n{2}",
    "with": "def run(x):\n    with here():\n{2}",
    "try": "def run(x):\n    try:\n{2}\n    except KeyError:\n{2}",
    "except": "def run(x):\n    try:\n        1 / 0\n    except ZeroDivisionError:\n{2}",
    "finally": "def run(x):\n    try:\n        pass\n    finally:\n{2}",
    "finally after raise": "def run(x):\n  with caught():\n    try:\n        1 / 0\n    finally:\n{2}",
    "match": "def run(x):\n  match k:\n    case 'n':\n{2}",
    "method": "class Owner:\n    def method(self, x):\n{2}\nrun = Owner().method",
}

YES = [
    "x['n'] += 1",
    "x['n'] -= 1",
    "x[k] += v",
    "x[k] -= v",
    "x[0] += 1.5",
    "x[k, 1] += 1",
    "SimpleNamespace(x=x).x[k] += v",
    "[x][0]['n'] += 1",
    "(x if k else None)[k] += v",
    "x[(key := 'n')] += v",
    "x[k] += (w := 5)",
    "x[k] += 1 if k else 2",
    "x[k] += k and v or 2",
    "x[k] += 1 < v < 9 < 10",
    "x[k] += (lambda: v)()",
    "x[k] += sum(i for i in range(3))",
    "x[k] += sum([i for i in range(3)])",
    "x[k] += sum({i: j for i in range(3) for j in range(i)}.values())",
    "x[k] += [y for y in [v]][0]",
    "x[k] += [w := 4][0]",
    "x[k] += int(f'{v}{v!r:>4}'[0])",
    "x[k] += Draft()[k]",
    "x[k] += (\n    v\n    + 1\n)",
    "x[k] += " + " + ".join(["v"] * 400),
    "x[k] += (" + " + ".join(["v"] * 400) + ") if k else 2",
]

NO = [
    "x[k]",
    "x[k] = 1",
    "x[k] = x[k] + 1",
    "x[k] = x[k] - 1",
    "x[k] = (y := x[k]) + 1",
    "y = x[k]; x[k] = y + 1",
    "y = x[k]; y += 1; x[k] = y",
    "x[k], z = x[k] + 1, 2",
    "z, x[k] = 2, x[k] + 1",
    "x[k] = z = x[k] + 1",
    "for x[k] in [x[k] + 1]: pass",
    "[x[k] for _ in 'ab'], (lambda: x[k])()",
    "with here() as x[k]: pass",
    "x[0:1] += [5]",
    "x[0:1:1] += [5]",
    "x[:] += [5]",
    "x[k] = operator.iadd(x[k], 1)",
    "operator.setitem(x, k, operator.iadd(operator.getitem(x, k), 1))",
    "x.__setitem__(k, x.__getitem__(k) + 1)",
    "Draft.__setitem__(x, k, Draft.__getitem__(x, k) + 1)",
    "z = 1; z += x[k]; x[k] = z",
    "box = SimpleNamespace(n=1); box.n += x[k]; x[k] = box.n",
    "z = {k: 1}; z[k] += x[k]; x[k] = z[k]",
    "z = {k: 1}; z[k] += list(map(x.__getitem__, k))[0]; x[k] = z[k]",
    "z = {k: 1}; z[k] += (x.__setitem__(k, x[k] + 1) or 1)",
    "z = {k: 1}; z[k] += (x.__setitem__(k, x.__getitem__(k) + 1) or 1)",
    "list(map(x.__setitem__, k, map(x.__getitem__, k)))",
    "z = {x[k]: 1}; z[x[k]] += 1; x[k] = z[x[k]]",
    "x[k] = sorted('ab', key=x.__getitem__)",
    "x[k] = eval('x[k] + 1', {'x': x, 'k': k})",
]


def built(place, statements, **names):
    """Return `run(x)`, which executes the statements at a place."""
    space = {"k": "n", "v": 3, "Draft": Draft, "SimpleNamespace": SimpleNamespace, "driven": driven}
    space |= {"operator": operator, "suspended": suspended, "here": here, "caught": caught, **names}
    if place == "module":
        space["MODULE"] = compile(statements, "<module>", "exec")
    exec(PLACES[place].format(*[indent(statements, " " * 4 * depth) for depth in range(3)]), space)
    return space["run"]


@contextmanager
def here():
    yield 0


@contextmanager
def caught():
    try:
        yield
    except ZeroDivisionError:
        pass


@contextmanager
def traced(opcodes):
    def trace(frame, event, arg):
        frame.f_trace_opcodes = opcodes
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


@contextmanager
def profiled():
    before = sys.getprofile()
    sys.setprofile(lambda *_: None)
    try:
        yield
    finally:
        sys.setprofile(before)


@contextmanager
def monitored(*events):
    monitoring, tool = sys.monitoring, 4
    monitoring.use_tool_id(tool, "test")
    chosen = [getattr(monitoring.events, event) for event in events]
    try:
        for event in chosen:
            monitoring.register_callback(tool, event, lambda *_: None)
        monitoring.set_events(tool, sum(chosen))
        yield
    finally:
        monitoring.set_events(tool, 0)
        for event in chosen:
            monitoring.register_callback(tool, event, None)
        monitoring.free_tool_id(tool)


WATCHERS = {
    "nobody": here,
    "settrace": lambda: traced(False),
    "settrace by opcode": lambda: traced(True),
    "setprofile": profiled,
}
if sys.version_info >= (3, 12):
    WATCHERS |= {
        "monitoring of lines": lambda: monitored("LINE"),
        "monitoring of instructions": lambda: monitored("INSTRUCTION"),
        "monitoring of all": lambda: monitored("LINE", "INSTRUCTION", "CALL", "PY_START", "PY_YIELD", "BRANCH", "JUMP"),
    }


def judged(statements, watcher="nobody", draft=Draft):
    """Return {place: (did reads give sites, what writes were taken for)}, the same cold, specialised and watched."""
    found = {}
    for place in PLACES:
        run = built(place, statements)
        seen = {outcome(run, draft()) for _ in range(20)}
        with WATCHERS[watcher]():
            seen |= {outcome(run, draft()) for _ in range(5)}
        seen |= {outcome(run, draft()) for _ in range(5)}
        [found[place]] = seen
    return found


def outcome(run, draft):
    run(draft)
    return tuple(draft.sites), tuple(draft.answers)


@pytest.mark.parametrize("watcher", WATCHERS)
@pytest.mark.parametrize("statements", YES, ids=lambda text: text[:40])
def test_augmented_assignment_is_recognised(statements, watcher):
    for place, (sites, answers) in judged(statements, watcher).items():
        assert (sites, answers) == ((True,), (True,)), place


@pytest.mark.parametrize("watcher", WATCHERS)
@pytest.mark.parametrize("statements", NO)
def test_plain_read_and_write_are_not(statements, watcher):
    for place, (sites, answers) in judged(statements, watcher).items():
        assert not any(sites), place
        assert not any(answers), place


@pytest.mark.parametrize("operation", "* @ / // % ** << >> & | ^".split())
def test_other_operators_are_not(operation):
    for sites, answers in judged(f"x[k] {operation}= v", draft=lambda: Draft(Operand())).values():
        assert (sites, answers) == ((False,), (False,))


@pytest.mark.parametrize("watcher", WATCHERS)
def test_two_in_a_row_and_mixed_with_plain_ones(watcher):
    statements = "x[k] += 1; x[k] -= 1; x[k] = x[k] + 1; x[k] *= 2; x[k] += 1; x[k] = 1"
    for sites, answers in judged(statements, watcher).values():
        assert sites == (True, True, False, False, True)
        assert answers == (True, True, False, False, True, False)


@pytest.mark.parametrize("right", ["x[k]", "Draft.__getitem__(x, k)", "[x[k] for _ in k][0]", "(lambda: x[k])()"])
@pytest.mark.parametrize("watcher", WATCHERS)
def test_right_side_that_reads_the_draft_ends_the_certainty(right, watcher):
    for sites, answers in judged(f"x[k] += {right}", watcher).values():
        assert (sites, answers) == ((True, False), (False,))


def test_right_side_that_writes_the_draft_ends_the_certainty():
    for sites, answers in judged("x[k] += (x.__setitem__(k, 1), 1)[1]").values():
        assert (sites, answers) == ((True,), (False, False))


def test_nested_augmented_assignment_of_another_frame_ends_the_outer_one_only():
    draft = Draft()

    def inner():
        draft["n"] += 1
        return 1

    draft["n"] += inner()
    assert (draft.sites, draft.answers) == ([True, True], [True, False])


def test_recursion_into_the_same_code_ends_the_outer_ones_only():
    draft = Draft()

    def descend(depth):
        draft["n"] += descend(depth - 1) if depth else 1
        return 1

    descend(3)
    assert (draft.sites, draft.answers) == ([True] * 4, [True, False, False, False])


def test_nested_augmented_assignment_that_fails_before_its_store_ends_the_outer_one():
    draft = Draft()

    def descend(depth):
        try:
            draft["n"] += descend(depth - 1) if depth else 1 / 0
        except ZeroDivisionError:
            return 1

    descend(1)
    assert (draft.sites, draft.answers) == ([True, True], [False])


def test_nested_augmented_assignment_of_another_draft_does_not_matter():
    outer, inner = Draft(), Draft()

    def change():
        inner["n"] += 1
        return 1

    outer["n"] += change()
    assert (outer.answers, inner.answers) == ([True], [True])


@pytest.mark.parametrize("watcher", WATCHERS)
@pytest.mark.parametrize(
    "statements",
    [
        "x[k] += await suspended(v)",
        "x[k] -= [await suspended(i) for i in range(3)][-1]",
        "x[k] += 1 if await suspended(v) else 2",
        "x[await suspended(k)] += v",
        "async with nothing() as z: x[k] += await suspended(v)",
        "async for z in several(): x[k] += z",
    ],
)
def test_await_on_the_right_side(statements, watcher):
    class nothing:
        async def __aenter__(self): ...
        async def __aexit__(self, *_): ...

    async def several():
        yield await suspended(1)

    run = built("coroutine", statements, nothing=nothing, several=several)
    for turn in range(30):
        with WATCHERS[watcher if turn > 20 else "nobody"]():
            assert outcome(run, Draft()) == ((True,), (True,))


@pytest.mark.parametrize("statements", ["x[k] += (yield) or v", "x[k] += (yield from [1, 2]) or 1"])
def test_yield_on_the_right_side(statements):
    run = built("generator", statements)
    for _ in range(30):
        assert outcome(run, Draft()) == ((True,), (True,))


def test_tasks_that_interleave_are_not_certain_but_tasks_in_turn_are():
    draft = Draft()

    async def add():
        draft["n"] += await suspended(1)

    first, second = add(), add()
    first.send(None), second.send(None)
    for task in (first, second):
        with pytest.raises(StopIteration):
            task.send(None)
    assert (draft.sites, draft.answers) == ([True, True], [False, False])
    driven(add())
    driven(add())
    assert draft.answers[2:] == [True, True]


def test_wrapper_written_in_python_is_user_code_of_its_own():
    class Wrapper:
        def __init__(self, inner):
            self.inner = inner

        def __getitem__(self, key):
            return self.inner[key]

        def __setitem__(self, key, value):
            self.inner[key] = value

    class Heir(Draft):
        def __getitem__(self, key):
            return super().__getitem__(key)

    draft, heir = Draft(), Heir()
    Wrapper(draft)["n"] += 1
    heir["n"] += 1
    assert (draft.answers, heir.answers) == ([False], [False])


def test_container_without_a_frame_of_its_own_counts_as_the_draft():
    draft = Draft()
    passing_on = type("PassingOn", (), {"__getitem__": draft.__getitem__, "__setitem__": draft.__setitem__})()
    passing_on["n"] += 1
    passing_on["n"] = passing_on["n"] + 1
    assert draft.answers == [True, False]


def test_depth_counts_the_frames_up_to_the_user():
    class Deep(Draft):
        def __init__(self):
            super().__init__(reading=lambda: reading(2), storing=lambda site: storing(site, 2))

    for _, answers in judged("x[k] += v; x[k] = x[k] + v", draft=Deep).values():
        assert answers == (True, False)


def test_call_without_user_code_is_no():
    draft = Draft()
    draft["n"] += 1
    assert reading(100_000) is None
    draft["n"]
    assert not storing(augmented.Site(0, 0), 100_000)


def test_code_that_is_equal_but_another_has_its_own_site():
    first, second = built("function", "x[k] += v"), built("function", "x[k] += v")
    assert first.__code__ == second.__code__
    draft = Draft()
    first(draft), second(draft)
    assert draft.answers == [True, True]


def test_site_of_a_dead_frame_does_not_match_a_later_frame_of_the_same_code():
    draft = Draft()

    def add(write, value):
        if write:
            draft["n"] = 1
        draft["n"] += value()

    for _ in range(50):  # the later frame is likely to get the id of the dead one
        with caught():
            add(False, lambda: 1 / 0)
        add(True, lambda: 1)
    assert draft.answers == [False, True] * 50


def test_site_keeps_no_frame_and_no_local_alive():
    draft = Draft()

    def fail(local):
        draft["n"] += 1 / 0

    gc.disable()
    try:
        local = Operand()
        gone = weakref.ref(local)
        try:
            fail(local)
        except ZeroDivisionError:
            pass
        del local
        assert draft.site is not None
        assert gone() is None
    finally:
        gc.enable()


def test_remembered_codes_are_bounded_and_forgotten_ones_are_found_again(monkeypatch):
    monkeypatch.setattr(augmented, "_CODES_MAX", 3)
    runs = [built("function", "x[k] += v") for _ in range(10)]
    for run in runs * 2:
        assert outcome(run, Draft()) == ((True,), (True,))
        assert len(augmented._known) <= 3


def test_untested_python_is_always_no(monkeypatch):
    monkeypatch.setattr(augmented, "TESTED", False)
    for sites, answers in judged("x[k] += v").values():
        assert (sites, answers) == ((False,), (False,))


def test_unexpected_bytecode_has_no_site():
    head, swaps, add = augmented._HEAD, augmented._SWAPS, augmented._ADD
    none = b"\0\0"
    whole = none + head + none + add + swaps + none
    assert augmented._stores(whole) == {6: 18, 8: 18}
    for code in (
        b"",
        head,
        none + head + none + add,  # no store
        none + add + swaps + none,  # no read
        add + swaps + none + head + none,  # in the wrong order
        none + head + none + swaps + none,  # no operator
        none + head[:-2] + none + add + swaps + none,
        b"\0" + head + none + add + swaps + none + b"\0",  # not at instructions
        none + head + b"\0" + add + b"\0",  # no store, but an end that looks like an operator before one
        augmented._units(("NO SUCH INSTRUCTION", 2)) * 5,
    ):
        assert augmented._stores(code) == {}, code


LINES = st.sampled_from(
    [
        ("x[k] += v", [True]),
        ("x[k] -= v if k else 1", [True]),
        ("x[k] += sum([i for i in range(2)])", [True]),
        ("x[k] += x[k]", [False]),
        ("x[k] *= v", [False]),
        ("x[k] = x[k] + v", [False]),
        ("y = x[k]; x[k] = y - v", [False]),
        ("x[0:1] += [v]", [False]),
    ]
)
BLOCKS = st.sampled_from(["if k:", "for _ in 'a':", "with here():", "try:", "while True:"])


def nested(inner):
    return st.tuples(BLOCKS, st.lists(inner, min_size=1, max_size=3)).map(lambda pair: block(*pair))


def block(opening, lines):
    text = opening + "\n" + indent("\n".join(line for line, _ in lines), " " * 4)
    closing = {"try:": "\nfinally:\n    x[k] += 1", "while True:": "\n    break"}.get(opening, "")
    answers = [answer for _, part in lines for answer in part]
    return text + closing, answers + [True] * (opening == "try:")


@given(st.lists(st.recursive(LINES, nested, max_leaves=6), min_size=1, max_size=4), st.sampled_from(list(PLACES)))
def test_any_mixture_of_statements(parts, place):
    run = built(place, "\n".join(text for text, _ in parts))
    draft = Draft()
    run(draft)
    assert draft.answers == [answer for _, part in parts for answer in part]


def misjudged(draft):
    """Return the cases that a draft with another recogniser answers wrongly in a function."""
    wrong = []
    for text in YES + NO:
        _, answers = outcome(built("function", text), draft())
        if any(answers) != (text in YES):
            wrong.append(text)
    return wrong


def test_recogniser_that_says_yes_to_a_plain_read_and_write_is_caught():
    """Negative control: the cases above tell a wrong recogniser from the right one."""

    def same_frame():
        return id(sys._getframe(2))

    guess = misjudged(lambda: Draft(reading=same_frame, storing=lambda site: site == id(sys._getframe(2))))
    assert {"x[k] = x[k] + 1", "y = x[k]; x[k] = y + 1", "x[k], z = x[k] + 1, 2"} <= set(guess)
    assert misjudged(lambda: Draft(reading=lambda: None)) == YES
    assert misjudged(Draft) == []
