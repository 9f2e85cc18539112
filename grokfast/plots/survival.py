"""Kaplan-Meier curves: which share of the runs of each arm has generalised by which step, a panel for each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from grokfast import checks, text
from grokfast.analysis import Incidence

_BASE, _ARM = "0.35", "#0072B2"  # of Okabe and Ito
_ACROSS = 4  # panels


def plot_survival(
    curves: Mapping[str, Incidence], path: str | Path | None = None, *, base: str, title: str = ""
) -> Any:
    """Draw what `analysis.incidence` returns as a PNG 1,200 pixels wide; return `path`, or without one the figure.

    A panel is an arm: the share of its runs that have generalised, rising at each of them, with its pointwise 95%
    interval, on a logarithmic axis of steps that all panels share; the base in grey in every panel. A tick is a run
    that was given up without having generalised.

    Raises ValueError if there is no arm or `base` is none of them, OSError if the file cannot be written.
    """
    from grokfast.plots.picture import Picture

    checks.choice("base", base, curves)
    others = [name for name in curves if name != base] or [base]
    rows = math.ceil(len(others) / _ACROSS)
    figure = Picture(12, 1.3 + 1.9 * rows)
    panels = figure.subplots(rows, _ACROSS, sharex=True, sharey=True, squeeze=False).ravel()
    for panel, name in zip(panels, others):
        draw_shares(panel, curves[base], _BASE, "--")
        if name != base:
            draw_shares(panel, curves[name], _ARM, "-")
        panel.set_title(text.label(name), fontsize=11)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color="0.92", lw=0.8)
        panel.set_axisbelow(True)
    for panel in panels[len(others) :]:
        panel.set_visible(False)
    for panel in panels[max(0, len(others) - _ACROSS) : len(others)]:  # those with nothing below
        panel.tick_params(labelbottom=True)
        panel.set_xlabel("step", fontsize=11)
    share_axes(panels[0], curves)
    figure.supylabel("share generalised", fontsize=12)
    figure.suptitle(title, x=0.01, ha="left", fontsize=14, fontweight="bold", parse_math=False)
    figure.legend(handles=_legend(base), loc="outside lower center", ncols=3, frameon=False, fontsize=11, borderpad=0)
    return figure.saved(path)


def draw_shares(panel: Any, curve: Incidence, color: str, line: str) -> None:
    at = np.maximum(curve.steps, 1)  # step 0 on a logarithmic axis
    panel.fill_between(at, curve.low, curve.high, step="post", color=color, alpha=0.15, lw=0, zorder=2)
    panel.plot(at, curve.share, color=color, ls=line, lw=1.8, drawstyle="steps-post", zorder=3)
    shares = curve.share[np.searchsorted(curve.steps, curve.censored, side="right") - 1]
    panel.plot(np.maximum(curve.censored, 1), shares, "|", color=color, ms=8, mew=1.5, zorder=4)


def share_axes(panel: Any, curves: Mapping[str, Incidence]) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, PercentFormatter

    first = [curve.steps[1] for curve in curves.values() if len(curve.steps) > 1]
    low, high = max(min(first, default=1), 1), max(max(curve.steps[-1] for curve in curves.values()), 2)
    panel.set_xscale("log")
    panel.set_xlim(low / 1.5, high * 1.15)
    panel.set_ylim(-0.03, 1.05)
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 30 else (1,)))
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _legend(base: str) -> list[Any]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=_BASE, lw=1.8, ls="--", label=text.label(base)),
        Line2D([], [], color=_ARM, lw=1.8, label="the arm, 95% interval"),
        Line2D([], [], color="0.3", ls="", marker="|", ms=8, mew=1.5, label="given up"),
    ]
