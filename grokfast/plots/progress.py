"""The picture of progress measures: how a circuit forms before the test loss falls."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from grokfast.plots.axes import FEW, step_axis
from grokfast.plots.curves import label_moments, loss_axis

# Of Okabe and Ito.
LINES = {
    "train_loss": ("training loss", "#0072B2"),
    "test_loss": ("test loss", "#D55E00"),
    "restricted_loss": ("restricted loss: by the key frequencies alone, test", "#009E73"),
    "excluded_loss": ("excluded loss: without them, training", "#CC79A7"),
}


def plot_progress(
    curves: Mapping[str, np.ndarray],
    path: str | Path | None = None,
    *,
    title: str,
    t_memorize: int | None = None,
    t_generalize: int | None = None,
) -> Any:
    """Draw restricted and excluded loss beside those of training and test (Nanda et al. 2023, arXiv 2301.05217) as a
    PNG of 1200 × 600 pixels; return its path, or without one the figure.

    curves: the columns step, train_loss, test_loss, restricted_loss and excluded_loss of one run, as it has them with
    the probe `progress`. t_memorize, t_generalize: the steps to mark, or None. Both axes are logarithmic; what is not
    finite, or not positive, leaves a gap.

    Raises ValueError if a column is missing, empty or of another length, OSError if the file cannot be written.
    """
    from grokfast.plots.picture import Picture

    names = ["step", *LINES]
    if missing := [name for name in names if name not in curves]:
        raise ValueError(f"curves must have the columns {', '.join(names)}; missing: {', '.join(missing)}")
    columns = {name: np.asarray(curves[name], dtype=np.float64) for name in names}
    if len({len(column) for column in columns.values()}) > 1 or not len(columns["step"]):
        raise ValueError(f"curves must have columns of one length, got {[len(own) for own in columns.values()]}")
    figure = Picture(12, 6)
    axes = figure.subplots()
    marker = "o" if len(columns["step"]) <= FEW else ""
    for name, (label, color) in LINES.items():
        shown = np.where(np.isfinite(columns[name]) & (columns[name] > 0), columns[name], np.nan)
        columns[name] = shown
        axes.plot(columns["step"], shown, label=label, color=color, lw=2, marker=marker, ms=4, zorder=3)
    moments = ((t_memorize, LINES["train_loss"][1]), (t_generalize, LINES["test_loss"][1]))
    for moment, color in moments:
        if moment is not None:
            axes.axvline(moment, color=color, lw=1.2, ls=(0, (4, 3)), zorder=2)
    step_axis(axes, columns["step"])
    loss_axis(axes, np.concatenate([columns[name] for name in LINES]))
    label_moments(axes, *moments)
    axes.set_ylabel("cross entropy", fontsize=12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(which="major", color="0.92", lw=0.8)
    figure.suptitle(title, x=0.01, ha="left", fontsize=14, fontweight="bold", parse_math=False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=11, borderpad=0)
    return figure.saved(path)
