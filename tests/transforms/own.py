"""Two transforms of a user's own, one before the update and one after it, and some that do what they must not."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from grokfast.transforms import Transform


@dataclass(frozen=True)
class Orthogonal(Transform):
    """Of each tensor's gradient, `share` of its part along the weights is taken away (Prieto et al. 2025), and how many
    gradients were seen is counted."""

    varies: ClassVar = frozenset({"share"})
    share: float = 1.0

    def state(self, layout):
        return {"seen": (), "last": (layout.size,)}

    def apply(self, grad, weights, state, hyper, layout, step):
        state["seen"].add_(1)
        for g, w in zip(layout.views(grad).values(), layout.views(weights).values()):
            g, w = g.view(len(g), -1), w.view(len(w), -1)
            along = (w * g).sum(1, keepdim=True) / ((w * w).sum(1, keepdim=True) + 1e-30)
            g.sub_(hyper["share"] * along * w)
        state["last"].copy_(grad)


@dataclass(frozen=True)
class Clamp(Transform):
    """No row of a matrix is longer than `most` (Lyle et al. 2024)."""

    when: ClassVar = "after"
    varies: ClassVar = frozenset({"most"})
    most: float = 1.0

    def apply(self, grad, weights, state, hyper, layout, step):
        for w in layout.views(weights).values():
            if w.ndim == 3:
                norm = w.norm(dim=2, keepdim=True)
                w.mul_((hyper["most"][:, :, None] / norm).clamp(max=1))


class Bad(Transform):
    pass


@dataclass(frozen=True)
class Returns(Bad):
    def apply(self, grad, weights, state, hyper, layout, step):
        return grad * 2


@dataclass(frozen=True)
class Reshapes(Bad):
    def apply(self, grad, weights, state, hyper, layout, step):
        grad.unsqueeze_(0)


@dataclass(frozen=True)
class Retypes(Bad):
    def state(self, layout):
        return {"kept": (3,)}

    def apply(self, grad, weights, state, hyper, layout, step):
        state["kept"].data = state["kept"].data.double().half()


@dataclass(frozen=True)
class Rebinds(Bad):
    def state(self, layout):
        return {"kept": (3,)}

    def apply(self, grad, weights, state, hyper, layout, step):
        state["kept"] = torch.zeros(3)


@dataclass(frozen=True)
class Fails(Bad):
    def apply(self, grad, weights, state, hyper, layout, step):
        grad.add_(torch.zeros(7, 9, 11))


@dataclass(frozen=True)
class Empty(Bad):
    pass


@dataclass(frozen=True)
class Host(Transform):
    """Asks for a value."""

    needs_host: ClassVar = True

    def apply(self, grad, weights, state, hyper, layout, step):
        grad.mul_(0.5 if float(grad.abs().max()) > 1 else 1.0)
