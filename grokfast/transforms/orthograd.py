"""⊥Grad, by which weights cannot grow along themselves (Prieto et al. 2025, arXiv 2501.04697, "Grokking at the Edge of
Numerical Stability")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from grokfast import checks
from grokfast.parts import register
from grokfast.transforms.base import Layout, Role, Transform
from grokfast.transforms.selection import chosen

if TYPE_CHECKING:
    from torch import Tensor

TINY = 1e-30  # as in the paper's code; a tensor of zeros keeps its gradient


@register("orthograd")
@dataclass(frozen=True)
class OrthoGrad(Transform):
    """The gradient's part along the weights goes, tensor by tensor, and its length stays.

    g⊥ = g − share · (w·g)/(w·w + 1e-30) w, and ĝ = g⊥ ‖g‖/(‖g⊥‖ + 1e-30). The paper's is share = 1; 0 leaves the
    gradient. What of a gradient is there to grow the logits without changing an answer (naïve loss minimisation) goes.
    A tensor of one number keeps its gradient: all of it is along the weight, and the rest would be rounding.

    share: in [0, 1]. parameters: which, see selection.chosen. Raises TypeError or ValueError, naming the argument.
    """

    varies: ClassVar[frozenset[str]] = frozenset({"share"})
    role: ClassVar[Role] = "project"
    role_field: ClassVar[str] = "share"

    share: float = 1.0
    parameters: str = "all"

    def __post_init__(self) -> None:
        fields = checks.Fields(self)
        fields.real("share", minimum=0, maximum=1)
        fields.text("parameters")

    def reach(self, layout: Layout) -> list[int]:
        own = chosen(self.parameters, layout)
        return [int(name in own and shape.numel() > 1) for name, shape in zip(layout.names, layout.shapes)]

    def apply(
        self,
        grad: Tensor,
        weights: Tensor,
        state: Mapping[str, Tensor],
        hyper: Mapping[str, Tensor],
        layout: Layout,
        step: Tensor,
    ) -> None:
        from grokfast.transforms.sums import dot, norm

        grads, tensors = layout.views(grad), layout.views(weights)
        for name in chosen(self.parameters, layout):
            if grads[name][0].numel() < 2:
                continue
            g, w = (t[name].view(len(grad), -1) for t in (grads, tensors))  # [E, n]
            before = norm(g)
            g.addcmul_(hyper["share"] * dot(w, g) / (norm(w) ** 2 + TINY), w, value=-1)
            g.mul_(before / (norm(g) + TINY))
