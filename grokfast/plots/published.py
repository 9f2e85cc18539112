"""What a paper says beside what is found: steps of generalisation in groups, each beside its own baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grokfast import text
from grokfast.analysis import MedianTime
from grokfast.plots.axes import frame

_COLORS = ("#0072B2", "#D55E00", "#009E73")  # of Okabe and Ito, a group each
_CLAIM = "0.2"
_ROW, _EDGE = 0.42, 1.7  # inches of a row, and of all else
_APART = 0.2  # rows between a median, what is published above it, and the seeds below it


@dataclass(frozen=True, kw_only=True)
class Beside:
    """An arm. time: its median step; runs: of each seed how far it was followed, and whether it generalised then;
    published: the step of the paper, None where it has none; note: what is written on the right."""

    name: str
    time: MedianTime
    runs: Sequence[tuple[float, bool]]
    published: float | None = None
    note: str = ""


def plot_published(
    groups: Mapping[str, Sequence[Beside]], path: str | Path | None = None, *, title: str = "", threshold: float = 0.99
) -> Any:
    """Draw groups of arms, the first of each being its baseline, as a PNG 1,200 pixels wide; return `path`, or without
    one the figure.

    A row is an arm, on a logarithmic axis of steps: a hollow circle where the paper has it; a square at the median, a
    line over its 95% interval; below them a dot for each seed. What was not reached is an arrow at the last step that
    a run was followed. The baseline's median is a line through its group.

    Raises ValueError if there is no group, more than three, or one is empty; OSError if the file cannot be written.
    """
    from grokfast.plots.picture import Picture

    if not 1 <= len(groups) <= len(_COLORS):
        raise ValueError(f"groups must be 1 to {len(_COLORS)}, got {len(groups)}")
    if empty := [name for name, rows in groups.items() if not rows]:
        raise ValueError(f"groups must have an arm each; without one: {', '.join(empty)}")
    n = sum(len(rows) + 1 for rows in groups.values())
    figure = Picture(12, _EDGE + _ROW * n, title)
    axes = figure.subplots()
    at, places = 0, dict[int, str]()
    for (name, rows), color in zip(groups.items(), _COLORS):
        axes.text(
            0.005, at, text.label(name), fontsize=11, fontweight="bold", va="center", color=color,
            transform=axes.get_yaxis_transform(),
        )  # fmt: skip
        base = rows[0].time
        if base.reached:
            axes.plot([base.median] * 2, [at + 0.5, at + len(rows) + 0.5], color=color, lw=1, ls=(0, (4, 3)), zorder=1)
        for i, row in enumerate(rows, at + 1):
            places[i] = text.label(row.name)
            _row(axes, i, row, color)
        at += len(rows) + 1
    _axes(axes, places, n, [row for rows in groups.values() for row in rows])
    axes.set_xlabel(f"step of {threshold:.0%} test accuracy", fontsize=12)
    figure.legend(handles=_legend(), loc="outside lower center", ncols=4, frameon=False, fontsize=11, borderpad=0)
    return figure.saved(path)


def _row(axes: Any, at: int, row: Beside, color: str) -> None:
    axes.text(1.01, at, row.note, va="center", fontsize=10, color="0.25", transform=axes.get_yaxis_transform())
    if row.published is not None:
        axes.plot([row.published], [at - _APART], "o", color=_CLAIM, ms=8, mfc="white", mew=1.5, zorder=6)
    for reached, marker in ((True, "o"), (False, ">")):
        steps = [max(step, 1) for step, own in row.runs if own == reached]
        axes.plot(steps, [at + _APART] * len(steps), marker, color=color, ms=5, alpha=0.6, mew=0, zorder=4)
    time = row.time
    if not time.n:
        return
    low, high = (step if math.isfinite(step) else time.followed for step in (time.low, time.high))
    axes.plot([low, high], [at, at], color=color, lw=2, solid_capstyle="butt", zorder=3)
    if not math.isfinite(time.high):
        axes.plot([high], [at], ">", color=color, ms=7, mfc=color if time.reached else "white", zorder=4)
    if time.reached:
        axes.plot([time.median], [at], "s", color=color, ms=7, mec="white", mew=0.8, zorder=5)


def _axes(axes: Any, places: Mapping[int, str], n: int, rows: Sequence[Beside]) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    ends = [step for row in rows for step in (*(own for own, _ in row.runs), row.published or 0) if step > 0] or [1, 10]
    low, high = min(ends), max(ends)
    axes.set_xscale("log")
    axes.set_xlim(low / 1.3, high * 1.3)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks([*places], [*places.values()], fontsize=11)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(n - 0.4, -0.6)
    frame(axes, "x")
    axes.set_axisbelow(True)


def _legend() -> list[Any]:
    from matplotlib.lines import Line2D

    own = "0.4"
    return [
        Line2D([], [], color=_CLAIM, ls="", marker="o", ms=8, mfc="white", mew=1.5, label="published, one seed"),
        Line2D([], [], color=own, lw=2, marker="s", ms=7, mec="white", label="here: median, 95% interval"),
        Line2D([], [], color=own, ls="", marker="o", ms=5, alpha=0.6, mew=0, label="a seed"),
        Line2D([], [], color=own, ls="", marker=">", ms=7, mfc="white", label="not reached by then"),
    ]
