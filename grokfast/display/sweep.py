"""The live display of `grokfast sweep`: runs done, running, grokked and diverged, speed, the time left."""

from __future__ import annotations

import time

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from grokfast.display.run import LINE_EVERY
from grokfast.sweeps import Event, PlannedSweep, Progress, SweepObserver, SweepResult
from grokfast.text import one_line, shown
from grokfast.units import duration

SHOWN = 5  # running runs


class SweepDisplay(SweepObserver):
    """Shows a sweep on `console`; a line every ten seconds where it is no terminal."""

    def __init__(self, console: Console) -> None:
        self.console, self.title, self.total = console, "", 0
        self.progress: Progress | None = None
        self._spoken = time.monotonic()
        self._latest: dict[str, Event] = {}
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=4, transient=True)

    def planned(self, plan: PlannedSweep) -> None:
        self.title, self.total = shown(plan.sweep_id), len(plan.runs)
        if self.console.is_terminal and plan.groups:
            self._live.start()

    def happened(self, event: Event, progress: Progress) -> None:
        self.progress = progress
        self._latest[event.run_id] = event
        if event.status == "failed":
            self.say(f"{event.run_id} failed: {one_line(event.error)}")
        if event.status != "running":
            self._latest.pop(event.run_id)
        now = time.monotonic()
        if not self.console.is_terminal and now - self._spoken >= LINE_EVERY:
            self._spoken = now
            self.say(self.line())

    def ended(self, result: SweepResult) -> None:
        self.stop()

    def stop(self) -> None:
        """Give the terminal back; a second call does nothing."""
        self._live.stop()

    def say(self, text: str) -> None:
        """Print a line, above the display where there is one."""
        self.console.print(Text(shown(text)), soft_wrap=True)

    def line(self) -> str:
        """Where the sweep is, in one line."""
        if self.progress is None:
            return f"{self.title} · starting"
        counts, progress = self.progress.counts(), self.progress
        words = [f"{counts['finished'] + counts['diverged']:,}/{self.total:,} done", f"{counts['running']:,} running"]
        words.append(f"{progress.grokked:,} grokked")
        words += [f"{counts[name]:,} {name}" for name in ("diverged", "failed") if counts[name]]
        left = progress.seconds_left()
        words.append(f"{progress.rate():,.3g} model-steps/s")
        words += [] if left is None else [f"{duration(left)} left"]
        return ", ".join(words)

    def _render(self) -> RenderableType:
        if self.progress is None:
            return Text(self.line())
        counts = self.progress.counts()
        ended = counts["finished"] + counts["diverged"] + counts["failed"]
        head = Table.grid(padding=(0, 2))
        head.add_row(Text(self.title, style="bold"), ProgressBar(total=self.total, completed=ended, width=30))
        rows = Table.grid(padding=(0, 2))
        for event in list(self._latest.values())[-SHOWN:]:
            rows.add_row(Text(shown(event.run_id), style="dim"), f"step {event.steps:,}", event.stage or "")
        return Group(head, Text(self.line()), rows)
