"""The picture of several recipes side by side: accuracy against the step, every run a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grokfast import text
from grokfast.plots.axes import COLORS, FEW, accuracies, grouped


def plot_comparison(
    arms: Mapping[str, Sequence[Mapping[str, np.ndarray]]],
    path: str | Path | None = None,
    *,
    title: str,
    threshold: float = 0.99,
) -> Any:
    """Draw the runs of each arm (columns of `RunStore.curves`) as a PNG of 1200 × 600 pixels; return its path,
    or without one the figure.

    An arm has one colour: test accuracy is a full line, training accuracy a dotted one. Up to seven arms of any number
    of runs; `threshold` is the accuracy to mark.

    Raises ValueError if there is no arm, an arm without runs, more than seven, or a run whose columns are missing,
    empty or of different lengths, OSError if the file cannot be written.
    """
    from grokfast.plots.picture import Picture

    columns = grouped("arms", arms)
    figure = Picture(12, 6, title)
    axes = figure.subplots()
    for (name, runs), color in zip(columns.items(), COLORS):
        width = 2.0 if len(runs) == 1 else 1.2
        for i, run in enumerate(runs):
            marker = "o" if len(run["step"]) <= FEW else ""
            style: dict[str, Any] = {"color": color, "marker": marker, "ms": 3}
            axes.plot(run["step"], run["train_accuracy"], lw=width, ls=":", alpha=0.6, zorder=2, **style)
            axes.plot(
                run["step"],
                run["test_accuracy"],
                lw=width,
                label=text.label(name) if i == 0 else "_nolegend_",
                zorder=3,
                **style,
            )
    accuracies(axes, columns, threshold)
    figure.legend(loc="outside lower center", ncols=len(arms), frameon=False, fontsize=12, borderpad=0)
    return figure.saved(path)
