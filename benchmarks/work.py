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
