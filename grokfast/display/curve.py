"""The curve of a run in a terminal: the accuracies of training and test set over the steps, on a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

SPARKS = "▁▂▃▄▅▆▇█"
WIDTH, HEIGHT = 60, 3  # characters of a split
SPLITS = ("train", "test")


def curve(curves: Mapping[str, np.ndarray], width: int = WIDTH, height: int = HEIGHT) -> list[str]:
    """The lines of a picture of `RunStore.curves`: `height` of each split, with its last accuracy, then the steps.

    A column is the last evaluation up to its step, so that the first may begin at step 0; none without evaluations.
    """
    steps = np.asarray(curves["step"])
    if not len(steps):
        return []
    first, last = int(steps[steps > 0].min(initial=steps[-1])), int(steps[-1])
    width = width if last > first else 1
    ends = np.geomspace(max(first, 1), max(last, 1), width) * (1 + 1e-9)
    shown = np.searchsorted(steps, ends, side="right") - 1
    lines = []
    for split in SPLITS:
        values = np.asarray(curves[f"{split}_accuracy"])
        said = f"{values[-1]:.1%}" if math.isfinite(values[-1]) else "-"
        rows = bars(values[shown].tolist(), height)
        lines += [f"{'' if i else split:>5} {row} {said if not i else ''}".rstrip() for i, row in enumerate(rows)]
    return [*lines, f" step {_axis(first, last, width)}"]


def bars(values: Sequence[float], height: int = 1) -> list[str]:
    """Values in [0, 1] as bars of `height` lines, the highest line first; what is no number is left out."""
    levels = [min(height * len(SPARKS) - 1, int(v * height * len(SPARKS))) if v >= 0 else -1 for v in values]
    return [
        "".join(SPARKS[min(level, len(SPARKS) - 1)] if level >= 0 else " " for level in (n - base for n in levels))
        for base in range((height - 1) * len(SPARKS), -1, -len(SPARKS))
    ]


def sparkline(values: Sequence[float], width: int) -> str:
    """Values in [0, 1] as `width` bars at most, each the last of its share of the values."""
    if len(values) > width:
        values = [values[(i + 1) * len(values) // width - 1] for i in range(width)]
    return bars(values)[0]


def _axis(first: int, last: int, width: int) -> str:
    """The last step, and where there is room the first, and powers of ten between them."""
    line, end = f"{first:,}", f"{last:,}"
    if last == first or len(line) + len(end) >= width:
        line = ""
    for power in range(1, len(str(last))):
        tick = 10**power
        place = round(math.log(tick / first) / math.log(last / first) * (width - 1)) if first < tick < last else -1
        if len(line) < place <= width - len(end) - len(f"{tick:,}") - 1:
            line = f"{line:<{place}}{tick:,}"
    return f"{line:<{max(width - len(end), 0)}}{end}"
