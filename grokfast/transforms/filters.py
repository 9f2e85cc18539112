"""The gradient filters EMA and MA: small frozen descriptions. The state they need lives with the optimizer.

Grokfast (Lee et al. 2024, arXiv 2405.20233) amplifies the slow component of each gradient: ĝ = g + λ·lowpass(g).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from grokfast import checks
from grokfast.parts import register
from grokfast.transforms.base import Layout, Transform

if TYPE_CHECKING:
    from torch import Tensor


@register("ema")
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

    def state(self, layout: Layout) -> Mapping[str, tuple[int, ...]]:
        return {"ema": (layout.size,)}

    def filtered(self, grad: Tensor, state: Mapping[str, Any], numbers: Mapping[str, Any]) -> Tensor:
        """ĝ; `state` ("ema", "count") advances. `numbers` ("alpha", "lamb", "enabled") go before the fields.

        As rules.filter_ema; no count: e holds the first gradient already."""
        own = {"alpha": self.alpha, "lamb": self.lamb, **numbers}
        from grokfast.transforms import rules

        return rules.filter_ema(grad, state["ema"], state.get("count"), **own)

    def apply(
        self,
        grad: Tensor,
        weights: Tensor,
        state: Mapping[str, Tensor],
        hyper: Mapping[str, Tensor],
        layout: Layout,
        step: Tensor,
    ) -> None:
        grad.copy_(self.filtered(grad, {**state, "count": step.clone()}, hyper))


@register("ma")
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

    def state(self, layout: Layout) -> Mapping[str, tuple[int, ...]]:
        if self.ring != "full":
            raise ValueError(
                f"ring must be 'full' unless MA is the last transform before the update, got {self.ring!r}"
            )
        return {"ring": (self.window_size, layout.size), "sum": (layout.size,)}

    def filtered(self, grad: Tensor, state: Mapping[str, Any], numbers: Mapping[str, Any]) -> Tensor:
        """ĝ; `state` ("ring", "sum", "count") advances. `numbers` ("lamb", "enabled") go before the fields."""
        own = {"lamb": self.lamb, **{name: value for name, value in numbers.items() if name != "alpha"}}
        from grokfast.transforms import rules

        return rules.filter_ma(
            grad, state["ring"], state["sum"], state["count"], window_size=self.window_size,
            is_mean=self.filter_type == "mean", warmup=self.warmup, **own,
        )  # fmt: skip

    def apply(
        self,
        grad: Tensor,
        weights: Tensor,
        state: Mapping[str, Tensor],
        hyper: Mapping[str, Tensor],
        layout: Layout,
        step: Tensor,
    ) -> None:
        grad.copy_(self.filtered(grad, {**state, "count": step.clone()}, hyper))


Filter = EMA | MA
