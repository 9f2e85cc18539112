"""Continuous columns, as random search draws them, in bins, so that runs share cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def in_bins(name: str, values: Sequence[Any], n: int) -> list[float]:
    """The middle of each value's bin, to 3 digits: `n` bins of one width, in log where all values are positive and span
    more than a factor of ten.

    Raises ValueError naming the column `name` if a value is not a finite number, or if the middles are not `n` numbers.
    """
    try:
        numbers = np.array([np.nan if isinstance(value, (bool, str)) else value for value in values], dtype=np.float64)
    except (TypeError, ValueError):
        numbers = np.array([np.nan])
    if not np.isfinite(numbers).all():
        raise ValueError(f"column {name!r} has more than {n} different values that are not all numbers")
    is_log = numbers.min() > 0 and numbers.max() > 10 * numbers.min()
    scaled = np.log(numbers) if is_log else numbers
    edges = np.linspace(scaled.min(), scaled.max(), n + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    rounded = [float(f"{middle:.3g}") for middle in (np.exp(middles) if is_log else middles)]
    if len(set(rounded)) < n:
        raise ValueError(f"column {name!r} has different values that lie too close together for {n} bins")
    return [rounded[i] for i in np.clip(np.searchsorted(edges, scaled, side="right") - 1, 0, n - 1)]
