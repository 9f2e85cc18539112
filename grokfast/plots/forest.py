"""The forest plot of an ablation: when each arm generalises, beside the base."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grokfast import text
from grokfast.analysis import ArmSummary
from grokfast.plots.axes import frame

_BASE, _ARM, _SURE = "0.35", "#56B4E9", "#0072B2"  # of Okabe and Ito
_ROW, _EDGE = 0.32, 1.6  # inches of an arm, and of all else


def plot_forest(
    arms: Sequence[ArmSummary], path: str | Path | None = None, *, title: str = "", level: float = 0.05
) -> Any:
    """Draw the arms that `analysis.compare_arms` returns, the base first, as a PNG 1,200 pixels wide; return
    `path`, or without one the figure.

    A row is an arm: a square at its median step of generalisation, a line over the 95% interval, on a logarithmic axis,
    the base's median and interval as a line and a band through all rows. What was not reached is an arrow at the last
    step that a run was followed. Arms whose p_holm is below `level` are dark. On the right: how many runs generalised,
    and the quotient to the base.

    Raises ValueError if there is no arm, OSError if the file cannot be written.
    """
    from grokfast.plots.picture import Picture

    if not arms:
        raise ValueError("arms must be at least one, got none")
    figure = Picture(12, _EDGE + _ROW * len(arms), title)
    axes = figure.subplots()
    base = arms[0].runs.t_generalize
    if base.n and base.reached:
        axes.axvline(base.median, color=_BASE, lw=1, ls=(0, (4, 3)), zorder=1)
    if base.n and base.low < math.inf:
        axes.axvspan(base.low, min(base.high, max(base.followed, base.low)), color="0.93", lw=0, zorder=0)
    for row, arm in enumerate(arms):
        is_sure = arm.p_holm is not None and arm.p_holm < level
        _arm(axes, row, arm, _BASE if row == 0 else _SURE if is_sure else _ARM)
    _axes(axes, arms)
    figure.legend(handles=_legend(level), loc="outside lower center", ncols=4, frameon=False, fontsize=11, borderpad=0)
    return figure.saved(path)


def _arm(axes: Any, row: int, arm: ArmSummary, color: str) -> None:
    time = arm.runs.t_generalize
    note = f"{arm.runs.generalized} of {arm.runs.n}" + ("" if arm.ratio is None else f"   × {arm.ratio}")
    axes.text(1.01, row, note, va="center", fontsize=10, color="0.25", transform=axes.get_yaxis_transform())
    if not time.n:
        return
    end = max(_place(time.followed), _place(time.low)) if math.isfinite(time.low) else _place(time.followed)
    low, high = (_place(t) if math.isfinite(t) else end for t in (time.low, time.high))
    axes.plot([low, high], [row, row], color=color, lw=2, solid_capstyle="butt", zorder=3)
    if not math.isfinite(time.high):
        axes.plot([end], [row], ">", color=color, ms=7, mfc=color if time.reached else "white", zorder=4)
    if time.reached:
        axes.plot([_place(time.median)], [row], "s", color=color, ms=7, mec="white", mew=0.8, zorder=5)


def _place(step: float) -> float:
    """On a logarithmic axis step 0 stands at 1."""
    return max(step, 1.0)


def _axes(axes: Any, arms: Sequence[ArmSummary]) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    times = [arm.runs.t_generalize for arm in arms if arm.runs.n]
    ends = [_place(t) for time in times for t in (time.low, time.median, time.followed) if math.isfinite(t)] or [1, 10]
    low, high = min(ends), max(ends)
    axes.set_xlim(low / 1.15, max(high * 1.15, low * 2))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("step of generalisation", fontsize=12)
    axes.set_yticks(range(len(arms)), [text.label(arm.arm) for arm in arms], fontsize=11)
    axes.set_ylim(len(arms) - 0.4, -0.6)
    frame(axes, "x")
    axes.set_axisbelow(True)


def _legend(level: float) -> list[Any]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=_BASE, lw=1, ls=(0, (4, 3)), marker="s", ms=7, mec="white", label="base, 95% interval"),
        Line2D([], [], color=_SURE, lw=2, marker="s", ms=7, mec="white", label=f"differs, p < {level:g}"),
        Line2D([], [], color=_ARM, lw=2, marker="s", ms=7, mec="white", label="no difference shown"),
        Line2D([], [], color="0.4", ls="", marker=">", ms=7, mfc="white", label="not reached by then"),
    ]
