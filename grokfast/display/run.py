"""The live display of `grokfast run`: where the run is, its losses and accuracies, its speed, the time left."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from grokfast import backend
from grokfast.display.curve import sparkline
from grokfast.store.records import Record
from grokfast.text import shown
from grokfast.training.ensemble import Ensemble
from grokfast.training.observer import Observer
from grokfast.training.outcome import Outcome
from grokfast.training.result import RunResult
from grokfast.units import duration

LONG = 120.0  # seconds: a longer run is announced with its expected time
ESTIMATE_AFTER = 3.0  # seconds
LINE_EVERY = 10.0  # seconds between lines where the output is no terminal


class Display(Observer):
    """Shows one run (the first of an ensemble) on `console`; plain lines at turning points where it is no terminal."""

    def __init__(self, console: Console) -> None:
        self.console, self.title, self.total = console, "", 0
        self.steps = self.first = 0
        self.begun = self._spoken = time.monotonic()
        self.record: Record | None = None
        self.stage = "memorising"
        self._accuracies: list[float] = []
        self._announced = False
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=8, transient=True)

    def started(self, ensemble: Ensemble, run_ids: Sequence[str | None]) -> None:
        experiment = ensemble.experiments[0]
        self.title = shown(run_ids[0] or experiment.name)
        self.total, self.first, self.steps = experiment.schedule.steps, ensemble.steps, ensemble.steps
        self.begun = self._spoken = time.monotonic()
        train, test = (ensemble.rows[split].targets.shape[1] for split in ("train", "test"))
        share = ensemble.coverage
        coverage = "" if share is None else f" (coverage {share:.1%} by augmentation)"
        self._say(
            f"{self.title}: {train:,} training and {test:,} test rows{coverage}, {ensemble.model.n_parameters:,} "
            f"parameters, {ensemble.device}, up to {self.total:,} steps"
        )
        self._say(f"Step: {ensemble.choice}")
        if experiment.engine == "auto" and backend.extension() is None:
            self._say(f"On plain PyTorch, about half as fast on a CPU: {backend.why_no_extension()}")
        if self.console.is_terminal:
            self._live.start()

    def stepped(self, steps: int) -> None:
        self.steps = steps
        if self._announced or time.monotonic() - self.begun < ESTIMATE_AFTER:
            return
        self._announced = True
        if self.seconds_left() > LONG:
            self._say(
                f"This machine does {self.rate():.3g} steps/s: all {self.total:,} steps take about "
                f"{duration(self.seconds_left())}. Ctrl-C saves; --resume goes on."
            )

    def recorded(self, run: int, record: Record, outcome: Outcome) -> None:
        if run != 0:
            return
        self.record, before, self.stage = record, self.stage, outcome.stage
        self._accuracies.append(record[f"{outcome.criteria.generalize}_accuracy"])
        now = time.monotonic()
        if not self.console.is_terminal and (self.stage != before or now - self._spoken >= LINE_EVERY):
            self._spoken = now
            self._say(
                f"step {record.step:>6,} {self.stage:<12} loss {record['train_loss']:.2e} train "
                f"{record['test_loss']:.2e} test, accuracy {record['train_accuracy']:.1%} train "
                f"{record['test_accuracy']:.1%} test"
            )

    def finished(self, run: int, result: RunResult) -> None:
        if run == 0:
            self.stop()

    def stop(self) -> None:
        """Give the terminal back; a second call does nothing."""
        self._live.stop()

    def _say(self, text: str) -> None:
        self.console.print(Text(shown(text)), soft_wrap=True)

    def rate(self) -> float:
        """Steps per second since the start."""
        return (self.steps - self.first) / max(time.monotonic() - self.begun, 1e-9)

    def seconds_left(self) -> float:
        return (self.total - self.steps) / max(self.rate(), 1e-9)

    def _render(self) -> RenderableType:
        if self.record is None:
            return Text(f"{self.title} · starting")
        head = Table.grid(padding=(0, 2))
        head.add_row(
            Text(self.title, style="bold"),
            ProgressBar(total=self.total, completed=self.steps, width=30),
            f"{self.steps:,}/{self.total:,}",
            f"{self.rate():,.3g} steps/s",
            f"{duration(self.seconds_left())} left",
        )
        body = Table.grid(padding=(0, 2))
        record = self.record
        body.add_row("", Text("loss", style="dim"), Text("accuracy", style="dim"), "")
        body.add_row("train", f"{record['train_loss']:.2e}", f"{record['train_accuracy']:.1%}", "")
        spark = Text(sparkline(self._accuracies, 40), style="green")
        body.add_row("test", f"{record['test_loss']:.2e}", f"{record['test_accuracy']:.1%}", spark)
        return Group(head, body, Text(self.stage, style="bold yellow"))
