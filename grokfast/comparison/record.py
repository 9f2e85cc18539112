"""A comparison as JSON values, and back: the spaces, every run of the search and every final one are there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from grokfast.analysis import CellSummary, Ratio
from grokfast.comparison.accelerator import PLAIN, Accelerator
from grokfast.comparison.arms import BASE, PUBLISHED
from grokfast.comparison.contest import Contest, Entry
from grokfast.comparison.costs import Cost
from grokfast.comparison.result import ArmResult, TaskResult, accuracy, task_result
from grokfast.comparison.space import Among, Axis, Log
from grokfast.parts import fields_of, to_plain
from grokfast.sweeps.ablation import differences
from grokfast.text import one_line
from grokfast.training import Experiment

RUN = ("run_id", "seed", "status", "phase", "t_memorize", "t_generalize", "steps", "collapsed")  # columns of a run


def to_dict(task: TaskResult) -> dict[str, Any]:
    """All of a task: its experiment, of every arm the space, every run of the search, and the finals."""
    contest, experiment = task.contest, task.contest.experiment
    return {
        "task": task.name,
        "experiment": experiment.to_dict(),
        "threshold": experiment.criteria.threshold,
        "steps": experiment.schedule.steps,
        "tuning_seeds": [experiment.seed + i for i in range(contest.tuning)],
        "final_seeds": [contest.final_seed + i for i in range(contest.seeds)],
        "search": task.search,
        "finals": task.finals,
        "seconds": task.seconds,
        "baseline": BASE,
        "published_baseline": PUBLISHED if PUBLISHED in contest.entries else None,
        "arms": [_arm(task, one) for one in task.arms],
        "left_out": contest.left_out,
    }


def from_dict(values: Mapping[str, Any]) -> TaskResult:
    """The way back from `to_dict`. Raises ValueError where that did not make it."""
    try:
        return _task(values)
    except (KeyError, IndexError, AttributeError, TypeError, ValueError) as error:
        said = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else one_line(error)
        raise ValueError(f"the record of a task of a comparison cannot be read: {said}") from error


def _task(values: Mapping[str, Any]) -> TaskResult:
    experiment, arms = Experiment.from_dict(values["experiment"]), values["arms"]
    contest = Contest(
        experiment=experiment,
        entries={one["arm"]: _entry(experiment, one) for one in arms},
        left_out={**values["left_out"]},
        tuning=len(values["tuning_seeds"]),
        seeds=len(values["final_seeds"]),
    )
    columns = ("arm", "point", *RUN, accuracy(experiment))
    searched = [
        {"arm": one["arm"], "point": i, **run}
        for one in arms
        for i, cell in enumerate(one["cells"])
        for run in cell["runs"]
    ]
    finals = [{"arm": one["arm"], "point": one["chosen"], **run} for one in arms for run in one["runs"]]
    return task_result(
        contest,
        {name: [run[name] for run in searched] for name in columns},
        {name: [run[name] for run in finals] for name in columns},
        costs={one["arm"]: Cost(**one["cost"]) for one in arms if one["cost"] is not None},
        **{name: values[name] for name in ("search", "finals", "seconds")},
    )


def _entry(experiment: Experiment, one: Mapping[str, Any]) -> Entry:
    arm = Accelerator(  # of its changes the parts are known that they led to
        name=one["arm"],
        group=one["group"],
        about=one["about"],
        changes=one["untuned"],
        space={key: _axis(**own) for key, own in one["space"].items()},
    )
    points = [cell["point"] for cell in one["cells"]] or [{}]
    return Entry(
        arm=arm,
        untuned=Experiment.from_dict({**experiment.override(PLAIN).to_dict(), **one["untuned"]}),
        points=tuple({key: _tuples(own) for key, own in point.items()} for point in points),
    )


def _axis(kind: str, **fields: Any) -> Axis:
    return Log(**fields) if kind == "log" else Among(*map(_tuples, fields["values"]))


def _tuples(value: Any) -> Any:
    """JSON's lists as what points have."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def axis(one: Axis) -> dict[str, Any]:
    """An axis of a search space."""
    fields = {name: to_plain(own) for name, own in fields_of(one).items() if name != "relative"}
    return {"kind": type(one).__name__.lower(), **fields}


def _arm(task: TaskResult, one: ArmResult) -> dict[str, Any]:
    entry = one.entry
    plain, start = task.contest.entries[BASE].untuned, task.contest.experiment.override(PLAIN).to_dict()
    return {
        "arm": one.name,
        "group": entry.arm.group,
        "about": entry.arm.about,
        "differs": to_plain(differences(plain, entry.untuned)),
        "untuned": {key: own for key, own in entry.untuned.to_dict().items() if own != start[key]},
        "space": {key: axis(own) for key, own in entry.arm.space_of(entry.untuned).items()},
        "cells": [
            {"point": entry.points[i], "chosen": i == one.chosen, **_cell(cell), "runs": _runs(task.searched, one, i)}
            for i, cell in enumerate(one.cells)
        ],
        "chosen": one.chosen,
        "point": entry.points[one.chosen],
        **_cell(one.summary.runs),
        "speedup": _ratio(one.speedup),
        "speedup_on_published": _ratio(one.published),
        "p": finite(one.summary.p),
        "p_holm": finite(one.summary.p_holm),
        "cost": None if one.cost is None else one.cost.to_dict(),
        "seconds_to_generalize": finite(one.seconds),
        "runs": _runs(task.table, one, one.chosen),
    }


def _runs(table: Mapping[str, Any], one: ArmResult, point: int) -> list[dict[str, Any]]:
    """The runs of a point."""
    names = (*RUN, accuracy(one.entry.untuned))
    rows = zip(_plain(table["arm"]), _plain(table["point"]), *(_plain(table[name]) for name in names))
    return [dict(zip(names, values)) for arm, at, *values in rows if (arm, at) == (one.name, point)]


def _plain(column: Sequence[Any] | np.ndarray) -> list[Any]:
    """Values of a column as JSON has them: steps are whole, what is not known is None."""
    values = column.tolist() if isinstance(column, np.ndarray) else column
    return [
        value if not isinstance(value, float) else int(value) if value.is_integer() else finite(value)
        for value in values
    ]


def _cell(cell: CellSummary) -> dict[str, Any]:
    time = cell.t_generalize
    return {
        "n": cell.n,
        "generalized": cell.generalized,
        "probability_interval": [*cell.probability_interval],
        "t_generalize": [finite(t) for t in (time.median, time.low, time.high)],
        "followed": finite(time.followed),
        "diverged": cell.diverged,
        "failed": cell.failed,
    }


def _ratio(ratio: Ratio | None) -> dict[str, Any] | None:
    if ratio is None:
        return None
    return {
        "value": finite(ratio.value),
        "interval": [finite(ratio.low), finite(ratio.high)],
        "text": str(ratio),
        "both_generalized": ratio.pairs,
    }


def finite(value: float | None) -> float | None:
    """None for what JSON has no number for."""
    return value if value is not None and math.isfinite(value) else None
