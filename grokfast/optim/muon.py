"""Muon for anybody's parameters, matrices of one shape at once; torch.optim.Muon takes matrices alone, one by one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from grokfast import checks
from grokfast.transforms import rules
from grokfast.transforms.muon import Adjustment, Precision, adjusted, newton_schulz


class Muon(torch.optim.Optimizer):
    """Matrices move by orthogonalised momentum (Jordan et al. 2024), as with torch.optim.Muon; parameters of one axis
    or none, and those of groups with `adamw=True` (embeddings and heads, usually), as with torch.optim.AdamW.

        opt = grokfast.optim.Muon([{"params": body}, {"params": embeddings, "adamw": True, "lr": 3e-4}], lr=0.02)

    The equations are those of grokfast.transforms.muon.Muon, the optimizer "muon" of experiments. Vectors among the
    matrices of a group are said once, in a warning.

    Args:
        params: tensors or param groups. One of more than two axes is a stack of matrices, those of its last two.
        lr: learning rate.
        weight_decay: decoupled, at least 0.
        momentum, nesterov: of matrices: μ, and whether Nesterov's form is taken.
        adjust_lr_fn: of matrices: "original" or "match_rms_adamw", as torch.optim.Muon's.
        ns_steps, ns_precision: Newton-Schulz's steps, and their products: in the "weights"'s precision, or "bfloat16",
            as in torch.optim.Muon.
        betas, eps: AdamW's.
        adamw: whether all of a group's parameters take AdamW's step.

    Raises TypeError or ValueError, naming the argument, and TypeError for sparse gradients and complex parameters.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        *,
        adjust_lr_fn: Adjustment = "original",
        ns_steps: int = 5,
        ns_precision: Precision = "weights",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        adamw: bool = False,
    ) -> None:
        defaults = {
            "lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov,
            "adjust_lr_fn": adjust_lr_fn, "ns_steps": ns_steps, "ns_precision": ns_precision, "betas": betas,
            "eps": eps, "adamw": adamw,
        }  # fmt: skip
        _check(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its values are checked, and vectors in it are said."""
        _check({**self.defaults, **param_group})
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for p in group["params"]:
            if p.is_complex():
                self.param_groups.pop()
                raise TypeError(f"Muon takes real parameters only, got {p.dtype} of shape {tuple(p.shape)}")
        flat = sum(p.ndim < 2 for p in group["params"])
        if flat and not group["adamw"]:
            warnings.warn(f"Muon passes by {flat} parameters that are no matrices: AdamW's step", stacklevel=3)

    @torch._disable_dynamo
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns the closure's loss, if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.grad.layout is not torch.strided:
                    raise TypeError(f"Muon takes dense gradients only, got layout {p.grad.layout}")
        for group in self.param_groups:
            own = [(p, p.grad) for p in group["params"] if p.grad is not None]
            matrices = [(p, grad) for p, grad in own if p.ndim > 1 and not group["adamw"]]
            if matrices:
                self._orthogonalized([p for p, _ in matrices], [grad for _, grad in matrices], group)
            for p, grad in own:
                if p.ndim < 2 or group["adamw"]:
                    self._adamw(p, grad, group)
        return loss

    def _orthogonalized(self, params: list[Tensor], grads: list[Tensor], group: dict[str, Any]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        share, lr = 1 - group["momentum"], group["lr"]
        torch._foreach_lerp_(buffers, grads, share)
        moved = torch._foreach_lerp(buffers, grads, share) if group["nesterov"] else buffers
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        of_shapes: dict[Any, list[int]] = {}
        for i, p in enumerate(params):
            of_shapes.setdefault((p.shape[-2:], p.dtype, p.device), []).append(i)
        for (shape, _, _), places in of_shapes.items():
            stack = torch.cat([moved[i].reshape(-1, *shape) for i in places])
            made = newton_schulz(stack, group["ns_steps"], group["ns_precision"])
            parts = made.split([params[i].numel() // shape.numel() for i in places])
            for i, of_one in zip(places, parts):
                params[i].sub_(of_one.view_as(params[i]), alpha=lr * adjusted(shape, group["adjust_lr_fn"]))

    def _adamw(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if not state:
            state |= {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
            state["step"] = torch.zeros((), dtype=torch.float32)
        state["step"] += 1
        numbers = {name: torch.tensor(group[name], dtype=torch.float64) for name in ("lr", "eps", "weight_decay")}
        (beta1, beta2) = (torch.tensor(beta, dtype=torch.float64) for beta in group["betas"])
        rules.adam(
            p, grad, state["exp_avg"], state["exp_avg_sq"], state["step"], beta1=beta1, beta2=beta2,
            decoupled=True, **numbers,
        )  # fmt: skip


def _check(values: dict[str, Any]) -> None:
    """Raise TypeError or ValueError unless a group may have these values."""
    for name in ("lr", "weight_decay", "eps"):
        checks.real(name, values[name], minimum=0)
    checks.real("momentum", values["momentum"], minimum=0, maximum=1, open_maximum=True)
    checks.choice("adjust_lr_fn", values["adjust_lr_fn"], ("original", "match_rms_adamw"))
    checks.choice("ns_precision", values["ns_precision"], ("weights", "bfloat16"))
    checks.integer("ns_steps", values["ns_steps"], minimum=1, maximum=99)
    checks.boolean("nesterov", values["nesterov"])
    checks.boolean("adamw", values["adamw"])
    for i, beta in enumerate(values["betas"]):
        checks.real(f"betas[{i}]", beta, minimum=0, maximum=1, open_maximum=True)
