"""Lion, which torch.optim does not have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from grokfast import checks
from grokfast.transforms.rules import lion


class Lion(torch.optim.Optimizer):
    """θ ← θ (1 − lr·weight_decay) − lr·sign(β₁ m + (1−β₁) g), then m ← β₂ m + (1−β₂) g (Chen et al. 2023,
    arXiv 2302.06675, algorithm 2).

    Args:
        params: tensors or param groups; a complex one is two real ones.
        lr: learning rate, a number or a tensor of one element; the usual one is 3 to 10 times smaller than AdamW's.
        betas: (β₁, β₂), each in [0, 1).
        weight_decay: decoupled, at least 0.
        maximize: go up the gradient.

    Raises TypeError or ValueError, naming the argument, and TypeError for sparse gradients.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
    ) -> None:
        if not isinstance(lr, Tensor):
            checks.real("lr", lr, minimum=0)
        elif lr.numel() != 1:
            raise ValueError(f"lr must be a number or a tensor of one element, got shape {tuple(lr.shape)}")
        for i, beta in enumerate(betas):
            checks.real(f"betas[{i}]", beta, minimum=0, maximum=1, open_maximum=True)
        checks.real("weight_decay", weight_decay, minimum=0)
        checks.boolean("maximize", maximize)
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize})

    @torch._disable_dynamo
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns the closure's loss, if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        todo = [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        for _, p in todo:
            if p.grad.layout is not torch.strided:
                raise TypeError(f"Lion takes dense gradients only, got layout {p.grad.layout}")
        for group, p in todo:
            (beta1, beta2), grad, lr = group["betas"], -p.grad if group["maximize"] else p.grad, group["lr"]
            if not self.state[p]:
                self.state[p]["exp_avg"] = torch.zeros_like(p)
            own = (p, grad, self.state[p]["exp_avg"])
            weights, grad, exp_avg = map(torch.view_as_real, own) if p.is_complex() else own
            lr = lr.squeeze() if isinstance(lr, Tensor) else lr
            lion(weights, grad, exp_avg, lr=lr, beta1=beta1, beta2=beta2, weight_decay=group["weight_decay"])
        return loss
