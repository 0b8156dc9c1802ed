"""The work that is measured, the same for us and for peers."""

import random

WORDS = (
    "tide moon current gauge harbour neap spring ebb flood datum buoy chart wind swell pilot sounding".split()  # noqa: SIM905
)


def message(number, bytes_=1000):
    """Return realistic, varied text of about 1 KB."""
    chance = random.Random(number)
    text = f"step {number}: "
    while len(text) < bytes_:
        text += f"{chance.choice(WORDS)} {chance.randrange(10_000)} "
    return text


def megabyte():
    """Return a state of about 1 MB: 5,000 records."""
    return {
        "items": {
            f"k{i}": {"name": f"item {i}", "score": i * 1.5, "tags": ["a", "b"], "text": message(i, 110)}
            for i in range(5000)
        },
        "n": 0,
    }


def typed(count):
    """Yield keystrokes as position, deleted and inserted: mostly at the cursor, a few corrections, a few moves of it."""
    chance = random.Random(count)
    at, length, waiting = 0, 0, ""
    for _ in range(count):
        move = chance.random()
        if move < 0.06 and at:
            at -= 1
            length -= 1
            yield at, 1, ""
            continue
        if move > 0.98:
            at = chance.randrange(length + 1)
        waiting = waiting or f"{chance.choice(WORDS)} "
        yield at, 0, waiting[0]
        at, length, waiting = at + 1, length + 1, waiting[1:]
