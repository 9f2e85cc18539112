"""The gradient filters EMA and MA: small frozen descriptions. The state they need lives with the optimizer.

Grokfast (Lee et al. 2024, arXiv 2405.20233) amplifies the slow component of each gradient: ĝ = g + λ·lowpass(g).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from grokfast import checks
from grokfast.parts import register
from grokfast.transforms.base import Kept, Layout, Role, Transform

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Filter(Transform):
    """Base of the filters, ĝ = g + λ·lowpass(g) element by element: all that others ask of one.

    number: csrc/update_rules.h's FilterKind. counts: it always counts the gradients in its history; one that does not
    has a count only where nothing may wait for the device.
    """

    role: ClassVar[Role] = "filter"
    number: ClassVar[int]
    counts: ClassVar[bool]

    if TYPE_CHECKING:
        lamb: float

    @property
    def as_filter(self) -> Filter | None:
        return self

    @property
    def kept(self) -> tuple[Kept, ...]:
        """What it keeps: two tensors at most."""
        raise NotImplementedError

    @property
    def numbers(self) -> Mapping[str, float]:
        """Its columns of csrc/update_rules.h's `Hyper`, if they are not 0 (window_size: 1)."""
        raise NotImplementedError

    @property
    def window(self) -> int:
        """How many gradients its history has."""
        return max((kept.lead[0] for kept in self.kept if kept.lead), default=1)

    @property
    def in_bf16(self) -> bool:
        """Whether it keeps gradients in bf16."""
        return any(kept.in_bf16 for kept in self.kept)

    @property
    def on_host(self) -> bool:
        """Whether it keeps gradients of a GPU in host memory."""
        return any(kept.on_host for kept in self.kept)

    @property
    def common(self) -> tuple[object, ...]:
        """What all filters of a pass have in common: it says what they keep."""
        raise NotImplementedError

    def state(self, layout: Layout) -> Mapping[str, tuple[int, ...]]:
        return {kept.name: (*kept.lead, layout.size) for kept in self.kept}

    def filtered(self, grad: Tensor, state: Mapping[str, Any], numbers: Mapping[str, Any]) -> Tensor:
        """ĝ; what `state` holds by name, "count" too, advances. `numbers` ("alpha", "lamb", "enabled") go before the
        fields."""
        raise NotImplementedError

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


def filter_of(transform: Transform | None) -> Filter | None:
    """`as_filter` of a transform, or of none."""
    return None if transform is None else transform.as_filter


@register("ema")
@dataclass(frozen=True)
class EMA(Filter):
    """Exponential moving average: e ← g at first, then e ← α e + (1 − α) g; ĝ = g + λ e (Grokfast-EMA, algorithm 2).

    alpha in [0, 1] is the momentum of the average, lamb (any finite number) how strongly it is added.
    There is no bias correction: the first ĝ is (1 + λ) g. Raises TypeError or ValueError, naming the argument.
    """

    varies: ClassVar[frozenset[str]] = frozenset({"alpha", "lamb"})
    number: ClassVar[int] = 1
    counts: ClassVar[bool] = False

    alpha: float = 0.98
    lamb: float = 2.0

    def __post_init__(self) -> None:
        fields = checks.Fields(self)
        fields.real("alpha", minimum=0.0, maximum=1.0)
        fields.real("lamb")

    @property
    def kept(self) -> tuple[Kept, ...]:
        return (Kept("ema", is_gradient=True),)

    @property
    def numbers(self) -> Mapping[str, float]:
        return {"alpha": self.alpha, "lamb": self.lamb}

    @property
    def common(self) -> tuple[object, ...]:
        return (self.number,)

    def filtered(self, grad: Tensor, state: Mapping[str, Any], numbers: Mapping[str, Any]) -> Tensor:
        """As rules.filter_ema; no count: e holds the first gradient already."""
        own = {"alpha": self.alpha, "lamb": self.lamb, **numbers}
        from grokfast.transforms import rules

        return rules.filter_ema(grad, state["ema"], state.get("count"), **own)


@register("ma")
@dataclass(frozen=True)
class MA(Filter):
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
    number: ClassVar[int] = 2
    counts: ClassVar[bool] = True

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

    @property
    def kept(self) -> tuple[Kept, ...]:
        window = Kept("ring", (self.window_size,), in_bf16=self.ring == "bfloat16", on_host=self.ring == "host")
        return window, Kept("sum")

    @property
    def numbers(self) -> Mapping[str, float]:
        is_mean = self.filter_type == "mean"
        return {"lamb": self.lamb, "window_size": self.window_size, "window_mean": is_mean, "warmup": self.warmup}

    @property
    def common(self) -> tuple[object, ...]:
        return self.number, self.window_size, self.ring

    def state(self, layout: Layout) -> Mapping[str, tuple[int, ...]]:
        if self.ring != "full":
            raise ValueError(
                f"ring must be 'full' unless MA is the last transform before the update, got {self.ring!r}"
            )
        return super().state(layout)

    def filtered(self, grad: Tensor, state: Mapping[str, Any], numbers: Mapping[str, Any]) -> Tensor:
        """As rules.filter_ma."""
        own = {"lamb": self.lamb, **{name: value for name, value in numbers.items() if name != "alpha"}}
        from grokfast.transforms import rules

        return rules.filter_ma(
            grad, state["ring"], state["sum"], state["count"], window_size=self.window_size,
            is_mean=self.filter_type == "mean", warmup=self.warmup, **own,
        )  # fmt: skip
