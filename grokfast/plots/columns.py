"""The picture of any columns of a run, such as those of probes, against the step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grokfast import text
from grokfast.plots.axes import COLORS, FEW, step_axis
from grokfast.plots.curves import LINES

_PANEL, _NAME, _EDGE = 2.6, 0.25, 1.0  # inches of a panel, of each name beside it, and of all else
_DECADES = 1.5  # that values must span for a logarithmic axis


def plot_columns(
    curves: Mapping[str, np.ndarray],
    panels: Sequence[Sequence[str]],
    path: str | Path | None = None,
    *,
    title: str = "",
    moments: Sequence[int | None] = (),
) -> Any:
    """Draw columns (of `RunStore.curves`) as a PNG 1,000 pixels wide, the names of each panel together, one panel below
    the other; return its path, or without one the figure.

    The steps are on `plot_curves`' axis; values that are all positive and span more than 1.5 decades are on a
    logarithmic one. What is not finite leaves gaps. moments: steps to mark, such as those of memorising and
    generalising.

    Raises ValueError where there is no panel, one has no name, a column is missing, or there is no record; OSError if
    the file cannot be written.
    """
    from grokfast.plots.picture import Picture

    names = ["step", *(name for panel in panels for name in panel)]
    if not panels or not all(panels):
        raise ValueError(f"panels must be of one column each at least, got {[[*panel] for panel in panels]}")
    if missing := [name for name in names if name not in curves]:
        raise ValueError(f"curves must have the columns {', '.join(names)}; missing: {', '.join(missing)}")
    columns = {name: np.asarray(curves[name], dtype=np.float64) for name in names}
    steps = columns["step"]
    if not len(steps):
        raise ValueError("curves must have at least one record, got none")
    heights = [max(_PANEL, _NAME * len(panel)) for panel in panels]
    figure = Picture(10, _EDGE + sum(heights))
    how: dict[str, Any] = {"sharex": True, "squeeze": False, "gridspec_kw": {"height_ratios": heights}}
    grid = figure.subplots(len(panels), 1, **how)[:, 0]
    for axes, panel in zip(grid, panels):
        for i, name in enumerate(panel):
            color, line = COLORS[i % len(COLORS)], LINES[i // len(COLORS) % len(LINES)]
            values = np.where(np.isfinite(columns[name]), columns[name], np.nan)
            marker = "o" if np.isfinite(values).sum() <= FEW else ""
            axes.plot(steps, values, label=text.label(name), color=color, ls=line, lw=1.6, marker=marker, ms=3.5)
        for moment in moments:
            if moment is not None:
                axes.axvline(moment, color="0.6", lw=1.2, ls=(0, (4, 3)), zorder=1)
        if _is_wide(np.concatenate([columns[name] for name in panel])):
            axes.set_yscale("log")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(which="major", color="0.92", lw=0.8)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=11)
    step_axis(grid[-1], steps)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=14, fontweight="bold", parse_math=False)
    return figure.saved(path)


def _is_wide(values: np.ndarray) -> bool:
    values = values[np.isfinite(values)]
    return len(values) > 0 and values.min() > 0 and math.log10(values.max() / values.min()) > _DECADES
