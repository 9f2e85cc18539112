"""Penalties on weights as their gradients: what loss + λ R(W) adds to the gradient of the loss.

A filter after a penalty in a chain amplifies it, one before it does not; OrthoGrad after one takes most of it away.
Penalties are sums over weights, as published; losses they are added to are means over a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from grokfast import checks
from grokfast.parts import register
from grokfast.transforms.base import Layout, Role, Transform
from grokfast.transforms.selection import chosen, matrices

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Penalty(Transform):
    """g ← g + strength · ∂R/∂W.

    strength: λ, at least 0; the defaults are published ones. parameters: those that are penalised, see
    selection.chosen.
    """

    varies: ClassVar[frozenset[str]] = frozenset({"strength"})
    role_field: ClassVar[str] = "strength"

    strength: float = 1e-4
    parameters: str = "matrices"

    def __post_init__(self) -> None:
        fields = checks.Fields(self)
        fields.real("strength", minimum=0)
        fields.text("parameters")

    def reach(self, layout: Layout) -> list[int]:
        own = chosen(self.parameters, layout)
        return [int(name in own) for name in layout.names]


@register("l1")
@dataclass(frozen=True)
class L1(Penalty):
    """R = Σ|w|: g ← g + strength · sign(w), by which weights become sparse (Notsawo et al. 2025, arXiv 2506.05718).

    1e-5 is the largest strength in their code for addition modulo 97 (mean cross entropy, Adam at rates of 1e-3 to
    1e-1, no weight decay). With the recipe "quick" ten times that did not generalise.
    """

    role: ClassVar[Role] = "l1"

    strength: float = 1e-5

    def apply(
        self,
        grad: Tensor,
        weights: Tensor,
        state: Mapping[str, Tensor],
        hyper: Mapping[str, Tensor],
        layout: Layout,
        step: Tensor,
    ) -> None:
        grads, tensors = layout.views(grad), layout.views(weights)
        for name in chosen(self.parameters, layout):
            _added(grads[name], tensors[name].sign(), hyper["strength"])


@register("nuclear")
@dataclass(frozen=True)
class Nuclear(Penalty):
    """R = Σ‖W‖_*, the sum of the singular values of each matrix: g ← g + strength · U Vᵀ of W = U diag(s) Vᵀ, by which
    they become of low rank (Notsawo et al. 2025, arXiv 2506.05718). For singular values below `eps` it is s/eps times
    that. 1e-4 is the largest strength in their code, as with L1.

    Whether they could be decomposed is asked on the host, so that steps are not captured in CUDA graphs.
    A matrix is a parameter of two axes or more, [first axis, the rest]; others are passed by, which is said once.
    """

    needs_host: ClassVar[bool] = True

    eps: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.Fields(self).real("eps", minimum=0, open_minimum=True)

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

        grads, names = layout.views(grad), matrices(self.parameters, layout, "Nuclear")
        for (own, _), (_, stack) in zip(stacks(grads, names), stacks(layout.views(weights), names)):
            eps = stack.new_full((1, 1, 1, 1), self.eps)
            for g, found in zip(own, unitary(stack, eps).unbind(1)):
                _added(g, found, hyper["strength"])


@register("compression")
@dataclass(frozen=True)
class Compression(Penalty):
    """R = Σ‖W‖²_F: g ← g + 2 · strength · W, which an optimizer then scales (decoupled weight decay it does not).

    Delayed compression begins once the run has memorised: --filter "compression(start=memorizing)". It is published so,
    with .01 beside a mean cross entropy, found by a grid search (github.com/vuciv/grokfast).
    With the recipe "quick" .01 from the first step does not generalise.
    """

    role: ClassVar[Role] = "l2"

    strength: float = 0.01

    def apply(
        self,
        grad: Tensor,
        weights: Tensor,
        state: Mapping[str, Tensor],
        hyper: Mapping[str, Tensor],
        layout: Layout,
        step: Tensor,
    ) -> None:
        grads, tensors = layout.views(grad), layout.views(weights)
        for name in chosen(self.parameters, layout):
            _added(grads[name], tensors[name], 2 * hyper["strength"])


def _added(grad: Tensor, gradient: Tensor, strength: Tensor) -> None:
    """grad [E, ...] and the penalty's, strength [E, 1]."""
    grad.addcmul_(gradient, strength.view(-1, *[1] * (grad.ndim - 1)))
