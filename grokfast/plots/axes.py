"""What pictures of curves have in common: colours, axes of steps and of accuracies, and the columns that are drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # of Okabe and Ito
FEW = 40  # up to so many evaluations each gets a dot


def grouped(
    name: str, groups: Mapping[str, Sequence[Mapping[str, np.ndarray]]]
) -> dict[str, list[dict[str, np.ndarray]]]:
    """The columns to draw of each group's runs. ValueError without a group, with more than colours, or an empty one."""
    if not 1 <= len(groups) <= len(COLORS):
        raise ValueError(f"{name} must be 1 to {len(COLORS)}, got {len(groups)}")
    if empty := [group for group, runs in groups.items() if not runs]:
        raise ValueError(f"{name} must have at least one run each; without one: {', '.join(empty)}")
    return {group: [columns(run) for run in runs] for group, runs in groups.items()}


def columns(curves: Mapping[str, np.ndarray], splits: Sequence[str] = ("train", "test")) -> dict[str, np.ndarray]:
    """The columns to draw in float64, with NaN for what is not finite and for losses that are not positive."""
    names = ["step", *(f"{split}_{quantity}" for quantity in ("accuracy", "loss") for split in splits)]
    if missing := [name for name in names if name not in curves]:
        raise ValueError(f"curves must have the columns {', '.join(names)}; missing: {', '.join(missing)}")
    found = {name: np.asarray(curves[name], dtype=np.float64) for name in names}
    lengths = {name: len(column) for name, column in found.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"curves must have columns of one length, got {lengths}")
    if lengths["step"] == 0:
        raise ValueError("curves must have at least one record, got none")
    for name, column in found.items():
        drawable = np.isfinite(column) & ((column > 0) | (not name.endswith("loss")))
        found[name] = np.where(drawable, column, np.nan)
    return found


def frame(axes: Any, grid: Literal["both", "x"] = "both") -> None:
    """No lines above and on the right; a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(which="major", axis=grid, color="0.92", lw=0.8)


def accuracies(axes: Any, groups: Mapping[str, Sequence[Mapping[str, np.ndarray]]], threshold: float) -> None:
    """The axes of a panel of test and training accuracies of groups of runs."""
    step_axis(axes, np.concatenate([run["step"] for runs in groups.values() for run in runs]))
    accuracy_axis(axes, threshold)
    axes.set_ylabel("accuracy: test (full), training (dotted)", fontsize=12)
    frame(axes)


def step_axis(axes: Any, steps: np.ndarray) -> None:
    """Linear up to the first positive step, logarithmic from there; ticks at powers of ten, or at 1, 2, 5 if few."""
    from matplotlib.ticker import EngFormatter

    positive = steps[steps > 0]
    linear = float(positive.min()) if len(positive) else 1.0
    last = max(float(steps.max()), linear)
    axes.set_xscale("symlog", linthresh=linear, linscale=0.3)
    decades = 10.0 ** np.arange(math.floor(math.log10(linear)), math.floor(math.log10(last)) + 1)
    fine = np.outer(decades, np.arange(1, 10)).ravel()
    fine = fine[(fine >= linear) & (fine <= last)]
    coarse = decades if last / linear > 100 else np.outer(decades, (1, 2, 5)).ravel()
    axes.set_xticks([0, *coarse[(coarse >= linear) & (coarse <= last)]])
    axes.set_xticks(fine, minor=True)
    axes.set_xlim(steps.min() - 0.05 * linear, 1.03 * last)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("step", fontsize=12)


def accuracy_axis(axes: Any, threshold: float) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.axhline(threshold, color="0.6", lw=1, ls=":", zorder=1)
    name = f" {100 * threshold:g}%"
    axes.text(1, threshold, name, color="0.5", va="center", fontsize=9, transform=axes.get_yaxis_transform())
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
