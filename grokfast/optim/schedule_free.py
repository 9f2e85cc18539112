"""Schedule-free AdamW for anybody's parameters: train() and eval() swap what it trains for what is evaluated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from grokfast import checks
from grokfast.transforms.schedule_free import averaged, move, normalized


class ScheduleFreeAdamW(torch.optim.Optimizer):
    """AdamW whose rate needs no schedule (Defazio et al. 2024, arXiv 2405.15682), with the equations of
    grokfast.transforms.schedule_free, the optimizer "schedule_free" of experiments.

    Parameters are y, with which gradients are to be taken, in training, and x, their average, after `eval()`:

        opt.train()          # before training steps; it begins so
        ...
        opt.eval()           # before an evaluation, or before the model is saved

    Args:
        params: tensors or param groups.
        lr: learning rate; warmup_steps: it rises over so many steps, (step + 1) / warmup_steps.
        betas: β₁ in (0, 1), β₂.
        eps, weight_decay: as AdamW's; weight decay is at y.
        r, weight_lr_power: of a step's weight in the average.

    Raises TypeError or ValueError, naming the argument, TypeError for sparse gradients, and RuntimeError for a step
    between `eval()` and `train()`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 2.5e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay), ("r", r)):
            checks.real(name, value, minimum=0)
        checks.real("weight_lr_power", weight_lr_power, minimum=0)
        checks.integer("warmup_steps", warmup_steps, minimum=0)
        for i, beta in enumerate(betas):
            checks.real(f"betas[{i}]", beta, minimum=0, maximum=1, open_minimum=i == 0, open_maximum=True)
        super().__init__(
            params,
            {
                "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "warmup_steps": warmup_steps,
                "r": r, "weight_lr_power": weight_lr_power, "train_mode": True, "k": 0, "weight_sum": 0.0,
                "lr_max": 0.0,
            },
        )  # fmt: skip

    def train(self) -> None:
        """Let parameters be y, those that train."""
        self._swap(True)

    def eval(self) -> None:
        """Let parameters be x, those that are evaluated."""
        self._swap(False)

    @torch.no_grad()
    def _swap(self, trains: bool) -> None:
        for group in self.param_groups:
            if group["train_mode"] == trains:
                continue
            group["train_mode"] = trains
            for p in group["params"]:
                state = self.state[p]
                if "z" in state and trains:
                    p.copy_(state.pop("y"))
                elif "z" in state:
                    state["y"] = p.detach().clone()  # so that training goes on to the same bits
                    p.copy_(averaged(p, state["z"], group["betas"][0]))

    @torch._disable_dynamo
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns the closure's loss, if given."""
        if not all(group["train_mode"] for group in self.param_groups):
            raise RuntimeError("the parameters are those of an evaluation: call train() before a step")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = [[(p, p.grad) for p in group["params"] if p.grad is not None] for group in self.param_groups]
        for _, grad in (both for own in work for both in own):
            if grad.layout is not torch.strided:
                raise TypeError(f"ScheduleFreeAdamW takes dense gradients only, got layout {grad.layout}")
        for group, own in zip(self.param_groups, work):
            self._step(group, own)
        return loss

    def _step(self, group: dict[str, Any], work: list[tuple[Tensor, Tensor]]) -> None:
        group["k"] += 1
        (beta1, beta2), rise = group["betas"], min(1.0, group["k"] / max(1, group["warmup_steps"]))
        lr = group["lr"] * rise
        group["lr_max"] = max(group["lr_max"], lr)
        own = group["k"] ** group["r"] * group["lr_max"] ** group["weight_lr_power"]
        group["weight_sum"] += own
        share = own / group["weight_sum"] if group["weight_sum"] else 0.0
        numbers = {"lr": lr, "share": share, "beta1": beta1, "beta2": beta2, "eps": group["eps"]}
        numbers["correction"] = 1 - beta2 ** group["k"]
        for p, grad in work:
            state = self.state[p]
            if not state:
                state |= {"z": p.detach().clone(), "exp_avg_sq": torch.zeros_like(p)}
            direction = normalized(grad, state["exp_avg_sq"], **numbers).add_(p, alpha=group["weight_decay"])
            move(p, state["z"], direction, **numbers)
