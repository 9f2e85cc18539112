"""Several slow components of the gradient at once, each of its own time scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from grokfast import checks
from grokfast.parts import register
from grokfast.transforms.base import Kept, Layout, Role, Transform

if TYPE_CHECKING:
    from torch import Tensor


@register("multi_ema")
@dataclass(frozen=True)
class MultiEMA(Transform):
    """e_k ← g at first, then e_k ← α_k e_k + (1 − α_k) g; ĝ = g + Σ_k λ_k e_k: Grokfast-EMA (Lee et al. 2024, arXiv
    2405.20233, algorithm 2) with several averages, as AdEMAMix has a fast and a slow one (Pagliardini et al. 2024,
    arXiv 2409.03137). One scale is EMA; a chain of EMAs is another thing, as each filters what the one before gives.

    alphas in [0, 1] and lambs (finite) of each scale. Runs that train together have equally many.
    Raises TypeError or ValueError, naming the argument.
    """

    varies: ClassVar[frozenset[str]] = frozenset({"alphas", "lambs"})
    role: ClassVar[Role] = "filter"

    alphas: tuple[float, ...] = (0.9, 0.99)
    lambs: tuple[float, ...] = (1.0, 1.0)

    def __post_init__(self) -> None:
        for name, low, high in (("alphas", 0.0, 1.0), ("lambs", -math.inf, math.inf)):
            own = getattr(self, name)
            if not isinstance(own, (tuple, list)) or not own:
                raise TypeError(f"{name} must be numbers, at least one, got {checks.shown(own)}")
            numbers = (checks.real(f"{name}[{k}]", number, minimum=low, maximum=high) for k, number in enumerate(own))
            object.__setattr__(self, name, tuple(numbers))
        if len(self.alphas) != len(self.lambs):
            raise ValueError(f"lambs must be one for each of the {len(self.alphas)} alphas, got {len(self.lambs)}")

    @property
    def kept(self) -> tuple[Kept, ...]:
        return (Kept("ema", (len(self.alphas),)),)

    def averages(self, watched: float) -> list[tuple[float, float]]:
        return list(zip(self.alphas, self.lambs))

    def state(self, layout: Layout) -> Mapping[str, tuple[int, ...]]:
        return {"ema": (len(self.alphas), layout.size)}

    def apply(
        self,
        grad: Tensor,
        weights: Tensor,
        state: Mapping[str, Tensor],
        hyper: Mapping[str, Tensor],
        layout: Layout,
        step: Tensor,
    ) -> None:
        raw = grad.clone()
        is_first = step == 0
        for k, ema in enumerate(state["ema"].unbind(1)):  # [E, P] each
            ema.lerp_(raw, (1 - hyper["alphas"][:, :, k]).masked_fill(is_first, 1.0).expand_as(raw))
            grad.addcmul_(hyper["lambs"][:, :, k], ema)
