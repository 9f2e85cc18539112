"""What a gradient filter is: a small frozen description. The state it needs lives with the optimizer.

Grokfast (Lee et al. 2024, arXiv 2405.20233) amplifies the slow component of each gradient: ĝ = g + λ·lowpass(g).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from grokfast import checks


@dataclass(frozen=True)
class EMA:
    """Exponential moving average: e ← g at first, then e ← α e + (1 − α) g; ĝ = g + λ e (Grokfast-EMA, algorithm 2).

    alpha in [0, 1] is the momentum of the average, lamb (any finite number) how strongly it is added.
    There is no bias correction: the first ĝ is (1 + λ) g. Raises TypeError or ValueError, naming the argument.
    """

    alpha: float = 0.98
    lamb: float = 2.0

    def __post_init__(self) -> None:
        _set(
            self, alpha=checks.real("alpha", self.alpha, minimum=0.0, maximum=1.0), lamb=checks.real("lamb", self.lamb)
        )


@dataclass(frozen=True)
class MA:
    """Moving average over the last `window_size` raw gradients: ĝ = g + λ·(mean or sum of the window) (algorithm 1).

    The current gradient is part of the window. With `warmup` the filter stays off until the window is full; without
    it, the average runs over the gradients seen so far. The sum of the window is kept up to date, and summed anew at
    intervals: rounding, or a NaN, is gone at most 5 windows later.

    The window is `window_size` times the parameters' size. `ring` says where it lies: "full", beside the parameters in
    their precision (at least fp32); "bfloat16", half of that, the average being that of the rounded gradients; "host",
    in page-locked CPU memory, two rows of which cross the bus each step. Raises TypeError or ValueError, naming the
    argument.
    """

    window_size: int = 100
    lamb: float = 5.0
    filter_type: Literal["mean", "sum"] = "mean"
    warmup: bool = True
    ring: Literal["full", "bfloat16", "host"] = "full"

    def __post_init__(self) -> None:
        _set(self, window_size=checks.integer("window_size", self.window_size, minimum=1))
        _set(self, lamb=checks.real("lamb", self.lamb))
        checks.choice("filter_type", self.filter_type, ("mean", "sum"))
        checks.boolean("warmup", self.warmup)
        checks.choice("ring", self.ring, ("full", "bfloat16", "host"))


Filter = EMA | MA


def _set(filter: Filter, **values: float) -> None:
    """Keep plain Python numbers, whatever kind (NumPy's, a Fraction) was given."""
    for name, value in values.items():
        object.__setattr__(filter, name, value)
