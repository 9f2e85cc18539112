"""What an accelerator is said to gain beside what it gains: speed-ups over two baselines, and the published one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grokfast import text
from grokfast.analysis import Ratio

_COLORS = ("#0072B2", "#D55E00")  # of Okabe and Ito
_CLAIM = "0.2"
_ROW, _EDGE = 0.42, 1.7  # inches of an arm, and of all else
_APART = 0.17  # rows between the two baselines


def plot_speedups(
    arms: Mapping[str, Sequence[Ratio | None]],
    path: str | Path | None = None,
    *,
    baselines: Sequence[str],
    claims: Mapping[str, float] | None = None,
    claimed: str = "as published",
    title: str = "",
) -> Any:
    """Draw how many times sooner each arm generalises than each of one or two baselines, as a PNG 1,200 pixels wide;
    return `path`, or without one the figure.

    A row is an arm: of each baseline a square at the quotient (base to arm), a line over its 95% interval, and an arrow
    where a median was not reached and the quotient is only bounded; None, or an unknown quotient, is nothing. A cross
    is what `claims` has for it. The axis is logarithmic; 1 is the baseline.

    Raises ValueError if there is no arm, or not a quotient for each baseline; OSError if the file cannot be written.
    """
    from grokfast.plots.picture import Picture

    if not arms:
        raise ValueError("arms must be at least one, got none")
    if not 1 <= len(baselines) <= len(_COLORS):
        raise ValueError(f"baselines must be one or two, got {len(baselines)}")
    if wrong := [name for name, ratios in arms.items() if len(ratios) != len(baselines)]:
        raise ValueError(f"arms must have {len(baselines)} quotients each, {wrong[0]!r} has {len(arms[wrong[0]])}")
    figure = Picture(12, _EDGE + _ROW * len(arms))
    axes = figure.subplots()
    axes.axvline(1, color="0.35", lw=1, ls=(0, (4, 3)), zorder=1)
    known = [1.0, *(claims or {}).values()]
    for row, (name, ratios) in enumerate(arms.items()):
        for i, ratio in enumerate(ratios):
            if ratio is not None and not math.isnan(ratio.value):
                known += _arm(axes, row + _APART * (2 * i - len(baselines) + 1), ratio, _COLORS[i])
        if name in (claims or {}):
            axes.plot([(claims or {})[name]], [row], "X", color=_CLAIM, ms=9, mec="white", zorder=6)
    _axes(axes, list(arms), known)
    figure.suptitle(title, x=0.01, ha="left", fontsize=14, fontweight="bold", parse_math=False)
    figure.legend(
        handles=_legend(baselines, claimed if claims else ""), loc="outside lower center", ncols=4, frameon=False,
        fontsize=11, borderpad=0,
    )  # fmt: skip
    return figure.saved(path)


def _arm(axes: Any, at: float, ratio: Ratio, color: str) -> list[float]:
    """Draw one quotient; returns what of it the axis must show."""
    is_bound = not 0 < ratio.value < math.inf
    value = ratio.bound if is_bound else ratio.value
    if is_bound:
        axes.plot([value], [at], ">" if ratio.value else "<", color=color, ms=8, mfc="white", zorder=5)
        return [value]
    low = ratio.low if ratio.low > 0 else value
    high = ratio.high if ratio.high < math.inf else value
    if not math.isnan(ratio.low):
        axes.plot([low, high], [at, at], color=color, lw=2, solid_capstyle="butt", zorder=3)
    for end, beyond, marker in ((low, ratio.low == 0, "<"), (high, ratio.high == math.inf, ">")):
        if beyond:
            axes.plot([end], [at], marker, color=color, ms=7, zorder=4)
    axes.plot([value], [at], "s", color=color, ms=7, mec="white", mew=0.8, zorder=5)
    axes.annotate(
        f"{value:.2f}", (max(value, high) if high == high else value, at), (7, 0), textcoords="offset points",
        va="center", fontsize=9, color="0.25",
    )  # fmt: skip
    return [x for x in (low, value, high) if math.isfinite(x)]


def _axes(axes: Any, names: Sequence[str], known: Sequence[float]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = min(known), max(known)
    axes.set_xscale("log")
    axes.set_xlim(min(low / 1.2, 0.8), max(high * 1.35, 1.25))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("times sooner, in steps", fontsize=12)
    axes.set_yticks(range(len(names)), [text.label(name) for name in names], fontsize=11)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(which="major", axis="x", color="0.92", lw=0.8)
    axes.set_axisbelow(True)


def _legend(baselines: Sequence[str], claimed: str) -> list[Any]:
    from matplotlib.lines import Line2D

    style: dict[str, Any] = {"marker": "s", "ms": 7, "mec": "white", "lw": 2}
    handles = [
        Line2D([], [], color=color, label=f"than {text.label(name)}", **style)
        for name, color in zip(baselines, _COLORS)
    ]
    handles.append(Line2D([], [], color="0.4", ls="", marker=">", ms=7, mfc="white", label="at least (or, <, at most)"))
    if claimed:
        handles.append(Line2D([], [], color=_CLAIM, ls="", marker="X", ms=9, mec="white", label=text.label(claimed)))
    return handles
