"""SAM in a script: a closure that is evaluated twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from grokfast.optim.history import require_dense
from grokfast.transforms.sam import EPS


def sharpened(closure: Callable[[], Any], work: Sequence[tuple[Tensor, float]]) -> Callable[[], Any]:
    """The closure, after which gradients are those at w + ρ g / ‖g‖₂: its second evaluation is there. The loss is that
    of the first. `work`: the parameters that move, and ρ of each; the norm is that of them all.

    Nothing waits for the device. Raises TypeError for a sparse gradient.
    """

    def evaluated() -> Any:
        loss = closure()
        own = [(p, p.grad, rho) for p, rho in work if p.grad is not None]
        for _, grad, _ in own:
            require_dense(grad)
        kept = [p.detach().clone() for p, _, _ in own]
        with torch.no_grad():
            norms = [torch.linalg.vector_norm(grad, dtype=_wide(grad)) for _, grad, _ in own]
            norm = torch.linalg.vector_norm(torch.stack([n.to(norms[0]) for n in norms])) + EPS if norms else None
            for p, grad, rho in own:
                p.add_((grad.to(_wide(grad)) * (rho / norm.to(grad.device))).to(p.dtype))  # type: ignore[union-attr]
        try:
            closure()
        finally:
            with torch.no_grad():
                for (p, _, _), was in zip(own, kept):
                    p.copy_(was)
        return loss

    return evaluated


def _wide(t: Tensor) -> torch.dtype:
    return torch.promote_types(t.dtype, torch.float32)
