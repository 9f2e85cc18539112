"""Losses as parts: how far a model's outputs are from the targets, and which rows are right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from grokfast import checks, parts
from grokfast.parts import Part, added

if TYPE_CHECKING:
    from torch import Tensor

    from grokfast.tasks.data import Data


@dataclass(frozen=True, kw_only=True)
class Loss(Part):
    """Base of the losses. One of one's own is a frozen dataclass with a `__call__`.

    op: what the fused steps and ops.classify call it; None: they do not have it.
    """

    family: ClassVar[str] = "loss"

    @property
    def op(self) -> str | None:
        return None

    def __call__(self, logits: Tensor, target: Tensor, exists: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean loss [E], differentiable, and accuracy [E]: logits [E, N, C], target [E, N].

        With S answers a row logits are [E, N, S, C], target [E, N, S], and accuracy is the share of rows whose answers
        are all right; of real targets both are [E, N, R], and accuracy is R².
        exists: bool [E, N], which rows count; None: all. Fields in `scheduled` are keywords, too: their values [E],
        where they change with the step.
        """
        raise NotImplementedError

    def why_not(self, data: Data) -> str:
        """Why it is no loss for such targets; empty where it is one."""
        return ""


@parts.register("cross_entropy")
@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Loss):
    """−Σ q log softmax(logits), mean over rows; q is 1 at the answer, or 1 − label_smoothing there, and
    label_smoothing / C everywhere (Szegedy et al. 2016, arXiv 1512.00567), as torch's."""

    scheduled: ClassVar[frozenset[str]] = frozenset({"label_smoothing"})

    label_smoothing: float = added(0.0)

    def __post_init__(self) -> None:
        checks.Fields(self, "loss.").real("label_smoothing", minimum=0, maximum=1)

    @property
    def op(self) -> str | None:
        return None if self.label_smoothing else "cross_entropy"

    def __call__(
        self, logits: Tensor, target: Tensor, exists: Tensor | None = None, *, label_smoothing: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        from grokfast.ops import classify

        value, accuracy = classify(logits, target, loss="cross_entropy", exists=exists)
        share = self.label_smoothing if label_smoothing is None else label_smoothing.to(logits.dtype)
        if label_smoothing is not None or self.label_smoothing:
            spread = -logits.log_softmax(-1).mean(-1)  # [E, N], or [E, N, S]
            spread = spread.mean(-1) if spread.ndim == 3 else spread
            rows = spread.mean(-1) if exists is None else (spread * exists).sum(-1) / exists.sum(-1)
            value = (1 - share) * value + share * rows
        return value, accuracy

    def why_not(self, data: Data) -> str:
        if not data.is_real:
            return ""
        shape = list(data.train.targets.shape)
        return f"loss cross_entropy takes classes as targets, not the real numbers {shape} of the task: take mse"


@parts.register("mse")
@dataclass(frozen=True, kw_only=True)
class MSE(Loss):
    """Squared error against the one-hot answer, mean over rows and classes, as torch's `mean`; or against real targets,
    mean over rows and outputs, whose accuracy is R²."""

    @property
    def op(self) -> str | None:
        return "mse"

    def __call__(self, logits: Tensor, target: Tensor, exists: Tensor | None = None) -> tuple[Tensor, Tensor]:
        from grokfast.ops import classify

        if target.is_floating_point():
            return regress(logits, target, exists)
        return classify(logits, target, loss="mse", exists=exists)


def regress(outputs: Tensor, target: Tensor, exists: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean squared error [E] and R² [E] of outputs [E, N, R] against real targets [E, N, R].

    R² is 1 − Σ error² / Σ (target − mean)², over rows and outputs, the mean of each output; where targets are constant
    it is 1 if there is no error, else 0. exists: bool [E, N], which rows count; None: all.
    """
    if outputs.shape != target.shape or outputs.ndim != 3:
        raise ValueError(f"outputs must be [E, N, R] as target is, got {[*outputs.shape]} and {[*target.shape]}")
    target = target.to(outputs.dtype)
    errors = (outputs - target).square()
    if exists is None:
        value, spread = errors.mean((1, 2)), (target - target.mean(1, keepdim=True)).square()
    else:
        there = exists[..., None].to(outputs.dtype)
        counts = there.sum(1, keepdim=True)  # [E, 1, 1]
        errors = errors.where(exists[..., None], 0)
        value = errors.sum((1, 2)) / (counts[:, 0, 0] * outputs.shape[2])
        spread = (target - (target * there).sum(1, keepdim=True) / counts).square() * there
    wrong, total = errors.detach().sum((1, 2)), spread.sum((1, 2))
    return value, (1 - wrong / total).where(total > 0, (wrong == 0).to(wrong.dtype))


__all__ = ["MSE", "CrossEntropy", "Loss", "regress"]
