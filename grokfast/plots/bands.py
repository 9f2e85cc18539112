"""Accuracy curves of groups of runs: the median over the runs of each, and a band of quantiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grokfast import checks, text
from grokfast.plots.axes import COLORS, accuracies, grouped


def plot_bands(
    groups: Mapping[str, Sequence[Mapping[str, np.ndarray]]],
    path: str | Path | None = None,
    *,
    title: str = "",
    quantiles: tuple[float, float] = (0.25, 0.75),
    threshold: float = 0.99,
) -> Any:
    """Draw the runs of each group (columns of `RunStore.curves`) as a PNG of 1200 × 600 pixels; return its path,
    or without one the figure.

    A group has one colour: a full line is the median test accuracy over its runs, the band lies between `quantiles`, a
    dotted line is the median training accuracy. All runs of a group count at every step: one that ended earlier, as it
    had generalised or diverged, keeps its last value, and between two evaluations the earlier one holds.

    Raises ValueError if there is no group or more than seven, a group without runs, a run whose columns are missing,
    empty or of different lengths, or quantiles that do not increase in [0, 1]; OSError if the file cannot be written.
    """
    from grokfast.plots.picture import Picture

    columns = grouped("groups", groups)
    low, high = (checks.real("quantiles", q, minimum=0, maximum=1) for q in quantiles)
    if low >= high:
        raise ValueError(f"quantiles must be increasing, got {quantiles}")
    figure = Picture(12, 6, title)
    axes = figure.subplots()
    last = max(run["step"][-1] for runs in columns.values() for run in runs)
    for (name, runs), color in zip(columns.items(), COLORS):
        steps = np.unique(np.concatenate([[last], *(run["step"] for run in runs)]))
        begun = steps >= max(run["step"][0] for run in runs)
        test, train = (held(runs, split, steps[begun]) for split in ("test_accuracy", "train_accuracy"))
        band = np.nanquantile(test, (low, high), axis=0)
        label = f"{text.label(name)} ({len(runs)} run{'s' if len(runs) > 1 else ''})"
        axes.fill_between(steps[begun], band[0], band[1], step="post", color=color, alpha=0.2, lw=0, zorder=2)
        style: dict[str, Any] = {"color": color, "drawstyle": "steps-post"}
        axes.plot(steps[begun], np.nanmedian(train, axis=0), lw=1.5, ls=":", alpha=0.7, zorder=3, **style)
        axes.plot(steps[begun], np.nanmedian(test, axis=0), lw=2, label=label, zorder=4, **style)
    accuracies(axes, columns, threshold)
    figure.legend(loc="outside lower center", ncols=min(len(groups), 4), frameon=False, fontsize=12, borderpad=0)
    note = f"lines: medians; bands: {100 * low:g}–{100 * high:g}% of the runs"
    figure.text(0.99, 0.985, note, ha="right", va="top", fontsize=10, color="0.35", parse_math=False)
    return figure.saved(path)


def held(runs: Sequence[Mapping[str, np.ndarray]], column: str, steps: np.ndarray) -> np.ndarray:
    """The last value of each run at or before each of `steps`, none of them before a run's first: [runs, steps].

    What was not finite (a run that diverged) counts as the last finite value before it, or as 0.
    """
    rows = []
    for run in runs:
        finite = np.isfinite(run[column])
        places = np.maximum.accumulate(np.where(finite, np.arange(len(finite)), -1))
        known = np.where(places >= 0, run[column][places], 0.0)
        rows.append(known[np.searchsorted(run["step"], steps, side="right") - 1])
    return np.stack(rows)
