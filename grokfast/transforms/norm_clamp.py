"""A norm of all weights that is held while training (Truong et al. 2026, arXiv 2606.13753)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from grokfast import checks
from grokfast.parts import register
from grokfast.transforms.base import Layout, Role, Transform
from grokfast.transforms.selection import chosen

if TYPE_CHECKING:
    from torch import Tensor


@register("norm_clamp")
@dataclass(frozen=True)
class NormClamp(Transform):
    """After the update all weights as one vector have the length `norm`: w ← w · norm/‖w‖₂; without `hold` they are at
    most so long: w ← w · min(1, norm/‖w‖₂).

    Their networks grok at whatever norm they are held, after T ∝ exp(αρ) steps, ρ being the norm relative to that at
    which free training generalises.

    norm: above 0. parameters: which are counted and scaled, see selection.chosen.
    Raises TypeError or ValueError, naming the argument.
    """

    when: ClassVar[Literal["before", "after"]] = "after"
    is_of_all: ClassVar[bool] = True
    varies: ClassVar[frozenset[str]] = frozenset({"norm"})
    role: ClassVar[Role] = "clip"
    role_field: ClassVar[str] = "norm"

    norm: float = 100.0
    hold: bool = True
    parameters: str = "all"

    def __post_init__(self) -> None:
        fields = checks.Fields(self)
        fields.real("norm", minimum=0, open_minimum=True)
        fields.boolean("hold")
        fields.text("parameters")

    @property
    def is_held(self) -> bool:
        return self.hold

    def reach(self, layout: Layout) -> list[int]:
        own = chosen(self.parameters, layout)
        return [-1 if name in own else 0 for name in layout.names]

    def apply(
        self,
        grad: Tensor,
        weights: Tensor,
        state: Mapping[str, Tensor],
        hyper: Mapping[str, Tensor],
        layout: Layout,
        step: Tensor,
    ) -> None:
        import torch

        from grokfast.transforms.sums import norm

        tensors = layout.views(weights)
        own = [tensors[name].view(len(weights), -1) for name in chosen(self.parameters, layout)]
        if not own:
            return
        length = norm(torch.cat([norm(w) for w in own], 1))
        scale = hyper["norm"] / length
        scale = (scale if self.hold else scale.clamp(max=1)).where(length > 0, 1)
        for w in own:
            w.mul_(scale)
