"""A message of 1 KB appended a step, beside peers: time, bytes, and reading it back."""

import sys
from statistics import median

from benchmarks import peers
from benchmarks.measure import Row, folder
from benchmarks.work import message


def once(peer, steps):
    """Run a peer in a folder of its own."""
    with folder() as place:
        return peer(steps, place)


def growing(quick):
    """Appending to a growing list: what a step costs late, and what is stored."""
    runs = [once(peers.ours, 3000) for _ in range(1 if quick else 3)]
    ratios = sorted(median(r.times[-100:]) / median(r.times[50:150]) for r in runs)
    late = median(median(r.times[-100:]) for r in runs)
    content = sum(len(message(i)) for i in range(3000))
    yield Row("append 1 KB, time of step 3000 / step 100", median(ratios), "<=", 1.5, note=f"{late * 1e6:.0f} us")
    stored = runs[0].stored
    yield Row("bytes stored for 3000 steps, of the content", stored / content, "<=", 3.0, note=f"{stored / 1e6:.1f} MB")


def peering(quick):
    """The same work done by LangGraph's SQLite checkpointer and by the `eventsourcing` library, in turns with ours."""
    for name, peer in (("LangGraph", peers.langgraph), ("eventsourcing", peers.eventsourcing)):
        for steps in (100, 1000) if quick else (100, 1000, 3000):
            repeats = 1 if quick or steps == 3000 else 3
            try:
                pairs = [(once(peers.ours, steps), once(peer, steps)) for _ in range(repeats)]
            except ImportError as missing:
                print(f"   (no {name} rows: {missing})", file=sys.stderr)
                break
            yield from _against(name, steps, pairs)


def _against(name, steps, pairs):
    def ratio(what):
        return median(what(theirs) / what(ours) for ours, theirs in pairs)

    def note(what, scale, unit):
        mine, theirs = (median(what(run) for run in side) * scale for side in zip(*pairs, strict=True))
        return f"{theirs:,.1f} to {mine:,.1f} {unit}"

    for what, of, scale, unit in (
        ("time of all steps", lambda r: sum(r.times), 1e3, "ms"),
        ("time of the last steps", lambda r: median(r.times[-50:]), 1e6, "us"),
        ("bytes", lambda r: r.stored, 1e-6, "MB"),
        ("read the newest", lambda r: r.latest, 1e3, "ms"),
        ("read an old one", lambda r: r.old, 1e3, "ms"),
    ):
        yield Row(f"{name}, {steps} steps: {what}, theirs / ours", ratio(of), ">=", 1.0, note=note(of, scale, unit))
