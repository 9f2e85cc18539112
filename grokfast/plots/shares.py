"""Kaplan-Meier curves of a few groups of runs, one upon the other: which share has generalised by which step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from grokfast import text
from grokfast.analysis import Incidence
from grokfast.plots.axes import COLORS
from grokfast.plots.survival import draw_shares, share_axes


def plot_shares(curves: Mapping[str, Incidence], path: str | Path | None = None, *, title: str = "") -> Any:
    """Draw what `analysis.incidence` returns as a PNG of 1200 × 500 pixels; return `path`, or without one the figure.

    A group has one colour: its line is the share of its runs that have generalised, rising at each of them, the band
    its pointwise 95% interval. A tick is a run that was given up without having generalised. Steps are on a logarithmic
    axis.

    Raises ValueError if there is no group or more than seven, OSError if the file cannot be written.
    """
    from grokfast.plots.picture import Picture

    if not 1 <= len(curves) <= len(COLORS):
        raise ValueError(f"curves must be of 1 to {len(COLORS)} groups, got {len(curves)}")
    figure = Picture(12, 5)
    axes = figure.subplots()
    for (name, curve), color in zip(curves.items(), COLORS):
        draw_shares(axes, curve, color, "-")
        axes.lines[-2].set_label(text.label(name))  # the curve; the last has the ticks
    share_axes(axes, curves)
    axes.set_xlabel("step", fontsize=12)
    axes.set_ylabel("share generalised", fontsize=12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(which="major", color="0.92", lw=0.8)
    axes.set_axisbelow(True)
    figure.suptitle(title, x=0.01, ha="left", fontsize=14, fontweight="bold", parse_math=False)
    if len(curves) > 1:
        figure.legend(loc="outside lower center", ncols=min(len(curves), 4), frameon=False, fontsize=12, borderpad=0)
    return figure.saved(path)


def share_at(curve: Incidence, steps: np.ndarray) -> np.ndarray:
    """The share that has generalised by each of `steps`, NaN after the last that a run was followed."""
    shares = curve.share[np.searchsorted(curve.steps, steps, side="right") - 1]
    return np.where(np.asarray(steps) <= curve.steps[-1], shares, np.nan)
