"""Bars on a terminal, by `rich`: one for each stage, the agents at work by name, the versions acknowledged so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

_REFRESH_HZ = 8
_BAR = 24
_NAMES = 2
"""Agents named at once; the others are counted."""


class Bars:
    """What `demo.audience.Display` asks for."""

    def __init__(self, stages: Mapping[str, int]) -> None:
        self._stages = stages
        self._console = Console(highlight=False)
        self._done: Mapping[str, int] = dict.fromkeys(stages, 0)
        self._reading: Sequence[str] = ()
        self._versions = 0
        self._progress: _Progress | None = None

    def line(self, text: str = "") -> None:
        """Show a line; headings and commands stand out."""
        said = text.lstrip()
        bold = said[:1].isdigit() or said.startswith("$ ")
        self._console.print(text, style="bold" if bold else "", markup=False, soft_wrap=True)

    def begin(self) -> None:
        """Draw the bars as they are now."""
        self._progress = _Progress(self._stages, self._console)
        self._show()
        self._progress.start()

    def update(self, done: Mapping[str, int], reading: Sequence[str], versions: int) -> None:
        """Move the bars."""
        self._done, self._reading, self._versions = done, list(reading), versions
        self._show()

    def end(self) -> None:
        """Leave the bars as they are."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _show(self) -> None:
        if self._progress is not None:
            self._progress.show(self._done, self._reading, self._versions)


class _Progress(Progress):
    """The bars of one process of the team."""

    def __init__(self, stages: Mapping[str, int], console: Console) -> None:
        self._versions = 0
        columns = (
            TextColumn("   {task.description:<8}"),
            BarColumn(_BAR),
            TextColumn("{task.completed:>2.0f}/{task.total:<2.0f}", style="green"),
            TextColumn("{task.fields[names]}", style="cyan"),
        )
        super().__init__(*columns, console=console, refresh_per_second=_REFRESH_HZ, expand=False)
        self._stages = {stage: self.add_task(stage, total=size, names="") for stage, size in stages.items()}

    def show(self, done: Mapping[str, int], reading: Sequence[str], versions: int) -> None:
        """Take over numbers and names; they are drawn with the next frame."""
        self._versions = versions
        for stage, task in self._stages.items():
            self.update(task, completed=done[stage], names=_named(reading) if stage == "read" else "")

    def get_renderables(self) -> Iterable[RenderableType]:
        """Return bars and the count below them."""
        yield self.make_tasks_table(self.tasks)
        yield Text(f"   {self._versions} versions acknowledged", style="dim")


def _named(reading: Sequence[str]) -> str:
    more = len(reading) - _NAMES
    return " ".join(reading[:_NAMES]) + (f" +{more}" if more > 0 else "")
