"""What a gradient filter is: a small frozen description. The state it needs lives with the optimizer.

Grokfast (Lee et al. 2024, arXiv 2405.20233) amplifies the slow component of each gradient: ĝ = g + λ·lowpass(g).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from grokfast import checks, parts
from grokfast.transforms.base import Transform


@parts.register("ema")
@dataclass(frozen=True)
class EMA(Transform):
    """Exponential moving average: e ← g at first, then e ← α e + (1 − α) g; ĝ = g + λ e (Grokfast-EMA, algorithm 2).

    alpha in [0, 1] is the momentum of the average, lamb (any finite number) how strongly it is added.
    There is no bias correction: the first ĝ is (1 + λ) g. Raises TypeError or ValueError, naming the argument.
    """

    varies: ClassVar[frozenset[str]] = frozenset({"alpha", "lamb"})

    alpha: float = 0.98
    lamb: float = 2.0

    def __post_init__(self) -> None:
        fields = checks.Fields(self)
        fields.real("alpha", minimum=0.0, maximum=1.0)
        fields.real("lamb")


@parts.register("ma")
@dataclass(frozen=True)
class MA(Transform):
    """Moving average over the last `window_size` raw gradients: ĝ = g + λ·(mean or sum of the window) (algorithm 1).

    The current gradient is part of the window. With `warmup` the filter stays off until the window is full; without
    it, the average runs over the gradients seen so far. The sum of the window is kept up to date, and summed anew at
    intervals: rounding, or a NaN, is gone at most 5 windows later.

    The window is `window_size` times the parameters' size. `ring` says where it lies: "full", beside the parameters in
    their precision (at least fp32); "bfloat16", half of that, the average being that of the rounded gradients; "host",
    in page-locked CPU memory, two rows of which cross the bus each step. Raises TypeError or ValueError, naming the
    argument.
    """

    varies: ClassVar[frozenset[str]] = frozenset({"lamb"})

    window_size: int = 100
    lamb: float = 5.0
    filter_type: Literal["mean", "sum"] = "mean"
    warmup: bool = True
    ring: Literal["full", "bfloat16", "host"] = "full"

    def __post_init__(self) -> None:
        fields = checks.Fields(self)
        fields.integer("window_size", minimum=1)
        fields.real("lamb")
        fields.choice(filter_type=("mean", "sum"), ring=("full", "bfloat16", "host"))
        fields.boolean("warmup")


Filter = EMA | MA
