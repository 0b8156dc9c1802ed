"""Orchestra: runs of agents on a durable workflow, which can be killed at any instant and continue.

State-based, not replayed: a finished step is an entry in the workflow's own state, committed together with what the
step changed. Resuming reads that state and goes on.
"""

from __future__ import annotations

from quire.orchestra.run import RunLost, RunResult, resume, run
from quire.orchestra.steps import Context, Retry, Step, step
from quire.orchestra.topology import Node, Parallel, Sequence, digest, parallel, sequence

__all__ = [
    "Context",
    "Node",
    "Parallel",
    "Retry",
    "RunLost",
    "RunResult",
    "Sequence",
    "Step",
    "digest",
    "parallel",
    "resume",
    "run",
    "sequence",
    "step",
]
