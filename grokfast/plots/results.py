"""The pictures of results, and how these show themselves in a notebook."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial, singledispatch
from html import escape
from typing import Any

import numpy as np

from grokfast import checks, parts
from grokfast.analysis import compare_arms, curves_by, summarize
from grokfast.analysis.table import ENDED
from grokfast.plots.bands import plot_bands
from grokfast.plots.curves import plot_curves
from grokfast.plots.data import plot_data
from grokfast.plots.forest import plot_forest
from grokfast.plots.phase_diagram import plot_phase_diagram
from grokfast.plots.progress import plot_progress
from grokfast.plots.scaling import plot_scaling
from grokfast.store.words import written
from grokfast.sweeps import AblationResult, SweepResult
from grokfast.text import shown
from grokfast.training import RunResult

Pictures = dict[str, Callable[..., Any]]
FIRST = ("phase diagram", "forest plot", "curves", "scaling")  # that is drawn where none is named
COLORS = 7  # groups in one picture
ROWS = 60  # of a table in a notebook


def plot_result(result: Any, what: str | None = None) -> Any:
    """The figure of a result: see `RunResult.plot`."""
    found = pictures(result)
    if not found:
        raise ValueError("there is nothing to draw: no run has ended")
    if what is None:
        what = next(name for name in FIRST if name in found)
    return found[checks.choice("what", what, found)]()


@singledispatch
def pictures(result: Any) -> Pictures:
    """What can be drawn of a result, by title; each takes a path, or returns the figure."""
    raise TypeError(f"result must be of a run, a sweep or an ablation, got {checks.shown(result)}")


@pictures.register
def _(result: RunResult) -> Pictures:
    title = f"{result.run_id or result.experiment.name}: {result.phase}"
    criteria, task, seed = result.experiment.criteria, result.experiment.task, result.experiment.seed
    found: Pictures = {}
    if "restricted_loss" in result.curves:  # by the probe `progress`
        found["progress"] = lambda path=None: plot_progress(
            result.curves, path, title=title, t_memorize=result.t_memorize, t_generalize=result.t_generalize
        )
    return found | {
        "data": lambda path=None: plot_data(
            task.build(seed=seed), path, title=parts.shown(task), labels=task.labels(seed=seed)
        ),
        "curves": lambda path=None: plot_curves(
            result.curves, path, title=title, t_memorize=result.t_memorize, t_generalize=result.t_generalize,
            threshold=criteria.threshold, memorize=criteria.memorize, generalize=criteria.generalize,
        )
    }  # fmt: skip


@pictures.register
def _(result: SweepResult) -> Pictures:
    return sweep_pictures(result, result.table())


@pictures.register
def _(result: AblationResult) -> Pictures:
    table = result.table()
    if not np.isin(table["status"], ENDED).any():
        return {}
    title = f"{result.ablation.experiment.name}: {result.ablation.seeds} seeds"
    return {"forest plot": lambda path=None: plot_forest(arms_of(result, table), path, title=title)}


def sweep_pictures(result: SweepResult, table: Mapping[str, np.ndarray]) -> Pictures:
    """A phase diagram where two or three columns vary, the time to generalise against a positive number, the curves of
    at most seven cells; none where no run of `table`, the result's, has ended."""
    if not np.isin(table["status"], ENDED).any():
        return {}
    wide = [key for key in axes_of(result, table) if len(np.unique(table[key])) > 1]
    title = result.sweep_id
    found: Pictures = {}
    if len(wide) in (2, 3):
        y, x, by = wide[0], wide[1], wide[2] if len(wide) == 3 else None
        found["phase diagram"] = partial(plot_phase_diagram, table, x=x, y=y, by=by, title=title)
    numbers = [key for key in wide if _is_positive(table[key])]
    if numbers and len(wide) <= 2:
        x, others = numbers[-1], [key for key in wide if key != numbers[-1]]
        if not others or len(np.unique(table[others[0]])) <= COLORS:
            found["scaling"] = partial(plot_scaling, table, x=x, by=others[0] if others else None, title=title)
    if len(set(zip(*(table[key].tolist() for key in wide)))) <= COLORS:
        found["curves"] = lambda path=None: plot_bands(curves_by(table, result.curves(), wide), path, title=title)
    return found


def axes_of(result: SweepResult, table: Mapping[str, np.ndarray]) -> list[str]:
    """The columns that were varied; seeds are repetitions."""
    return [key for key in result.axes if key != "seed" and key in table]


def _is_positive(column: np.ndarray) -> bool:
    return column.dtype.kind in "if" and bool((column > 0).all())


def html(result: Any) -> str:
    """A result as HTML: what happened, its first picture as an inline PNG, and its last values, or its cells."""
    said, rows = _told(result)
    image = ""
    with suppress(ValueError):  # nothing to draw yet
        png = b64encode(plot_result(result)._repr_png_()).decode()
        image = f'<img alt="" style="max-width: 100%; width: 720px" src="data:image/png;base64,{png}">'
    more = f"<p>... and {len(rows) - ROWS:,} more</p>" if len(rows) > ROWS else ""
    return f"<div><p>{_text(said)}</p>{image}{_table(rows[:ROWS])}{more}</div>"


@singledispatch
def _told(result: Any) -> tuple[str, list[dict[str, str]]]:
    """In one sentence, and the rows of a table, by column."""
    raise TypeError(f"result must be of a run, a sweep or an ablation, got {checks.shown(result)}")


@_told.register
def _(result: RunResult) -> tuple[str, list[dict[str, str]]]:
    values = {"step": result.final.step, **result.final.values}
    return f"{result.run_id or result.experiment.name}: {result.sentence}", [
        {"": name, "at the end": f"{value:.6g}"} for name, value in values.items()
    ]


@_told.register
def _(result: SweepResult) -> tuple[str, list[dict[str, str]]]:
    table = result.table()
    axes = axes_of(result, table)
    cells = [cell for cell in summarize(table, by=axes) if cell.n]
    values = (written([cell.cell[key] for key in axes]) for cell in cells)
    return _counts(result, table), [dict(zip(axes, own)) | cell.words() for own, cell in zip(values, cells)]


@_told.register
def _(result: AblationResult) -> tuple[str, list[dict[str, str]]]:
    table = result.table()
    return _counts(result, table), [{"arm": arm.arm} | arm.words() for arm in arms_of(result, table)]


def arms_of(result: AblationResult, table: Mapping[str, np.ndarray]) -> list[Any]:
    return compare_arms(table, accuracy=f"{result.ablation.experiment.criteria.generalize}_accuracy")


def _counts(result: SweepResult, table: Mapping[str, np.ndarray]) -> str:
    names, counts = np.unique(table["status"], return_counts=True)
    of_status = ", ".join(f"{n:,} {name}" for name, n in zip(names, counts))
    return f"{result.sweep_id}: {len(table['status']):,} runs, {of_status}"


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{_text(name)}</th>" for name in rows[0])
    body = "".join(f"<tr>{''.join(f'<td>{_text(value)}</td>' for value in row.values())}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _text(value: str) -> str:
    return escape(shown(value))
