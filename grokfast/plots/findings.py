"""The picture of a reproduction: what was published beside what came out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grokfast import text

if TYPE_CHECKING:
    from grokfast.reproductions.findings import Finding

_COLORS = {"reproduced": "#009E73", "refuted": "#D55E00", "undecided": "#E69F00", "control": "0.45"}  # Okabe and Ito
_PUBLISHED = "black"
_ROW, _PANEL, _EDGE = 0.36, 0.75, 1.2  # inches of a finding, of a panel's axis, and of all else


def plot_findings(findings: Sequence[Finding], path: str | Path | None = None, *, title: str = "") -> Any:
    """Draw what reproductions found as a PNG 1,200 pixels wide; return `path`, or without one the figure.

    A panel for each quantity, a row for each finding: every seed a dot, the estimate a square with its 95% interval in
    the colour of the verdict, what was published a black diamond, its single runs small ones. Steps are on a
    logarithmic axis; a run that did not reach what is measured is an arrow at the right end.

    Raises ValueError if there is no finding, OSError if the file cannot be written.
    """
    from grokfast.plots.picture import Picture

    if not findings:
        raise ValueError("findings must be at least one, got none")
    panels: dict[str, list[Finding]] = {}
    for found in findings:
        panels.setdefault(found.quantity, []).append(found)
    sizes = [len(own) * _ROW + _PANEL for own in panels.values()]
    figure = Picture(12, _EDGE + sum(sizes))
    for axes, own in zip(figure.subplots(len(panels), 1, squeeze=False, height_ratios=sizes)[:, 0], panels.values()):
        _panel(axes, own)
    figure.suptitle(title, x=0.01, ha="left", fontsize=14, fontweight="bold", parse_math=False)
    figure.legend(
        handles=_legend({found.verdict for found in findings}), loc="outside lower center", ncols=7, frameon=False,
        fontsize=11, borderpad=0,
    )  # fmt: skip
    return figure.saved(path)


def _panel(axes: Any, findings: Sequence[Finding]) -> None:
    """The findings of one quantity."""
    from matplotlib.ticker import EngFormatter, PercentFormatter

    unit = findings[0].unit
    numbers = [value for found in findings for value in _numbers(found) if math.isfinite(value)] or [0.0]
    low, high = min(numbers), max(numbers)
    if unit == "steps":
        low, high = max(low, 1.0) / 1.2, max(high, 1.0) * 1.2
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    elif unit == "share":
        low, high = (-0.03, 1.03) if low < 0.5 else (low - 0.1 * (1 - low), 1 + 0.1 * (1 - low))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    else:
        low, high = min(low, 0.0), max(high, 0.0)
        low, high = low - 0.05 * (high - low or 1), high + 0.05 * (high - low or 1)
        axes.axvline(0, color="0.75", lw=1, zorder=1)
    axes.set_xlim(low, high)
    for row, found in enumerate(findings):
        _finding(axes, row, found, high)
    axes.set_yticks(range(len(findings)), [text.label(found.what) for found in findings], fontsize=11)
    axes.set_ylim(len(findings) - 0.4, -0.6)
    axes.set_xlabel(findings[0].quantity, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(which="major", axis="x", color="0.92", lw=0.8)
    axes.set_axisbelow(True)


def _finding(axes: Any, row: int, found: Finding, end: float) -> None:
    color = _COLORS[found.verdict]
    reached = [value for value in found.values if math.isfinite(value)]
    axes.plot(reached, [row + 0.22] * len(reached), ".", color=color, ms=5, alpha=0.6, zorder=2)
    if math.inf in found.values:
        axes.plot([end], [row + 0.22], ">", color=color, ms=6, mfc="white", zorder=2, clip_on=False)
    if not math.isnan(found.low):
        axes.plot([found.low, min(found.high, end)], [row, row], color=color, lw=2.5, solid_capstyle="butt", zorder=3)
    if math.isfinite(found.estimate):
        axes.plot([found.estimate], [row], "s", color=color, ms=7, mec="white", mew=0.8, zorder=5)
    if found.published is not None:
        singles = [value for value in found.published.values if math.isfinite(value)]
        axes.plot(singles, [row - 0.22] * len(singles), "d", color=_PUBLISHED, ms=3, alpha=0.5, zorder=2)
        axes.plot([found.published.value], [row - 0.22], "D", color=_PUBLISHED, ms=5, zorder=4)
    words = found.verdict if found.verdict != "control" else ""
    axes.text(1.01, row, words, va="center", fontsize=10, color=color, transform=axes.get_yaxis_transform())


def _numbers(found: Finding) -> list[float]:
    published = () if found.published is None else (found.published.value, *found.published.values)
    return [*found.values, *published, found.estimate, found.low, found.high]


def _legend(verdicts: set[str]) -> list[Any]:
    from matplotlib.lines import Line2D

    shown = [
        Line2D([], [], color=_PUBLISHED, ls="", marker="D", ms=5, label="published"),
        Line2D([], [], color="0.3", ls="", marker=".", ms=5, label="each seed here"),
    ]
    for verdict, color in _COLORS.items():
        if verdict in verdicts:
            said = verdict if verdict == "control" else f"mean, 95%: {verdict}"
            shown.append(Line2D([], [], color=color, lw=2.5, marker="s", ms=7, mec="white", label=said))
    return shown
