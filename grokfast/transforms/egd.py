"""Egalitarian gradient descent: all singular directions of a gradient at one speed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from grokfast import checks
from grokfast.parts import register
from grokfast.transforms.base import Layout, Transform
from grokfast.transforms.selection import matrices

if TYPE_CHECKING:
    from torch import Tensor


@register("egd")
@dataclass(frozen=True)
class EGD(Transform):
    """G̃ = U diag(1/max(s, eps)) Uᵀ G of each matrix's gradient G = U diag(s) Vᵀ, (G Gᵀ)^(−½) G where none is below eps
    (Saheb Pasand et al. 2025, arXiv 2510.04930).

    Singular values become 1, and those below `eps` s/eps. Matrices of one shape, of all models, go at once.
    Whether they could be decomposed is asked on the host, so that steps are not captured in CUDA graphs.
    A matrix is a parameter of two axes or more, [first axis, the rest]; others keep their gradient, which is said once.

    eps: above 0. parameters: which, see selection.chosen. Raises TypeError or ValueError, naming the argument.
    """

    needs_host: ClassVar[bool] = True
    varies: ClassVar[frozenset[str]] = frozenset({"eps"})

    eps: float = 1e-6
    parameters: str = "all"

    def __post_init__(self) -> None:
        fields = checks.Fields(self)
        fields.real("eps", minimum=0, open_minimum=True)
        fields.text("parameters")

    def apply(
        self,
        grad: Tensor,
        weights: Tensor,
        state: Mapping[str, Tensor],
        hyper: Mapping[str, Tensor],
        layout: Layout,
        step: Tensor,
    ) -> None:
        from grokfast.transforms.spectra import stacks, unitary

        for own, stack in stacks(layout.views(grad), matrices(self.parameters, layout, "EGD")):
            for g, found in zip(own, unitary(stack, hyper["eps"][:, :, None, None]).unbind(1)):
                g.copy_(found)
