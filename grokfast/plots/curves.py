"""The picture of one run: accuracy and loss of every split against the step, and when it memorised and generalised."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from grokfast import checks, text
from grokfast.plots.axes import COLORS, FEW, accuracy_axis, columns, frame, step_axis

LINES = ("-", ":", "--", "-.")  # of the first seven splits, the next seven, ...
_LABEL_WIDTH = 0.2  # more than a label of a moment takes, in widths of the panel


def plot_curves(
    curves: Mapping[str, np.ndarray],
    path: str | Path | None = None,
    *,
    title: str,
    t_memorize: int | None,
    t_generalize: int | None,
    threshold: float = 0.99,
    memorize: str = "train",
    generalize: str = "test",
) -> Any:
    """Draw the curves of a run (the columns of `RunStore.curves`) as a PNG of 1200 × 800 pixels; return its path,
    or without one the figure.

    Every split has a colour: training and test, and whatever else has a column of losses and one of accuracies, in the
    order of the columns. The steps are on a logarithmic axis whose first stretch is linear, so that step 0 has its
    place. `t_memorize` and `t_generalize` are the steps to mark, or None, in the colours of the splits `memorize` and
    `generalize`; `threshold` is the accuracy that they refer to. Values that are not finite, and losses that are not
    positive, leave gaps.

    Raises ValueError if a column is missing, if the columns differ in length, if there is no record or no split called
    `memorize` or `generalize`; OSError if the file cannot be written.
    """
    from grokfast.plots.picture import Picture

    splits = _splits(curves)
    for argument, name in (("memorize", memorize), ("generalize", generalize)):
        checks.choice(argument, name, splits)
    drawn = columns(curves, splits)
    styles = {name: (COLORS[i % len(COLORS)], LINES[i // len(COLORS) % len(LINES)]) for i, name in enumerate(splits)}
    moments = ((t_memorize, styles[memorize][0]), (t_generalize, styles[generalize][0]))
    figure = Picture(12, 8, title)
    top, bottom = figure.subplots(2, 1, sharex=True)
    for axes, quantity in ((top, "accuracy"), (bottom, "loss")):
        marker = "o" if len(drawn["step"]) <= FEW else ""
        for split, (color, line) in styles.items():
            width = 2.0 if split in ("train", "test") else 1.3  # a line upon another leaves both to be seen
            style: dict[str, Any] = {"color": color, "ls": line, "lw": width, "marker": marker, "ms": 2 * width}
            axes.plot(drawn["step"], drawn[f"{split}_{quantity}"], label=text.label(split), zorder=3, **style)
        for moment, color in moments:
            if moment is not None:
                axes.axvline(moment, color=color, lw=1.2, ls=(0, (4, 3)), zorder=2)
        axes.set_ylabel(quantity, fontsize=12)
        frame(axes)
    step_axis(bottom, drawn["step"])
    accuracy_axis(top, threshold)
    loss_axis(bottom, np.concatenate([drawn[f"{split}_loss"] for split in splits]))
    label_moments(top, *moments)
    legend: dict[str, Any] = {"loc": "upper right", "ncols": 2}
    if len(splits) > 2:  # beside the title there is room for two
        legend = {"loc": "outside lower center", "ncols": min(len(splits), len(COLORS))}
    figure.legend(*top.get_legend_handles_labels(), **legend, frameon=False, fontsize=12, borderpad=0)
    return figure.saved(path)


def _splits(curves: Mapping[str, np.ndarray]) -> list[str]:
    """The splits that were measured, training and test first."""
    own = [name.removesuffix("_loss") for name in curves if name.endswith("_loss")]
    return list(dict.fromkeys(["train", "test", *(name for name in own if f"{name}_accuracy" in curves)]))


def loss_axis(axes: Any, losses: np.ndarray) -> None:
    """A logarithmic axis over a decade at least; what diverged from the start has no loss to show."""
    losses = losses[~np.isnan(losses)]
    if len(losses) == 0:
        axes.set_yticks([])
        return
    low, high = math.log10(losses.min()), math.log10(losses.max())
    margin = max(0.05 * (high - low), 0.5 * (1 - (high - low)))
    axes.set_ylim(10.0 ** max(low - margin, -100), 10.0 ** min(high + margin, 100))
    axes.set_yscale("log")


def label_moments(axes: Any, memorized: tuple[int | None, str], generalized: tuple[int | None, str]) -> None:
    """Name the marked steps above the panel: outwards if there is room, one above the other if they would meet."""
    taken: float | None = None
    for (step, color), verb, side in ((memorized, "memorised", "right"), (generalized, "generalised", "left")):
        if step is None:
            continue
        x = axes.transAxes.inverted().transform(axes.transData.transform((step, 0)))[0]
        if x < _LABEL_WIDTH:
            side = "left"
        elif x > 1 - _LABEL_WIDTH:
            side = "right"
        start = x if side == "left" else x - _LABEL_WIDTH
        row = 1.02 if taken is None or abs(start - taken) > _LABEL_WIDTH else 1.08
        taken = start
        axes.text(
            step,
            row,
            f" {verb} at {step:,} ",
            color=color,
            ha=side,
            va="bottom",
            fontsize=11,
            transform=axes.get_xaxis_transform(),
        )
