"""`Contest`: one task of a comparison. A search of every arm, the best point of each, and its finals, as two sweeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from grokfast import checks
from grokfast.analysis import CellSummary, summarize
from grokfast.comparison.accelerator import Accelerator
from grokfast.comparison.arms import ARMS, BASE, PUBLISHED
from grokfast.parts import fields_of
from grokfast.store.words import written
from grokfast.sweeps import PlannedSweep, SweepResult
from grokfast.sweeps.ablation import plan_each
from grokfast.text import one_line
from grokfast.training import Experiment
from grokfast.training.ensemble import Ensemble

APART = 100  # seeds between the first of the search and the first of the finals


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An arm on a task. untuned: its experiment. points: where the search looks, `{}` alone where it does not."""

    arm: Accelerator
    untuned: Experiment
    points: tuple[dict[str, Any], ...]

    @property
    def is_searched(self) -> bool:
        return bool(self.arm.space)

    @property
    def cells(self) -> list[Experiment]:
        """The experiment of each point."""
        return [self.untuned.override(point) for point in self.points]

    def words(self, i: int) -> str:
        """A point in words."""
        point = self.points[i]
        said = zip((key.rpartition(".")[2] for key in point), written([*point.values()]))
        return ", ".join(f"{name} {own}" for name, own in said) or "as published"


@dataclass(frozen=True, kw_only=True)
class Contest:
    """A task, its entries by the arms' names, `BASE` and `PUBLISHED` among them, and why the other arms are not.

    Each searched arm has `budget` runs, of budget / tuning points on the `tuning` seeds from the experiment's on; then
    the best point of every arm has `seeds` others, `APART` from these.
    """

    experiment: Experiment
    entries: dict[str, Entry]
    left_out: dict[str, str]
    tuning: int
    seeds: int

    @property
    def final_seed(self) -> int:
        """The first of the finals."""
        return self.experiment.seed + APART

    def search(self, **options: Any) -> PlannedSweep:
        """All points of all arms that are searched, each with every tuning seed. Options and errors as of `sweep`."""
        return plan_each([*self._cells()], self.tuning, **options)

    def searched(self, result: SweepResult) -> dict[str, np.ndarray]:
        """A row for each run of the search of each arm, with the columns "arm" and "point"; arms may share runs."""
        at = {cell: i for i, cell in enumerate(self._cells())}
        places = [
            (name, i, at[cell])
            for name, entry in self.entries.items()
            if entry.is_searched
            for i, cell in enumerate(entry.cells)
        ]
        return _rows(result.table(), places, self.tuning)

    def cells(self, searched: Mapping[str, Any]) -> dict[str, list[CellSummary]]:
        """What happened at each point of each arm that is searched."""
        found = {(cell.cell["arm"], cell.cell["point"]): cell for cell in summarize(searched, by=["arm", "point"])}
        return {
            name: [found[name, i] for i in range(len(entry.points))]
            for name, entry in self.entries.items()
            if entry.is_searched
        }

    def chosen(self, cells: Mapping[str, Sequence[CellSummary]]) -> dict[str, int]:
        """The number of the best point of each arm."""
        return {name: best(cells[name]) if name in cells else 0 for name in self.entries}

    def finals(self, chosen: Mapping[str, int], **options: Any) -> PlannedSweep:
        """The chosen point of every arm, with the final seeds. Options and errors as of `sweep`."""
        return plan_each([*dict.fromkeys(self._finalists(chosen).values())], self.seeds, **options)

    def table(self, chosen: Mapping[str, int], result: SweepResult) -> dict[str, np.ndarray]:
        """A row for each final run of each arm, with the columns "arm" and "point": `analysis.compare_arms` says how
        they differ."""
        finalists = self._finalists(chosen)
        at = {cell: i for i, cell in enumerate(dict.fromkeys(finalists.values()))}
        places = [(name, chosen[name], at[cell]) for name, cell in finalists.items()]
        return _rows(result.table(), places, self.seeds)

    def _cells(self) -> dict[Experiment, None]:
        """Those of the search, each once."""
        searched = [entry for entry in self.entries.values() if entry.is_searched]
        return dict.fromkeys(cell for entry in searched for cell in entry.cells)

    def _finalists(self, chosen: Mapping[str, int]) -> dict[str, Experiment]:
        seed = {"seed": self.final_seed}
        return {name: entry.cells[chosen[name]].override(seed) for name, entry in self.entries.items()}


def _rows(table: Mapping[str, np.ndarray], places: Sequence[tuple[str, int, int]], each: int) -> dict[str, np.ndarray]:
    """The rows of cells of so many runs `each`: places are an arm, its point, and the number of that one's cell."""
    rows = np.concatenate([cell * each + np.arange(each) for _, _, cell in places])
    arms, points, _ = zip(*places)
    columns = {name: column[rows] for name, column in table.items()}
    return {"arm": np.repeat(arms, each), "point": np.repeat(points, each), **columns}


def best(cells: Sequence[CellSummary]) -> int:
    """The number of the point with the least median t_generalize (Kaplan-Meier, so that runs that did not generalise
    count), of equal ones that with the largest share, and of these the first; one whose runs all failed comes last."""

    def score(i: int) -> tuple[float, ...]:
        cell = cells[i]
        return (cell.t_generalize.median, -cell.probability, i) if cell.n else (math.inf, math.inf, i)

    return min(range(len(cells)), key=score)


def contest(
    experiment: Experiment,
    arms: Sequence[str | Accelerator] | None = None,
    *,
    budget: int = 24,
    tuning: int = 3,
    seeds: int = 8,
    search_seed: int = 0,
) -> Contest:
    """The arms that apply to the experiment (names of `comparison.ARMS`, or of one's own; None: all of `ARMS`), and
    their points: which apply is found out by building their data, model and optimizer.

    Raises TypeError or ValueError for an unknown arm, and names the nearest, for one that needs a kind of part that is
    not registered, a budget that is no multiple of the tuning seeds or that an arm cannot fill, and where none is left.
    """
    if not isinstance(experiment, Experiment):
        raise TypeError(f"experiment must be an Experiment, got {checks.shown(experiment)}")
    tuning = checks.integer("tuning", tuning, minimum=1, maximum=APART)
    seeds = checks.integer("seeds", seeds, minimum=1)
    budget = checks.integer("budget", budget, minimum=1)
    if budget % tuning:
        raise ValueError(
            f"budget must be a multiple of the {tuning} tuning seeds, which each point has, got {budget}: no arm can "
            "fill it"
        )
    chosen = _chosen(arms)
    for arm in chosen.values():
        arm.check_kinds(experiment)
    entries, left_out = dict[str, Entry](), dict[str, str]()
    for name, arm in chosen.items():
        try:
            untuned = arm.of(experiment)
            for other, known in entries.items():
                if known.untuned == untuned and known.arm.space == arm.space:
                    raise ValueError(f"it is the same as {other}")
            Ensemble([untuned])
        except ValueError as error:
            if name == BASE:
                raise
            left_out[name] = one_line(error)
        else:
            points = arm.points(untuned, budget // tuning, seed=search_seed)
            entries[name] = Entry(arm=arm, untuned=untuned, points=tuple(points))
    return Contest(experiment=experiment, entries=entries, left_out=left_out, tuning=tuning, seeds=seeds)


def _chosen(arms: Sequence[str | Accelerator] | None) -> dict[str, Accelerator]:
    """By name, the two that all are compared with first."""
    if arms is not None and (isinstance(arms, (str, Accelerator)) or not isinstance(arms, Sequence)):
        raise TypeError(f"arms must be a sequence of names or of Accelerators, got {checks.shown(arms)}")
    chosen = {name: ARMS[name] for name in (BASE, PUBLISHED)}
    for one in ARMS if arms is None else arms:
        arm = one if isinstance(one, Accelerator) else ARMS[checks.choice("arms", one, ARMS)]
        if fields_of(chosen.setdefault(arm.name, arm)) != fields_of(arm):
            raise ValueError(f"arms must have different names, got two that are {arm.name!r}")
    return chosen
