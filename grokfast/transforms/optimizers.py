"""Optimizers as parts: the update of a step, after the transforms before it. What they keep lives with the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from grokfast import checks, parts
from grokfast.parts import Part
from grokfast.transforms.selection import chosen

if TYPE_CHECKING:
    from torch import Tensor

    from grokfast.transforms.base import Layout


@dataclass(frozen=True, kw_only=True)
class Optimizer(Part):
    """Base of the optimizers. One of one's own is a frozen dataclass with `rule` "", an `update`, and a `state`.

    is_averaged: whether evaluations are of other weights than those that train, see `averaged`.
    rule: what the one pass and the one launch call its update; "": neither has it, and `update` is torch operations.
    Where another kind is chosen for an experiment, it keeps the fields that both have: the same recipe with Lion.

    Args:
        lr: learning rate.
        weight_decay: decoupled for AdamW and Lion, L2 for the others.
        warmup: the rate is multiplied by min(1, step/warmup), so that the first step has rate 0.
        decayed: the parameters that weight decay acts on: "all"; "matrices", those of two axes or more, no biases and
            no LayerNorm; or patterns of their names with commas between, as "embedding,blocks.*.w_*".
    """

    family: ClassVar[str] = "optimizer"
    keeps: ClassVar[frozenset[str]] = frozenset({"lr", "weight_decay", "warmup", "decayed", "betas", "eps"})
    varies: ClassVar[frozenset[str]] = frozenset({"lr", "weight_decay"})
    rule: ClassVar[str]
    is_averaged: ClassVar[bool] = False

    lr: float = 1e-3
    weight_decay: float = 0.0
    warmup: int = 0
    decayed: str = parts.added("all")

    def __post_init__(self) -> None:
        fields = checks.Fields(self, "optimizer.")
        fields.real("lr", "weight_decay", minimum=0, maximum=checks.LARGEST_REAL)
        fields.integer("warmup", minimum=0)
        fields.text("decayed")

    @property
    def is_decoupled(self) -> bool:
        """Whether weight decay shrinks the weights themselves; else it is L2, a part of the gradient."""
        return self.rule in ("adamw", "lion")

    def decayed_ranges(self, layout: Layout) -> list[slice]:
        """Where decayed parameters lie in a row of flat [E, P]. ValueError where a pattern is no parameter's."""
        names = chosen(self.decayed, layout, "optimizer.decayed")
        found: list[slice] = []
        for name, at, shape in zip(layout.names, layout.offsets, layout.shapes):
            if name in names:
                begin = found.pop().start if found and found[-1].stop == at else at
                found.append(slice(begin, at + shape.numel()))
        return found

    @property
    def moments(self) -> list[str]:
        """Names of the tensors that it keeps of a model for the one pass, each as large as the parameters."""
        return ["exp_avg", "exp_avg_sq"] if self.rule else []

    def state(self, layout: Layout) -> Mapping[str, tuple[int, ...]]:
        """The tensors that `update` keeps of a model, zeros at first: name -> shape without E."""
        return {}

    def update(
        self,
        grad: Tensor,
        weights: Tensor,
        state: Mapping[str, Tensor],
        hyper: Mapping[str, Tensor],
        layout: Layout,
        step: Tensor,
    ) -> None:
        """Change weights [E, P] in place, given grad [E, P], and the state [E, *shape], too.

        hyper: fp64 [E, 1] of each field in `varies` ("beta1" and "beta2" for betas), lr being this step's with its
        warm-up. step: int64 [E, 1], the steps taken before this one. As with `Transform.apply`, nothing may ask the
        host for a tensor's values. Weight decay, and what it acts on, is the update's own.
        """
        raise NotImplementedError("it has none")

    def averaged(
        self,
        weights: Tensor,
        state: Mapping[str, Tensor],
        hyper: Mapping[str, Tensor],
        layout: Layout,
        step: Tensor,
    ) -> None:
        """Change weights [E, P], a copy of those that train, into those that are evaluated; as `update`, where
        `is_averaged`."""
        raise NotImplementedError("it has none")

    @property
    def hyper(self) -> dict[str, Any]:
        """What stands in a model's row of csrc/update_rules.h's `Hyper`; see transforms.rows.hyper_row. Where only some
        parameters are decayed, it is not the update that decays them."""
        return {
            "lr": self.lr, "betas": getattr(self, "betas", (0.9, 0.999)), "eps": getattr(self, "eps", 1e-8),
            "weight_decay": self.weight_decay if self.decayed == "all" or not self.rule else 0.0,
            "decoupled": self.rule == "adamw",
            "momentum": getattr(self, "momentum", 0.0), "nesterov": getattr(self, "nesterov", False),
        }  # fmt: skip


def check_betas(part: Any) -> None:
    """Raise TypeError or ValueError unless part.betas are two numbers in [0, 1); it then has them as floats."""
    if not isinstance(part.betas, (tuple, list)) or len(part.betas) != 2:
        raise ValueError(f"optimizer.betas must be two numbers in [0, 1), got {checks.shown(part.betas)}")
    one, two = (checks.real("optimizer.betas", beta, minimum=0, maximum=1, open_maximum=True) for beta in part.betas)
    object.__setattr__(part, "betas", (one, two))


@dataclass(frozen=True, kw_only=True)
class _Adams(Optimizer):
    """betas: decay of the two averages; eps: added to the root of the second."""

    varies: ClassVar[frozenset[str]] = frozenset({"lr", "weight_decay", "betas", "eps"})

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_betas(self)
        checks.Fields(self, "optimizer.").real("eps", minimum=0, maximum=checks.LARGEST_REAL)


@parts.register("adamw")
@dataclass(frozen=True, kw_only=True)
class AdamW(_Adams):
    """Adam with decoupled weight decay, w ← (1 − lr·weight_decay) w before the update (Loshchilov and Hutter 2019,
    arXiv 1711.05101), as torch.optim.AdamW. betas: decay of the two averages; eps: added to the root of the second.
    """

    rule: ClassVar[str] = "adamw"


@parts.register("adam")
@dataclass(frozen=True, kw_only=True)
class Adam(_Adams):
    """Adam (Kingma and Ba 2015, arXiv 1412.6980), weight decay as L2: g ← g + weight_decay·w, as torch.optim.Adam.

    betas: decay of the two averages; eps: added to the root of the second.
    """

    rule: ClassVar[str] = "adam"


@parts.register("sgd")
@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Gradient descent, weight decay as L2, as torch.optim.SGD: v ← momentum·v + g; w ← w − lr·v.

    momentum: 0 keeps no average. nesterov: Nesterov's form, w ← w − lr·(g + momentum·v).
    """

    rule: ClassVar[str] = "sgd"

    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        fields = checks.Fields(self, "optimizer.")
        fields.real("momentum", minimum=0, maximum=checks.LARGEST_REAL)
        fields.boolean("nesterov")
        if self.nesterov and self.momentum == 0:
            raise ValueError("optimizer.nesterov needs optimizer.momentum above 0, got 0")

    @property
    def moments(self) -> list[str]:
        return ["momentum_buffer"] if self.momentum else []


@parts.register("lion")
@dataclass(frozen=True, kw_only=True)
class Lion(Optimizer):
    """u = sign(β₁ m + (1 − β₁) g); m ← β₂ m + (1 − β₂) g; decoupled weight decay (Chen et al. 2023, arXiv 2302.06675).

    betas: β₁ and β₂.
    """

    rule: ClassVar[str] = "lion"
    varies: ClassVar[frozenset[str]] = frozenset({"lr", "weight_decay", "betas"})

    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_betas(self)

    @property
    def moments(self) -> list[str]:
        return ["exp_avg"]
