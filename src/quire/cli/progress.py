"""How the demo looks: bars on a terminal that has `rich` (bars.py), plain lines elsewhere.

It is drawn by the process that watches; the work is another's and never waits for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

import click

from quire.cli.lines import columns, fit, terminal

if TYPE_CHECKING:
    from quire.demo.audience import Display

_QUARTERS = 4


def display(stages: Mapping[str, int]) -> Display:
    """Return bars where they can be drawn, lines otherwise. stages: steps in each."""
    if not terminal() or find_spec("rich") is None:
        return Lines(stages)
    from quire.cli.bars import Bars

    return Bars(stages)


class Lines:
    """One line at every quarter of a stage."""

    def __init__(self, stages: Mapping[str, int]) -> None:
        self._stages = stages
        self._said: dict[str, int] = {}

    def line(self, text: str = "") -> None:
        """Show a line."""
        click.echo(text)

    def begin(self) -> None:
        """Nothing to draw."""

    def update(self, done: Mapping[str, int], reading: Sequence[str], versions: int) -> None:
        """Say a stage's next quarter."""
        for stage, size in self._stages.items():
            quarter = _QUARTERS * done[stage] // size
            if quarter > self._said.get(stage, 0):
                self._said[stage] = quarter
                at_work = f"; at work: {', '.join(reading)}" if reading else ""
                self.line(fit(f"   {stage:<8} {done[stage]:>2}/{size:<2}  {versions} versions{at_work}", columns()))

    def end(self) -> None:
        """Nothing was drawn."""
