"""Schedule-free AdamW: no rate has to fall, since what is evaluated is an average of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from grokfast import checks, parts
from grokfast.transforms.base import Layout
from grokfast.transforms.optimizers import Optimizer, check_betas
from grokfast.transforms.selection import chosen

if TYPE_CHECKING:
    from torch import Tensor


@parts.register("schedule_free")
@dataclass(frozen=True, kw_only=True)
class ScheduleFreeAdamW(Optimizer):
    """AdamW without a schedule (Defazio et al. 2024, arXiv 2405.15682, algorithm 1), as schedulefree.AdamWScheduleFree.

    Models train at y = (1 − β₁) z + β₁ x and are evaluated at x, an average of all z: with the gradient g at y, and v
    as Adam's, u = g / (√(v / (1 − β₂ᵗ)) + eps) + weight_decay·y; z ← z − lr·u; x ← (1 − c) x + c z, where c is the
    step's share of the sum of tʳ · max(lr)^weight_lr_power. Evaluations, snapshots and results have x, checkpoints y
    and z.

    Args:
        betas: β₁ in (0, 1), what Adam's momentum is here, and β₂. warmup: matters here, see the paper.
        r, weight_lr_power: of a step's weight in the average.
    """

    varies: ClassVar[frozenset[str]] = frozenset({"lr", "weight_decay", "betas", "eps"})
    rule: ClassVar[str] = ""
    is_averaged: ClassVar[bool] = True

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    r: float = 0.0
    weight_lr_power: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_betas(self)
        if self.betas[0] == 0:
            raise ValueError("optimizer.betas must begin with a number above 0, got 0.0: x is not in y otherwise")
        checks.Fields(self, "optimizer.").real("eps", "r", "weight_lr_power", minimum=0, maximum=checks.LARGEST_REAL)

    def state(self, layout: Layout) -> Mapping[str, tuple[int, ...]]:
        return {"z": (layout.size,), "exp_avg_sq": (layout.size,), "weight_sum": (), "lr_max": ()}

    def update(
        self,
        grad: Tensor,
        weights: Tensor,
        state: Mapping[str, Tensor],
        hyper: Mapping[str, Tensor],
        layout: Layout,
        step: Tensor,
    ) -> None:
        import torch

        lr, z, total = hyper["lr"], state["z"], state["weight_sum"][:, None]
        z.copy_(torch.where(step == 0, weights, z))
        lr_max = torch.maximum(state["lr_max"][:, None], lr)
        state["lr_max"].copy_(lr_max[:, 0])
        own = (step + 1) ** self.r * lr_max**self.weight_lr_power
        total.add_(own)
        share = torch.where(total > 0, own / total, 0)
        numbers = {"lr": lr, "share": share, "correction": 1 - hyper["beta2"] ** (step + 1)}
        numbers |= {name: hyper[name] for name in ("beta1", "beta2", "eps")}
        direction = normalized(grad, state["exp_avg_sq"], **(n := _like(numbers, weights)))
        decay, names = hyper["weight_decay"].to(weights.dtype), chosen(self.decayed, layout, "optimizer.decayed")
        of_all, y = layout.views(direction), layout.views(weights)
        for name in names if len(names) < len(of_all) else ():
            of_all[name].add_(decay.view(-1, *[1] * (y[name].ndim - 1)) * y[name])
        if len(names) == len(of_all):
            direction.addcmul_(weights, decay)
        move(weights, z, direction, **n)

    def averaged(
        self,
        weights: Tensor,
        state: Mapping[str, Tensor],
        hyper: Mapping[str, Tensor],
        layout: Layout,
        step: Tensor,
    ) -> None:
        import torch

        x = averaged(weights, state["z"], hyper["beta1"].to(weights.dtype))
        weights.copy_(torch.where(step == 0, weights, x))


def normalized(grad: Tensor, exp_avg_sq: Tensor, *, beta2: Any, correction: Any, eps: Any, **_: Any) -> Tensor:
    """g / (√(v / (1 − β₂ᵗ)) + eps), v advanced."""
    exp_avg_sq.mul_(beta2).add_(grad.square() * (1 - beta2))
    return grad / ((exp_avg_sq / correction).sqrt() + eps)


def move(y: Tensor, z: Tensor, direction: Tensor, *, lr: Any, beta1: Any, share: Any, **_: Any) -> None:
    """y and z after a step in a direction u: of x, which is in y, nothing else need be kept."""
    y.add_((z - y) * share).add_(direction * (lr * (beta1 * (1 - share) - 1)))
    z.sub_(direction * lr)


def averaged(y: Tensor, z: Tensor, beta1: Any) -> Tensor:
    """x = (y − (1 − β₁) z) / β₁."""
    return y + (y - z) * (1 / beta1 - 1)


def _like(numbers: Mapping[str, Tensor], like: Tensor) -> dict[str, Tensor]:
    return {name: number.to(like.dtype) for name, number in numbers.items()}
