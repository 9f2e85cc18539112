"""The tables of a sweep's page, and what is said of it in a sentence."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from markupsafe import Markup

from grokfast.analysis import CellSummary, MedianTime, summarize
from grokfast.analysis.table import ENDED
from grokfast.plots.results import arms_of
from grokfast.report.figures import Told, csv, table
from grokfast.report.page import Figure
from grokfast.report.swept import Swept
from grokfast.store.table import TIMES
from grokfast.store.words import written
from grokfast.sweeps import AblationResult

COUNTED = (
    "Medians are Kaplan and Meier’s: a run that had not generalised counts as one that takes longer than it was "
    "followed. Shares have Wilson’s 95% interval."
)
_NEVER = math.inf  # sorts what there is not last


def lead(swept: Swept) -> str:
    """How many runs of what, how they ended, and how many generalised."""
    status = swept.table["status"]
    n, ended = len(status), np.isin(status, ENDED)
    names, counts = np.unique(status[~ended | (status == "diverged")], return_counts=True)
    others = "".join(f", {count:,} {name}" for name, count in zip(names.tolist(), counts.tolist()))
    generalised = int((~np.isnan(swept.table["t_generalize"]) & ended).sum())
    over = ""
    if isinstance(swept.result, AblationResult):
        ablation = swept.result.ablation
        over = f" of {len(ablation.arms)} arms with {ablation.seeds} seeds each"
    elif swept.varied:
        *first, last = swept.varied
        over = f" over {', '.join(first)} and {last}" if first else f" over {last}"
    what = f"{n:,} run{'s' if n != 1 else ''}{over}{others}."
    return f"{what} {generalised:,} of the {int(ended.sum()):,} that have ended generalised." if ended.any() else what


def varied(swept: Swept) -> Figure:
    """What was varied, and its values; of an ablation what its arms are."""
    axes = swept.stored.axes
    if isinstance(swept.result, AblationResult):
        ablation = swept.result.ablation
        differs = {name: ablation.differences(name) for name in ablation.arms}
        columns: dict[str, list[Any]] = {
            "arm": [*ablation.arms],
            "what differs": [
                ", ".join(f"{key} = {value}" for key, value in zip(own, written([*own.values()])))
                for own in differs.values()
            ],
            "about": [arm.about for arm, _ in ablation.arms.values()],
        }
        said = "; ".join(f"{name}: {what or 'as it is'}" for name, what in zip(differs, columns["what differs"]))
    else:
        columns = {
            "option": [*axes],
            "values": [", ".join(written(values, swept.stored.base.get(key))) for key, values in axes.items()],
            "number": [len(values) for values in axes.values()],
        }
        said = "; ".join(f"{key}: {values}" for key, values in zip(columns["option"], columns["values"]))
    how = swept.stored.grid
    kind = f"{how['random']:,} combinations, drawn at random." if how.get("random") else "All combinations."
    if isinstance(swept.result, AblationResult):
        kind = "All else is as in the base."
    elif how.get("zip"):
        kind = "The first values of all options together, the second, and so on."
    return Figure("Options and values", table(columns), said or "nothing", csv(columns), kind)


def of_cells(swept: Swept) -> Figure:
    """A row for each cell."""
    found = [cell for cell in summarize(swept.table, by=swept.varied) if cell.n or cell.failed or cell.unfinished]
    values: dict[str, list[Any]] = {
        name: [value_of(cell.cell[key]) for cell in found] for name, key in zip(swept.names(swept.varied), swept.varied)
    }
    rows: dict[str, list[Any]] = {
        "generalised": [Told.of(f"{cell.generalized} of {cell.n}", cell.generalized) for cell in found],
        "share": [_percent(cell.probability) for cell in found],
        "95%": ["–".join(f"{100 * p:.0f}" for p in cell.probability_interval) if cell.n else "" for cell in found],
        "median step": [_step(cell.t_generalize) for cell in found],
        "its 95%": [_interval(cell.t_generalize) for cell in found],
        "phase": [cell.phase or "" for cell in found],
    }
    for name in ("failed", "unfinished"):
        if any(counts := [getattr(cell, name) for cell in found]):
            rows[name] = counts
    return Figure(
        "Cells", table(values | rows if values else {"": ["all runs"]} | rows, sortable=True),
        f"A table of {len(found)} cells. {soonest(found, swept)}", csv_of(found, swept.varied),
        "A cell is all runs that share the values. Median step: of generalisation; > where fewer than half of the runs "
        "had generalised by then. A click on a column sorts by it.",
    )  # fmt: skip


def arms(swept: Swept) -> Figure:
    """A row for each arm of an ablation, beside the base."""
    assert isinstance(swept.result, AblationResult)
    found = arms_of(swept.result, swept.table)
    words = [arm.words() for arm in found]
    rows: dict[str, list[Any]] = {"arm": [arm.arm for arm in found]} | {
        name: [row[name] for row in words] for name in words[0]
    }
    rows["median step"] = [Told.of(arm.runs.t_generalize, _or_never(arm.runs.t_generalize.median)) for arm in found]
    return Figure(
        "Arms", table(rows, sortable=True), f"A table of {len(found)} arms: {_said(rows)}", csv(rows),
        "× base: the quotient of an arm’s median to the base’s, with its interval from a bootstrap over seeds, a "
        "seed’s two runs together. p: log-rank test against the base, with Holm’s correction for all arms. accuracy: "
        "the median of it at the end.",
    )  # fmt: skip


def runs(swept: Swept, anchors: dict[str, str]) -> Figure:
    """A row for each run, with a link to it."""
    found, ids = swept.table, swept.table["run_id"].tolist()
    link = Markup('<a href="#{}">{}</a>')
    rows: dict[str, Any] = {"run": [link.format(anchors[own], own) if own in anchors else own for own in ids]}
    keys = [*dict.fromkeys([*swept.varied, "seed"])]
    rows |= {name: [value_of(value) for value in found[key].tolist()] for name, key in zip(swept.names(keys), keys)}
    rows |= {name: found[name] for name in ("status", "phase")}
    for name, key in (("memorised", "t_memorize"), ("generalised", "t_generalize")):
        rows[name] = [Told.of(f"{t:,.0f}", t) if t == t else Told.of("–", _NEVER) for t in found[key].tolist()]
    rows["steps"] = found["steps"]
    for key in ("train_accuracy", "test_accuracy"):
        rows[key.replace("_", " ")] = [_percent(own) for own in found[key].tolist()]
    rows["test loss"] = [
        Told.of(f"{own:.3g}", own) if own == own else Told.of("–", _NEVER) for own in found["test_loss"].tolist()
    ]
    return Figure(
        "Runs", table(rows, sortable=True), f"A table of {len(ids)} runs, with a link to each. {lead(swept)}",
        csv(found | {key: whole(found[key]) for key in TIMES}),
        "memorised, generalised: the steps. The download has every column.",
    )  # fmt: skip


def soonest(found: list[CellSummary], swept: Swept) -> str:
    """Where it generalises first, in a sentence."""
    reached = [cell for cell in found if cell.n and cell.t_generalize.reached]
    if not reached:
        return "In none of them did half of the runs generalise."
    first = min(reached, key=lambda cell: cell.t_generalize.median)
    at = ", ".join(f"{name} {value_of(first.cell[key])}" for name, key in zip(swept.names(swept.varied), swept.varied))
    where = f" at {at}" if at else ""
    return (
        f"In {len(reached)} of {len(found)} at least half of the runs generalised, soonest{where}: "
        f"median step {first.t_generalize}."
    )


def csv_of(found: list[CellSummary], varied: list[str]) -> str:
    columns: dict[str, list[Any]] = {key: [value_of(cell.cell[key]) for cell in found] for key in varied}
    columns |= {name: [getattr(cell, name) for cell in found] for name in ("n", "generalized", "probability")}
    for i, name in enumerate(("probability_low", "probability_high")):
        columns[name] = [cell.probability_interval[i] for cell in found]
    for name in ("median", "low", "high", "followed"):
        columns[f"t_generalize_{name}"] = whole([getattr(cell.t_generalize, name) for cell in found])
    columns["phase"] = [cell.phase or "" for cell in found]
    columns |= {name: [getattr(cell, name) for cell in found] for name in ("diverged", "failed", "unfinished")}
    return csv(columns)


def whole(steps: Iterable[float]) -> list[Any]:
    """Steps that are whole numbers as such: a CSV must not round them."""
    return [int(step) if float(step).is_integer() else step for step in steps]


def value_of(value: Any) -> Any:
    """A value of an axis: a number as it is, all else as it is written down."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
    return Told.of(f"{value:.12g}", value) if is_number else written([value])[0]


def _step(time: MedianTime) -> Any:
    if not time.n:
        return Told.of("–", _NEVER)
    return Told.of(f"{time.median:,.0f}" if time.reached else f"> {time.followed:,.0f}", _or_never(time.median))


def _interval(time: MedianTime) -> str:
    if not time.n or not math.isfinite(time.low):
        return ""
    high = f"{time.high:,.0f}" if math.isfinite(time.high) else f"> {time.followed:,.0f}"
    return f"{time.low:,.0f} to {high}".replace(" ", "\u00a0")


def _or_never(step: float) -> float:
    return step if math.isfinite(step) else _NEVER


def _percent(share: float) -> Told:
    return Told.of(f"{share:.1%}", share) if share == share else Told.of("–", -1)


def _said(rows: dict[str, list[Any]]) -> str:
    return "; ".join(f"{arm} {median}" for arm, median in zip(rows["arm"], rows["median step"])) + "."
