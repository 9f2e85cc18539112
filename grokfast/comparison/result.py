"""What came out of a comparison: of every arm its search, its finals, its cost, and the two speed-ups."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grokfast.analysis import ArmSummary, CellSummary, Ratio, compare_arms
from grokfast.comparison.arms import BASE, PUBLISHED
from grokfast.comparison.contest import Contest, Entry
from grokfast.comparison.costs import Cost
from grokfast.training import Experiment
from grokfast.units import duration


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """An arm's chosen point, and what became of it.

    chosen: the number of its point. cells: what the search found at each point, none of an arm that is not searched.
    summary: of the finals, against tuned AdamW. published: the speed-up against the untuned baseline of the paper, None
    of that itself. cost: None where it was not measured.
    """

    entry: Entry
    chosen: int
    cells: Sequence[CellSummary]
    summary: ArmSummary
    published: Ratio | None
    cost: Cost | None

    @property
    def name(self) -> str:
        return self.entry.arm.name

    @property
    def speedup(self) -> Ratio | None:
        """How many times sooner, in steps, than tuned AdamW; None of that itself."""
        return None if self.summary.ratio is None else self.summary.ratio.inverse

    @property
    def seconds(self) -> float:
        """Median time to generalise of one run alone: median steps times what a step takes; infinite where the median
        was not reached, NaN where no cost was measured."""
        return math.nan if self.cost is None else self.summary.runs.t_generalize.median * self.cost.whole

    def words(self) -> dict[str, str]:
        """A row of a table: empty where there is nothing to say."""
        said = self.summary.words()
        time = "" if self.cost is None else self._time(self.cost)
        return {
            "arm": self.name,
            "chosen": self.entry.words(self.chosen),
            "generalised": said["generalised"],
            "median step": said["median step"],
            "× tuned AdamW": "" if self.speedup is None else str(self.speedup),
            "× Adam, no decay": "" if self.published is None else str(self.published),
            "p": said["p"],
            "cost": "" if self.cost is None else str(self.cost),
            "time": time,
        }

    def _time(self, cost: Cost) -> str:
        reached = math.isfinite(self.seconds)
        seconds = self.seconds if reached else self.summary.runs.t_generalize.followed * cost.whole
        if math.isnan(seconds):
            return ""
        said = f"{seconds:.2g} s" if seconds < 10 else duration(seconds)
        return said if reached else f">{said}"


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """One task of a comparison. arms: tuned AdamW first. searched, table: a row for each run of the search, and for
    each final one, of each arm. search and finals are sweeps of the store, whose runs took so many seconds in all."""

    contest: Contest
    arms: list[ArmResult]
    searched: Mapping[str, Any]
    table: Mapping[str, Any]
    search: str
    finals: str
    seconds: float

    @property
    def name(self) -> str:
        return self.contest.experiment.name


def task_result(
    contest: Contest,
    searched: Mapping[str, Any],
    table: Mapping[str, Any],
    *,
    costs: Mapping[str, Cost] | None = None,
    search: str = "",
    finals: str = "",
    seconds: float = 0.0,
) -> TaskResult:
    """The result of the runs of a contest, the costs being by the arms' names; the rest as of `TaskResult`."""
    cells = contest.cells(searched)
    chosen = contest.chosen(cells)
    column = accuracy(contest.experiment)
    published: dict[str, Ratio | None] = {}
    if PUBLISHED in contest.entries:
        published = {one.arm: one.ratio for one in compare_arms(table, base=PUBLISHED, accuracy=column)}
    arms = []
    for summary in compare_arms(table, base=BASE, accuracy=column):
        name, ratio = summary.arm, published.get(summary.arm)
        arms.append(
            ArmResult(
                entry=contest.entries[name],
                chosen=chosen[name],
                cells=cells.get(name, ()),
                summary=summary,
                published=None if ratio is None else ratio.inverse,
                cost=(costs or {}).get(name),
            )
        )
    return TaskResult(
        contest=contest, arms=arms, searched=searched, table=table, search=search, finals=finals, seconds=seconds
    )


def accuracy(experiment: Experiment) -> str:
    """The column of tables that generalising is judged by."""
    return f"{experiment.criteria.generalize}_accuracy"
