"""The time to generalise against one parameter, with the power law that fits it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grokfast import text
from grokfast.analysis import PowerLaw, UndeterminedError, fit_power_law, summarize
from grokfast.analysis.power_law import symbol
from grokfast.analysis.table import ENDED, columns, order
from grokfast.plots.axes import COLORS, frame


def plot_scaling(
    table: Any,
    path: str | Path | None = None,
    *,
    x: str,
    by: str | None = None,
    over: Sequence[str] | None = None,
    title: str = "",
) -> Any:
    """Draw t_generalize of the runs of `table` (see `analysis.summarize`) against its column `x`; return `path`,
    or without one the figure.

    Both axes are logarithmic. A dot is a run, a triangle one that had not generalised when it ended, a cross one that
    diverged before, both at their last step; a circle is the Kaplan-Meier median of the runs that share `x`, with its
    95% interval, an arrow where that has no upper end. `by`, a second column, gives a colour to each of its values. The
    lines are `fit_power_law` over `over` (default: `x`, and `by` where its values are numbers), which is fitted to all
    runs, the censored ones as what they are; where the runs do not determine one, the picture says so. Other parameters
    of the law stand at their geometric means.

    Raises ValueError for a column that is not there (with the nearest name), an empty table, values of `x` that are not
    positive, more than seven values of `by`, or `over` without `x`; OSError if the file cannot be written.
    """
    from grokfast.plots.picture import Picture

    keys = [x] if by is None else [x, by]
    cells = summarize(table, by=keys)
    values = [cell.cell[x] for cell in cells]
    if wrong := [v for v in values if isinstance(v, bool) or not isinstance(v, (int, float)) or not v > 0]:
        raise ValueError(f"{x} must have positive numbers to be on a logarithmic axis, got {wrong[0]!r}")
    groups = [None] if by is None else order(cell.cell[by] for cell in cells)
    if len(groups) > len(COLORS):
        raise ValueError(f"{by} must have at most {len(COLORS)} different values, got {len(groups)}")
    if over is None:
        numeric = by is not None and all(isinstance(v, (int, float)) and v > 0 for v in groups if v is not True)
        over = keys if numeric and len(groups) > 1 else [x]
    if x not in over:
        raise ValueError(f"over must contain {x!r}, got {list(over)}")
    law, why = _law(table, over)
    runs = columns(table, (*keys, *over, "status", "t_generalize", "steps"))
    figure = Picture(12, 7, title)
    axes = figure.subplots()
    width = _width(values) / max(len(groups), 1)
    for i, (group, color) in enumerate(zip(groups, COLORS)):
        shift = math.exp(width * (i - (len(groups) - 1) / 2))
        rows = [j for j in range(len(runs[x])) if by is None or runs[by][j] == group]
        _runs(axes, runs, x, rows, shift, width, color)
        label = "" if by is None else text.label(f"{by} = {'none' if group is None else group}")
        _medians(axes, [cell for cell in cells if by is None or cell.cell[by] == group], x, shift, color, label)
        if law is not None and (by is None or by in law.exponents or i == 0):
            _line(axes, law, runs, x, {} if by is None else {by: group}, color if by in law.exponents else "0.3")
    _axes(axes, x, values)
    axes.set_title(why or _formula(law), fontsize=11, loc="left", color="0.25", parse_math=False)
    figure.legend(
        handles=_legend(axes, runs, law is not None),
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=11,
        borderpad=0,
    )
    return figure.saved(path)


def _law(table: Any, over: Sequence[str]) -> tuple[PowerLaw | None, str]:
    try:
        return fit_power_law(table, over=over), ""
    except UndeterminedError as error:
        return None, f"no power law: {error}"


def _formula(law: PowerLaw | None) -> str:
    """T ∝ D^−2.9 [−3.1, −2.7] ..., and how many of the runs it rests on."""
    assert law is not None
    terms = [
        f"{symbol(name)}^{exponent:.2f} [{law.intervals[name][0]:.2f}, {law.intervals[name][1]:.2f}]".replace("-", "−")
        for name, exponent in law.exponents.items()
    ]
    counted = f"{law.observed:,} of {law.n:,} runs generalised"
    if law.excluded:
        counted += f", {law.excluded:,} failed or unfinished"
    return f"T ∝ {' · '.join(terms)}   ({counted})"


def _runs(axes: Any, runs: dict[str, Any], x: str, rows: Sequence[int], shift: float, width: float, color: str) -> None:
    """Every ended run, spread a little sideways in its order, so that equal ones are seen."""
    seen: dict[Any, int] = {}
    kinds = [
        "" if status not in ENDED else status if t is None else "generalised"
        for status, t in zip(runs["status"], runs["t_generalize"])
    ]
    for kind, marker in (("generalised", "o"), ("finished", "^"), ("diverged", "x")):
        xs, ys = [], []
        for j in rows:
            if kinds[j] == kind:
                value = runs[x][j]
                seen[value] = seen.get(value, 0) + 1
                xs.append(value * shift * math.exp(0.35 * width * (0.618034 * seen[value] % 1 - 0.5)))
                ys.append(runs["t_generalize" if marker == "o" else "steps"][j])
        style: dict[str, Any] = {"ls": "", "ms": 4 if marker == "o" else 6, "mec": color, "mew": 0.9, "alpha": 0.5}
        axes.plot(xs, ys, marker=marker, mfc="none" if marker == "^" else color, zorder=2, **style)


def _medians(axes: Any, cells: Sequence[Any], x: str, shift: float, color: str, label: str) -> None:
    reached = [cell for cell in cells if cell.n and cell.t_generalize.reached]
    xs = [cell.cell[x] * shift for cell in reached]
    ys = [cell.t_generalize.median for cell in reached]
    axes.plot(xs, ys, "o", color=color, ms=8, mec="white", mew=1, label=label or "_nolegend_", zorder=5)
    for cell, at, median in zip(reached, xs, ys):
        time = cell.t_generalize
        top = time.high if math.isfinite(time.high) else max(time.followed, median * 1.05)
        axes.plot([at, at], [time.low, top], color=color, lw=1.6, zorder=4)
        if not math.isfinite(time.high):
            axes.plot([at], [top], "^", color=color, ms=6, zorder=4)


def _line(axes: Any, law: PowerLaw, runs: dict[str, Any], x: str, fixed: dict[str, Any], color: str) -> None:
    span = np.geomspace(min(runs[x]), max(runs[x]), 50)
    means = {name: math.exp(np.mean(np.log(np.array(runs[name], dtype=float)))) for name in law.exponents}
    at = {**means, **{name: value for name, value in fixed.items() if name in law.exponents}, x: span}
    axes.plot(span, law.predict(at), color=color, lw=1.5, ls=(0, (5, 3)), zorder=3)


def _axes(axes: Any, x: str, values: Sequence[float]) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, NullLocator

    axes.set_xscale("log")
    axes.set_yscale("log")
    if not any(np.size(line.get_ydata()) for line in axes.lines):  # no run has ended
        axes.set_xlim(min(values) / 2, max(values) * 2)
        axes.set_ylim(1, 10)
    ticks = order(values)
    if len(ticks) <= 12:
        axes.set_xticks(ticks, [f"{value:.4g}" for value in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,)))
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(text.label(x), fontsize=12)
    axes.set_ylabel("step of generalisation", fontsize=12)
    frame(axes)


def _legend(axes: Any, runs: dict[str, Any], has_law: bool) -> list[Any]:
    """The colours, and the marks that occur."""
    from matplotlib.lines import Line2D

    grey: dict[str, Any] = {"color": "0.4", "ls": ""}
    handles, _ = axes.get_legend_handles_labels()
    never = {status for status, t in zip(runs["status"], runs["t_generalize"]) if t is None}
    handles.append(Line2D([], [], marker="o", ms=4, alpha=0.6, label="a run", **grey))
    if "finished" in never:
        handles.append(Line2D([], [], marker="^", ms=6, mfc="none", label="not generalised by then", **grey))
    if "diverged" in never:
        handles.append(Line2D([], [], marker="x", ms=6, label="diverged", **grey))
    handles.append(Line2D([], [], marker="o", ms=8, mec="white", label="median, 95% interval", **grey))
    if has_law:
        handles.append(Line2D([], [], color="0.4", lw=1.5, ls=(0, (5, 3)), label="power law"))
    return handles


def _width(values: Sequence[float]) -> float:
    """How far, in log x, the runs of one value may spread: a sixth of the smallest distance between two values."""
    logs = np.log(np.array(order(values), dtype=np.float64))
    return float(np.diff(logs).min() / 6) if len(logs) > 1 else 0.2
