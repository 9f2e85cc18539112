"""The pictures of a sweep's page: phase diagram, forest plot, Kaplan-Meier curves, scaling, accuracy by cell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from grokfast.analysis import Incidence, curves_by, incidence, summarize
from grokfast.analysis.bins import in_bins
from grokfast.analysis.table import order
from grokfast.plots import plot_bands, plot_forest, plot_phase_diagram, plot_shares, plot_survival
from grokfast.plots.bands import held
from grokfast.plots.data.rows import some
from grokfast.plots.results import COLORS, arms_of, sweep_pictures
from grokfast.plots.shares import share_at
from grokfast.report.figures import csv, curves, svg
from grokfast.report.page import Figure
from grokfast.report.swept import Swept
from grokfast.report.tables import csv_of, soonest, value_of, whole
from grokfast.sweeps import AblationResult

KAPLAN_MEIER = (
    "The share of runs that had generalised by each step, as Kaplan and Meier estimate it, with its pointwise 95% "
    "interval. A tick is a run that was given up without having generalised."
)
EVALUATIONS = 300  # of a run, in curves of many


def phase_diagram(swept: Swept) -> Figure:
    """The cells over two columns, in panels over a third."""
    y, x = swept.wide[:2]
    figure = plot_phase_diagram(swept.table, x=x, y=y, by=swept.wide[2] if swept.wide[2:] else None)
    found = [cell for cell in summarize(swept.table, by=swept.wide) if cell.n]
    over = " and ".join(swept.names(swept.wide))
    return Figure(
        "Phase diagram", svg(figure), f"Cells over {over}. {soonest(found, swept)}", csv_of(found, swept.wide),
        "Numbers: the median step of generalisation, and how many of how many runs generalised. Hatched: the phase "
        "that the runs ended in.",
    )  # fmt: skip


def forest(swept: Swept) -> Figure:
    """When each arm generalises, beside the base."""
    assert isinstance(swept.result, AblationResult)
    found = arms_of(swept.result, swept.table)
    rows = [{"arm": arm.arm, **arm.words()} for arm in found]
    sure = [arm.arm for arm in found if arm.p_holm is not None and arm.p_holm < 0.05]
    return Figure(
        "Forest plot", svg(plot_forest(found)),
        f"Median steps of generalisation of {len(found)} arms, the base’s being {found[0].runs.t_generalize}. "
        f"Different from it, p < 0.05: {', '.join(sure) or 'none'}.",
        csv({name: [row[name] for row in rows] for name in rows[0]}),
        "A square is an arm’s median step, the line its 95% interval, an arrow what was not reached.",
    )  # fmt: skip


def shares(swept: Swept, key: str | None) -> Figure:
    """Kaplan-Meier curves by the values of one column, all others pooled; of all runs where it is None.

    Raises ValueError for more values than colours that are no numbers.
    """
    values = ["all runs"] * len(swept.table["status"]) if key is None else swept.table[key].tolist()
    is_binned = key is not None and len(set(values)) > COLORS
    if is_binned:
        values = in_bins(str(key), values, COLORS)
    of = incidence(swept.table | {"group": np.array([str(value_of(value)) for value in values])}, by="group")
    found = {name: of[name] for name in map(str, map(value_of, order(values))) if name in of}
    steps = _steps(found)
    others = [name for name in swept.wide if name != key]
    said = [f"Pooled: all values of {', '.join(others)}."] if others else []
    said += ["The values are in bins, named by their middles."] if is_binned else []
    return Figure(
        "Share that has generalised" + (f", by {key}" if key else ""), curves(plot_shares(found), steps),
        f"Rising lines. Generalised at the end: {_ends(found)}.", csv(_columns(found, steps), digits=3), " ".join(said),
    )  # fmt: skip


def survival(swept: Swept) -> Figure:
    """Kaplan-Meier curves of an ablation's arms, each beside the base."""
    assert isinstance(swept.result, AblationResult)
    found = incidence(swept.table)
    base = next(iter(swept.result.ablation.arms))
    steps = _steps(found)
    return Figure(
        "Share that has generalised, by arm", svg(plot_survival(found, base=base)),
        f"A panel for each arm. Generalised at the end: {_ends(found)}.", csv(_columns(found, steps), digits=3),
    )  # fmt: skip


def scaling(swept: Swept) -> Figure | None:
    """The time to generalise against a positive number that was varied."""
    picture = sweep_pictures(swept.result, swept.table).get("scaling")
    if picture is None:
        return None
    figure = picture()
    figure.suptitle("")
    found = [cell for cell in summarize(swept.table, by=swept.wide) if cell.n]
    said = figure.axes[0].get_title(loc="left").replace("$", "")
    return Figure(
        "Scaling", svg(figure), f"Steps of generalisation against {figure.axes[0].get_xlabel()}: {said}.",
        csv_of(found, swept.wide),
    )  # fmt: skip


def bands(swept: Swept) -> Figure | None:
    """Accuracy of the runs of each cell, where there are few."""
    grouped = curves_by(swept.table, swept.curves, swept.wide)
    if not 1 <= len(grouped) <= COLORS:
        return None
    grouped = {name: [_thinned(run) for run in own] for name, own in grouped.items()}
    every = [run["step"] for own in grouped.values() for run in own]
    steps = np.unique(np.concatenate(every))
    steps = steps[steps >= max(own[0] for own in every)]
    steps = steps[some(len(steps), EVALUATIONS)]
    columns: dict[str, Any] = {"step": steps}
    for name, own in grouped.items():
        for split in ("train", "test"):
            columns[f"{name}: {split}"] = np.nanmedian(held(own, f"{split}_accuracy", steps), axis=0)
    ends = ", ".join(f"{name} {values[-1]:.1%}" for name, values in columns.items() if name != "step")
    return Figure(
        "Accuracy", curves(plot_bands(grouped), steps), f"Median accuracies at the last step: {ends}.",
        csv(columns, digits=4), "The data are the medians.",
    )  # fmt: skip


def _thinned(run: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    rows = some(len(run["step"]), EVALUATIONS)
    return {name: column[rows] for name, column in run.items()}


def _steps(found: Mapping[str, Incidence]) -> np.ndarray:
    """All at which a curve rises or ends, without step 0."""
    return np.unique(np.concatenate([curve.steps[curve.steps > 0] for curve in found.values()]))


def _columns(found: Mapping[str, Incidence], steps: np.ndarray) -> dict[str, Any]:
    return {"step": whole(steps)} | {name: share_at(curve, steps) for name, curve in found.items()}


def _ends(found: Mapping[str, Incidence]) -> str:
    return ", ".join(f"{name} {curve.share[-1]:.0%}" for name, curve in found.items())
