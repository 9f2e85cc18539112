"""SAM: the gradient of a step is that of the steepest place nearby."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from grokfast import checks
from grokfast.parts import register
from grokfast.transforms.base import Layout, Transform

if TYPE_CHECKING:
    from torch import Tensor

EPS = 1e-12  # beside a gradient's norm, which may be 0


@register("sam")
@dataclass(frozen=True)
class SAM(Transform):
    """Sharpness-aware minimisation (Foret et al. 2021, arXiv 2010.01412, equation 3): the step is that of the gradient
    at w + ρ g / ‖g‖₂, where g is the gradient at w and the norm is that of all parameters together.

    Both gradients are of the same rows, with the same dropout; the loss and where a run diverges are of the first. A
    step costs two gradients. In a chain it comes first: other transforms and the optimizer see its gradient. In
    `GrokFast` it needs `step(closure)`.

    rho: at least 0. Raises TypeError or ValueError, naming it.
    """

    varies: ClassVar[frozenset[str]] = frozenset({"rho"})
    is_taken_anew: ClassVar[bool] = True

    rho: float = 0.05

    def __post_init__(self) -> None:
        checks.Fields(self).real("rho", minimum=0, maximum=checks.LARGEST_REAL)

    def offset(self, grad: Tensor, hyper: Mapping[str, Tensor]) -> Tensor:
        import torch

        return grad * (hyper["rho"] / (torch.linalg.vector_norm(grad, dim=1, keepdim=True) + EPS))

    def apply(
        self,
        grad: Tensor,
        weights: Tensor,
        state: Mapping[str, Tensor],
        hyper: Mapping[str, Tensor],
        layout: Layout,
        step: Tensor,
    ) -> None:
        """Nothing more is done to the gradient."""
