"""A comparison as JSON values: the spaces and every cell of the search are there, too."""

from __future__ import annotations

import math
from typing import Any

from grokfast.analysis import CellSummary, Ratio
from grokfast.comparison.arms import BASE, PUBLISHED
from grokfast.comparison.result import ArmResult, TaskResult
from grokfast.comparison.space import Axis
from grokfast.parts import fields_of, to_plain
from grokfast.sweeps.ablation import differences


def to_dict(task: TaskResult) -> dict[str, Any]:
    """All of a task: its experiment, of every arm the space, every cell of the search, and the finals."""
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


def axis(one: Axis) -> dict[str, Any]:
    """An axis of a search space."""
    fields = {name: to_plain(own) for name, own in fields_of(one).items() if name != "relative"}
    return {"kind": type(one).__name__.lower(), **fields}


def _arm(task: TaskResult, one: ArmResult) -> dict[str, Any]:
    entry = one.entry
    plain = task.contest.entries[BASE].untuned
    return {
        "arm": one.name,
        "group": entry.arm.group,
        "about": entry.arm.about,
        "differs": to_plain(differences(plain, entry.untuned)),
        "space": {key: axis(own) for key, own in entry.arm.space_of(entry.untuned).items()},
        "cells": [
            {"point": point, "chosen": i == one.chosen, **_cell(cell)}
            for i, (point, cell) in enumerate(zip(entry.points, one.cells))
        ],
        "point": entry.points[one.chosen],
        **_cell(one.summary.runs),
        "speedup": _ratio(one.speedup),
        "speedup_on_published": _ratio(one.published),
        "p": finite(one.summary.p),
        "p_holm": finite(one.summary.p_holm),
        "cost": None if one.cost is None else one.cost.to_dict(),
        "seconds_to_generalize": finite(one.seconds),
        "runs": [str(run_id) for run_id, arm in zip(task.table["run_id"], task.table["arm"]) if arm == one.name],
    }


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
