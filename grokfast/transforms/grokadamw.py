"""The filter of GrokAdamW: an average that forgets faster the more test loss exceeds training loss."""

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


@register("grokadamw")
@dataclass(frozen=True)
class GrokAdamW(Transform):
    """α_t = α · exp(−κ · gap), e ← g at first, then e ← α_t e + (1 − α_t) g; ĝ = g + λ e (Hartford 2024,
    github.com/cognitivecomputations/grokadamw), where gap = max(0, test loss − training loss)/max(of both).

    The gap is that of the last evaluation, 0 before the first: in experiments the losses of the splits that the
    criteria name; in a script `GrokFast.observe(train_loss, test_loss)` says it. It is kept beside the average.
    GrokAdamW's layer-wise decay is one of Adam's β₁, and its weight norms another optimizer's: neither is a filter's.

    alpha in [0, 1]; lamb any finite number; kappa, at least 0. Raises TypeError or ValueError, naming the argument.
    """

    varies: ClassVar[frozenset[str]] = frozenset({"alpha", "lamb", "kappa"})
    role: ClassVar[Role] = "filter"
    watched: ClassVar[str] = "gap"

    alpha: float = 0.98
    lamb: float = 2.0
    kappa: float = 0.1

    def __post_init__(self) -> None:
        fields = checks.Fields(self)
        fields.real("alpha", minimum=0.0, maximum=1.0)
        fields.real("lamb")
        fields.real("kappa", minimum=0.0)

    @property
    def kept(self) -> tuple[Kept, ...]:
        return (Kept("ema"),)

    def averages(self, watched: float) -> list[tuple[float, float]]:
        return [(self.alpha * math.exp(-self.kappa * watched), self.lamb)]

    def state(self, layout: Layout) -> Mapping[str, tuple[int, ...]]:
        return {"ema": (layout.size,), "gap": (1,)}

    def observe(self, state: Mapping[str, Tensor], train_loss: Tensor, test_loss: Tensor) -> None:
        most = test_loss.maximum(train_loss)
        state["gap"].copy_((1 - train_loss / most).where((test_loss > train_loss) & (most > 0), 0))

    def apply(
        self,
        grad: Tensor,
        weights: Tensor,
        state: Mapping[str, Tensor],
        hyper: Mapping[str, Tensor],
        layout: Layout,
        step: Tensor,
    ) -> None:
        alpha, ema = hyper["alpha"] * (-hyper["kappa"] * state["gap"]).exp(), state["ema"]
        ema.lerp_(grad, (1 - alpha).masked_fill(step == 0, 1.0).expand_as(grad))
        grad.addcmul_(hyper["lamb"], ema)
