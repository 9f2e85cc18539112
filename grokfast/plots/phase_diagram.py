"""The phase diagram of a sweep: how soon, how surely and in which phase, over any two axes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grokfast import text
from grokfast.analysis import CellSummary, summarize
from grokfast.analysis.bins import in_bins
from grokfast.analysis.table import column, names, order
from grokfast.store.records import STANDARD

_HATCHES = {"grokking": "", "comprehension": "..", "memorization": "///", "confusion": "xxx", "diverged": "OO"}
_NEVER = "#E8E8E8"  # not on the colour scale
_DARK, _BRIGHT = "#0a0a0b", "#fffffe"  # on a colour, where a page's theme must not turn black into white
_OUTCOME = {*STANDARD, "step", "run_id", "status", "phase", "preset", "t_memorize", "t_generalize", "diverged_at"}
_OUTCOME |= {"steps", "seconds", "collapsed"}  # columns that say what happened, not what was varied
_VALUES, _BINS = 60, 20  # an axis of more values than that is drawn in so many bins
_PANELS = 12


def plot_phase_diagram(
    table: Any,
    path: str | Path | None = None,
    *,
    x: str,
    y: str,
    by: str | None = None,
    title: str = "",
    intervals: bool = False,
) -> Any:
    """Draw the runs of `table` (see `analysis.summarize`) as cells over its columns `x` and `y`; return `path`,
    or without one the figure.

    A cell's colour is the Kaplan-Meier median step of generalisation, on a logarithmic scale; grey where half of its
    runs did not get there, with "> steps" for how long they were followed. Hatching says the phase, a run that diverged
    having its own; a cell that mixes phases is divided in proportion to its runs. The numbers are the median, and how
    many of how many runs generalised, with `intervals` the 95% Wilson interval of that probability. Cells are of one
    size however irregular the values are; numbers of more than 60 different values are put in 20 bins. `by` names a
    third column: a panel for each of its values (12 bins if there are more), all on one scale. Runs that failed or have
    not ended are not drawn; the foot of the picture counts them, and names the columns that a cell pools other than
    seeds.

    Raises ValueError for a column that is not there (with the nearest name), for an empty table, and for more than 60
    values on an axis, or 12 panels, that are no numbers; OSError if the file cannot be written.
    """
    from grokfast.plots.picture import Picture

    keys = [x, y] if by is None else [x, y, by]
    if len(set(keys)) < len(keys):
        raise ValueError(f"x, y and by must be different columns, got {', '.join(keys)}")
    most = {x: (_VALUES, _BINS), y: (_VALUES, _BINS)} | ({} if by is None else {by: (_PANELS, _PANELS)})
    found = {key: column(table, key) for key in keys}
    binned = {key: in_bins(key, found[key], most[key][1]) for key in keys if len(set(found[key])) > most[key][0]}
    cells = summarize({name: table[name] for name in names(table)} | binned, by=keys)
    xs, ys = (order(cell.cell[key] for cell in cells) for key in (x, y))
    panels = [None] if by is None else order(cell.cell[by] for cell in cells)
    columns = min(len(panels), max(1, 12 // max(len(xs), 3)))
    rows = math.ceil(len(panels) / columns)
    cell_width = max(0.16, min(1.9, (12.0 - 1.5) / (columns * len(xs)) - 0.1))
    cell_height = max(0.16, min(1.1, cell_width * 0.8, 9.0 / (rows * len(ys))))
    width = max(7.0, columns * (len(xs) * cell_width + 0.9) + 1.5)
    height = rows * (len(ys) * cell_height + (0.8 if by else 0.6)) + 1.6
    figure = Picture(width, height, title)
    grid = figure.subplots(rows, columns, squeeze=False)
    scale = _scale(cells)
    for axes, value in zip(grid.flat, panels):
        draw_phases(
            axes,
            [cell for cell in cells if by is None or cell.cell[by] == value],
            x=x,
            y=y,
            xs=xs,
            ys=ys,
            scale=scale,
            fontsize=_fontsize(cell_width, cell_height),
            intervals=intervals,
        )
        axes.label_outer(remove_inner_ticks=True)
        if by is not None:
            axes.set_title(f"{text.label(by)} = {_label(value)}", fontsize=11, loc="left")
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    if any(cell.t_generalize.reached for cell in cells):
        _color_bar(figure, grid, scale)
    _legend(figure, cells)
    notes = "\n".join(_notes(table, cells, keys, binned))
    figure.text(0.99, 0.01, notes, ha="right", fontsize=9, color="0.35", parse_math=False)
    return figure.saved(path)


def draw_phases(
    axes: Any,
    cells: Sequence[CellSummary],
    *,
    x: str,
    y: str,
    xs: Sequence[Any],
    ys: Sequence[Any],
    scale: Any,
    fontsize: float,
    intervals: bool,
) -> None:
    """Draw one panel on matplotlib `axes`; `scale` is a ScalarMappable in log₁₀ steps, no text below 6 points."""
    from matplotlib.patches import Rectangle

    for cell in cells:
        if cell.n == 0:
            continue
        left, bottom = xs.index(cell.cell[x]) - 0.5, ys.index(cell.cell[y]) - 0.5
        median = cell.t_generalize
        face = scale.to_rgba(math.log10(max(median.median, 1.0))) if median.reached else _rgba(_NEVER)
        is_bright = np.dot(face[:3], (0.2126, 0.7152, 0.0722)) > 0.45
        ink = "black" if not median.reached else _DARK if is_bright else _BRIGHT
        for phase, begin, share in _shares(cell):
            _patch(axes, left + begin, bottom, share, face, ink, _HATCHES[phase])
        if len(_shares(cell)) > 1:
            for _, begin, _share in _shares(cell)[1:]:
                axes.plot([left + begin] * 2, [bottom, bottom + 1], color=ink, lw=0.8, ls=(0, (2, 2)), zorder=3)
        axes.add_patch(Rectangle((left, bottom), 1, 1, fill=False, edgecolor="white", linewidth=1.5, zorder=3.5))
        if fontsize >= 6:
            _write(axes, left + 0.5, bottom + 0.5, cell, face, ink, fontsize, intervals)
    axes.set_xlim(-0.5, len(xs) - 0.5)
    axes.set_ylim(-0.5, len(ys) - 0.5)
    for axis, name, values, most in ((axes.xaxis, x, xs, 20), (axes.yaxis, y, ys, 30)):
        stride = math.ceil(len(values) / most)
        shown = range(0, len(values), stride)
        labels = [_label(values[i]) for i in shown]
        axis.set_ticks(list(shown), labels, fontsize=10)
        axis.set_label_text(text.label(name), fontsize=12)
        if axis is axes.xaxis and max(map(len, labels)) * len(labels) > 70:
            axes.tick_params(axis="x", rotation=60)
    axes.tick_params(length=0)
    axes.set_facecolor("white")
    axes.spines[:].set_visible(False)


def _shares(cell: CellSummary) -> list[tuple[str, float, float]]:
    """Phase, begin and width, in shares of the cell, of the phases that occur in it; the commonest first."""
    present = sorted((-count, list(_HATCHES).index(phase), phase) for phase, count in cell.phases.items() if count)
    shares, begin = [], 0.0
    for negative, _, phase in present:
        shares.append((phase, begin, -negative / cell.n))
        begin += -negative / cell.n
    return shares


def _patch(axes: Any, left: float, bottom: float, share: float, face: Any, ink: str, hatch: str) -> None:
    from matplotlib.patches import Rectangle

    style = {"facecolor": face, "edgecolor": (*_rgba(ink)[:3], 0.45), "linewidth": 0, "hatch": hatch or None}
    axes.add_patch(Rectangle((left, bottom), share, 1, zorder=2, **style))


def _write(
    axes: Any, x: float, y: float, cell: CellSummary, face: Any, ink: str, fontsize: float, intervals: bool
) -> None:
    """The median above, k/n and perhaps its interval below, on a rim of the cell's colour where it is hatched."""
    from matplotlib.patheffects import withStroke

    rim = [withStroke(linewidth=4, foreground=face)]
    counts = f"{cell.generalized}/{cell.n}"
    if intervals:
        low, high = cell.probability_interval
        counts += f"\n{100 * low:.0f}–{100 * high:.0f}%"
    style = {"color": ink, "ha": "center", "path_effects": rim, "zorder": 4}
    axes.text(x, y + 0.02, steps_label(cell), va="bottom", fontsize=fontsize, fontweight="bold", **style)
    axes.text(x, y - 0.06, counts, va="top", fontsize=0.85 * fontsize, **style)


def steps_label(cell: CellSummary) -> str:
    """The median step of generalisation as a cell says it: "1,260", ">10,000" where it was not reached, "diverged"
    where that is why it never will be."""
    time = cell.t_generalize
    if 2 * cell.phases["diverged"] > cell.n:
        return "diverged"
    step, sign = (time.median, "") if time.reached else (time.followed, ">")
    return f"{sign}{step:,.0f}" if step < 1e6 else f"{sign}{step:.2g}"


def _scale(cells: Sequence[CellSummary]) -> Any:
    """From the smallest median to the largest, at least a factor of two; viridis reversed: early is bright."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    reached = [math.log10(max(c.t_generalize.median, 1.0)) for c in cells if c.t_generalize.reached]
    low, high = (min(reached), max(reached)) if reached else (0.0, 1.0)
    margin = max(0.0, (math.log10(2) - (high - low)) / 2)
    return ScalarMappable(Normalize(low - margin, high + margin), "viridis_r")


def _color_bar(figure: Any, grid: np.ndarray, scale: Any) -> None:
    low, high = scale.norm.vmin, scale.norm.vmax
    candidates = np.outer(10.0 ** np.arange(math.floor(low), math.ceil(high) + 1), (1, 2, 5)).ravel()
    within = candidates[(candidates >= 0.999 * 10**low) & (candidates <= 1.001 * 10**high)]
    if len(within) > 8:
        within = within[np.isclose(np.log10(within) % 1, 0)]
    bar = figure.colorbar(scale, ax=grid.ravel().tolist(), aspect=30, pad=0.02)
    bar.set_ticks(np.log10(within), labels=[f"{step:,.0f}" for step in within])
    bar.set_label("median step of generalisation", fontsize=11)
    bar.outline.set_visible(False)


def _legend(figure: Any, cells: Sequence[CellSummary]) -> None:
    from matplotlib.patches import Patch

    present = [phase for phase in _HATCHES if any(cell.phases[phase] for cell in cells)]
    handles = [
        Patch(facecolor="white", edgecolor="0.3", linewidth=0.6, hatch=_HATCHES[phase], label=phase)
        for phase in present
    ]
    if any(cell.n and not cell.t_generalize.reached for cell in cells):
        handles.append(Patch(facecolor=_NEVER, edgecolor="0.3", linewidth=0.6, label="fewer than half generalised"))
    style = {"frameon": False, "fontsize": 11, "borderpad": 0.2, "handleheight": 1.4, "handlelength": 2.2}
    figure.legend(handles=handles, loc="outside lower left", ncols=3 if len(handles) > 3 else len(handles), **style)


def _notes(table: Any, cells: Sequence[CellSummary], keys: Sequence[str], binned: Iterable[str]) -> list[str]:
    """How to read the cells, and what they do not show: runs without an outcome, and what they pool."""
    said = ["k/n: runs that generalised, of all"]
    for count, what in ((sum(c.failed for c in cells), "failed"), (sum(c.unfinished for c in cells), "unfinished")):
        if count:
            said.append(f"{count:,} {what} run{'s' if count > 1 else ''} not shown")
    varied = [name for name in names(table) if name not in {*keys, *_OUTCOME} and not name.endswith("seed")]
    pooled = [name for name in varied if len(set(map(str, table[name]))) > 1]
    said += [f"{key} in bins, by their middles" for key in binned]
    if pooled:
        said.append(f"cells pool different values of {', '.join(pooled)}")
    return said


def _label(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "none" if value is None else text.label(value)
    return f"{value:,}" if isinstance(value, int) and abs(value) < 1e6 else f"{value:.4g}"


def _fontsize(width: float, height: float) -> float:
    """Points that two lines of about seven letters leave room for in a cell of these inches."""
    return min(12.0, 17.0 * width, 19.0 * height)


def _rgba(color: str) -> tuple[float, float, float, float]:
    from matplotlib.colors import to_rgba

    return to_rgba(color)
