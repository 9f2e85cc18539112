"""The runs of a sweep, each a figure that opens: its sentence, its curves of accuracy, and what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from grokfast.plots.data.rows import some
from grokfast.report.figures import csv, legend, range_of
from grokfast.report.page import Figure
from grokfast.store import StoredRun
from grokfast.store.records import Record
from grokfast.store.run import DONE
from grokfast.training import Experiment
from grokfast.training.outcome import Outcome

POINTS = 100  # of a curve
_WIDTH, _HEIGHT, _LEFT, _TOP, _BELOW = 600, 170, 44, 8, 26  # of the drawing, in its own units


@dataclass(frozen=True, eq=False)
class EachRun:
    """One run: what is its own in words, its experiment, None where that cannot be read, and its evaluations so far."""

    stored: StoredRun
    own: str
    experiment: Experiment | None
    records: Sequence[Record]

    @property
    def anchor(self) -> str:
        """Where a link to it goes: its id has nothing that an address must not have."""
        return f"run-{self.stored.run_id}"

    @property
    def outcome(self) -> Outcome | None:
        if self.experiment is None:
            return None
        outcome = Outcome(self.experiment.criteria)
        for record in self.records:
            outcome.update(record)
        return outcome

    @property
    def sentence(self) -> str:
        """What happened in it, or as far as it came."""
        steps, status = self.records[-1].step if self.records else 0, self.stored.status
        outcome = self.outcome
        if outcome is None:
            return f"{status} after {steps:,} steps, of an experiment that cannot be read here"
        if status in DONE and self.stored.result is not None:
            return outcome.sentence(steps, self.stored.result["diverged_at"])
        return f"{status}" if not self.records else f"{status} after {steps:,} steps, {outcome.stage}"

    def figure(self, page: str = "") -> Figure:
        """It as a figure, closed. page: the address of its own page, if there is one."""
        body, data = Markup("<p>No evaluation has been stored.</p>"), "step\n"
        if self.records:
            picked = [self.records[i] for i in _picked(len(self.records))]
            data = csv(
                {"step": [r.step for r in picked]} | {name: [r[name] for r in picked] for name in picked[0].values}, 4
            )
            body = self._drawn(picked)
        link = Markup('<p><a href="{}">The run’s own page</a></p>').format(page) if page else Markup("")
        return Figure(
            title=f"{self.stored.run_id}: {self.own}" if self.own else self.stored.run_id,
            body=Markup('<details class="run"><summary>{}</summary><div id="{}">{}{}</div></details>').format(
                self.sentence, self.anchor, body, link
            ),
            alt=f"{self.sentence}.{self._ends()}",
            csv=data,
        )

    def _ends(self) -> str:
        if not self.records:
            return ""
        said = ", ".join(f"{name} {self.records[-1][f'{name}_accuracy']:.1%}" for name in self._splits())
        return f" Accuracy at the end: {said}."

    def _splits(self) -> list[str]:
        """Training first: those that decide when it has memorised and generalised."""
        if self.experiment is None:
            return ["train", "test"]
        return list(dict.fromkeys([self.experiment.criteria.memorize, self.experiment.criteria.generalize]))

    def _drawn(self, picked: Sequence[Record]) -> Markup:
        """Accuracy over steps, drawn by hand: matplotlib would take minutes for the runs of a large sweep."""
        steps = np.array([record.step for record in picked], dtype=np.float64)
        low = _HEIGHT - _BELOW
        at = _LEFT + (_WIDTH - _LEFT - 10) * _places(steps)
        drawing = Markup("").join(
            Markup('<line class="grid" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/>').format(_LEFT, _WIDTH - 10, y)
            + Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(_LEFT - 8, y + 4, said)
            for said, y in (("100%", _TOP), ("0%", low))
        )
        for tick in [0, *(10**k for k in range(16))]:
            if tick == steps[0] or (steps[1:2].any() and steps[1] <= tick <= steps[-1]):
                x = np.interp(tick, steps, at)
                drawing += Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{:,}</text>').format(x, low + 18, tick)
        for i, name in enumerate(self._splits()):
            values = np.nan_to_num([record[f"{name}_accuracy"] for record in picked])
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(at, low - (low - _TOP) * values.clip(0, 1)))
            drawing += Markup('<polyline points="{}" stroke="var(--c{})"/>').format(points, i)
        drawing += Markup('<line class="cursor" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>').format(
            at[-1], _TOP, low
        )
        drawing = Markup('<svg viewBox="0 0 {} {}" aria-hidden="true">{}</svg>').format(_WIDTH, _HEIGHT, drawing)
        colors = {name: f"var(--c{i})" for i, name in enumerate(self._splits())}
        control = range_of(len(picked), "step", f"step {picked[-1].step:,}")
        return Markup(
            '<div class="curves small" data-at="[{}]">{}<div class="plot scroll">{}</div>{}'
            '<dl class="readout"></dl></div>'
        ).format(",".join(f"{x:.1f}" for x in at), legend(colors), drawing, control)


def _picked(n: int) -> list[int]:
    """Of n evaluations at most POINTS: the first, the last, and between them as many early as late ones on the axis."""
    if n <= POINTS:
        return [*range(n)]
    late = np.geomspace(1, n, POINTS // 2).round().astype(np.int64) - 1
    return sorted({*late.tolist(), *some(n, POINTS - POINTS // 2)})


def _places(steps: np.ndarray) -> np.ndarray:
    """Of steps on an axis from 0 to 1, linear up to the first that is positive and logarithmic from there."""
    positive = steps[steps > 0]
    if not len(positive):
        return np.zeros_like(steps)
    first = positive[0]
    scaled = np.where(steps < first, 0.5 * steps / first, 0.5 + np.log10(np.maximum(steps, first) / first))
    return scaled / max(scaled[-1], math.ulp(1))
