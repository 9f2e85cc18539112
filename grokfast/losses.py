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

    def of_rows(self, data: Data) -> str | None:
        """What ops.mlp_rows calls it, for such targets; None: it does not have it."""
        return None

    def __call__(self, logits: Tensor, target: Tensor, exists: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean loss [E], differentiable, and accuracy [E]: logits [E, N, C], target [E, N].

        With S answers a row logits are [E, N, S, C], target [E, N, S], -1 where none is asked, and accuracy is the
        share of rows whose asked answers are all right; of real targets both are [E, N, R], and accuracy is R².
        exists: bool [E, N], which rows count; None: all. Fields in `scheduled` are keywords, too: their values [E],
        where they change with the step.
        """
        raise NotImplementedError

    def gradient(self, logits: Tensor, target: Tensor, **scheduled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss and accuracy [E] and the gradient of the loss, shaped as logits; of these it needs no graph."""
        import torch

        logits = logits.detach().requires_grad_()
        with torch.enable_grad():
            value, accuracy = self(logits, target, **scheduled)
            (grad,) = torch.autograd.grad(value.sum(), logits, allow_unused=True, materialize_grads=True)
        return value.detach(), accuracy, grad

    def why_not(self, data: Data) -> str:
        """Why it is no loss for such targets; empty where it is one."""
        return ""


@parts.register("cross_entropy")
@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Loss):
    """−Σ q log softmax(logits / T), mean over rows; q is 1 at the answer, or 1 − label_smoothing there, and
    label_smoothing / C everywhere (Szegedy et al. 2016, arXiv 1512.00567), as torch's.

    temperature: T > 0. Above 1 the softmax saturates later: the scale of the logits is what a weight norm's effect on
    the delay runs through (Khanh 2026, arXiv 2606.18465, which divides the logits by a T that is not trained). It may
    differ between the runs of an ensemble; fused steps have T = 1 only.
    """

    scheduled: ClassVar[frozenset[str]] = frozenset({"label_smoothing", "temperature"})
    varies: ClassVar[frozenset[str]] = frozenset({"temperature"})

    label_smoothing: float = added(0.0)
    temperature: float = added(1.0)

    def __post_init__(self) -> None:
        fields = checks.Fields(self, "loss.")
        fields.real("label_smoothing", minimum=0, maximum=1)
        fields.real("temperature", minimum=0, maximum=checks.LARGEST_REAL, open_minimum=True)

    @property
    def op(self) -> str | None:
        return None if self.label_smoothing or self.temperature != 1 else "cross_entropy"

    def of_rows(self, data: Data) -> str | None:
        return "cross_entropy"

    def __call__(
        self,
        logits: Tensor,
        target: Tensor,
        exists: Tensor | None = None,
        *,
        label_smoothing: Tensor | None = None,
        temperature: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        from grokfast.ops import classify

        if temperature is not None:
            logits = logits / temperature.to(logits.dtype).view(-1, *[1] * (logits.ndim - 1))
        elif self.temperature != 1:
            logits = logits / self.temperature
        value, accuracy = classify(logits, target, loss="cross_entropy", exists=exists)
        share = self.label_smoothing if label_smoothing is None else label_smoothing.to(logits.dtype)
        if label_smoothing is not None or self.label_smoothing:
            spread = -logits.log_softmax(-1).mean(-1)  # [E, N], or [E, N, S]
            value = (1 - share) * value + share * _mean(spread, _asked(logits, target, exists))
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

    def of_rows(self, data: Data) -> str | None:
        return None if data.is_real else "mse"

    def __call__(self, logits: Tensor, target: Tensor, exists: Tensor | None = None) -> tuple[Tensor, Tensor]:
        from grokfast.ops import classify

        if target.is_floating_point():
            return regress(logits, target, exists)
        return classify(logits, target, loss="mse", exists=exists)


@parts.register("hinge")
@dataclass(frozen=True, kw_only=True)
class Hinge(Loss):
    """max(0, 1 − y f), mean over rows, where targets are signs y = ±1 (real numbers [N, 1]); accuracy is the share of
    rows whose output has the sign. Of classes Σ_j max(0, 1 − f_y + f_j) / C over the other classes j, as torch's
    multi_margin_loss."""

    def of_rows(self, data: Data) -> str | None:
        return "signs" if data.is_real else "hinge"

    def __call__(self, logits: Tensor, target: Tensor, exists: Tensor | None = None) -> tuple[Tensor, Tensor]:
        from grokfast.ops import classify

        if target.is_floating_point():
            margins = (target.to(logits.dtype) * logits)[..., 0]  # [E, N]
            rows, right = (1 - margins).clamp(min=0), (margins > 0).to(logits.dtype)
            return _mean(rows, exists), _mean(right, exists)
        _, accuracy = classify(logits.detach(), target, exists=exists)
        own = logits.gather(-1, target.clamp(min=0)[..., None])
        rows = ((1 - own + logits).clamp(min=0).sum(-1) - 1) / logits.shape[-1]  # j = y adds 1
        return _mean(rows, _asked(logits, target, exists)), accuracy

    def gradient(self, logits: Tensor, target: Tensor, **scheduled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not target.is_floating_point():
            return super().gradient(logits, target, **scheduled)
        value, accuracy = self(logits, target)
        is_short = target * logits <= 1  # at the edge as clamp's
        return value, accuracy, target.to(logits.dtype) * is_short / -logits.shape[1]

    def why_not(self, data: Data) -> str:
        y = data.train.targets
        if not data.is_real or (y.shape[1] == 1 and bool((y.abs() == 1).all())):
            return ""
        return f"loss hinge takes classes, or signs -1 and 1 [N, 1], not the real numbers {list(y.shape)} of the task"


@parts.register("stablemax")
@dataclass(frozen=True, kw_only=True)
class StableMax(Loss):
    """−log(s(f_y) / Σ s(f_j)) with s(x) = x + 1 for x ≥ 0, 1/(1 − x) below, in fp64: no softmax that could collapse
    (Prieto et al. 2025, arXiv 2501.04697, equations 8 and 9)."""

    def of_rows(self, data: Data) -> str | None:
        return "stablemax"

    def __call__(self, logits: Tensor, target: Tensor, exists: Tensor | None = None) -> tuple[Tensor, Tensor]:
        from grokfast.ops import classify

        _, accuracy = classify(logits.detach(), target, exists=exists)
        x = logits.double()
        # log s(x), of one side only: both clamps pass the gradient at 0, where their sum would have twice the slope
        logs = (1 + x.clamp(min=0)).log().where(x >= 0, -(1 - x.clamp(max=0)).log())
        rows = logs.logsumexp(-1) - logs.gather(-1, target.clamp(min=0)[..., None])[..., 0]  # [E, N], or [E, N, S]
        return _mean(rows, _asked(logits, target, exists)).to(logits.dtype), accuracy

    def why_not(self, data: Data) -> str:
        if not data.is_real:
            return ""
        return f"loss stablemax takes classes as targets, not the real numbers {list(data.train.targets.shape)}"


def _asked(logits: Tensor, target: Tensor, exists: Tensor | None) -> Tensor | None:
    """Which rows [E, N], or answers [E, N, S], count; None: all."""
    from grokfast.ops.classify import check_positions

    return exists if logits.ndim == 3 else check_positions(logits, target, exists)


def _mean(rows: Tensor, exists: Tensor | None) -> Tensor:
    """[E] over the rows [E, N], or answers [E, N, S], that exist."""
    if exists is None:
        return rows.flatten(1).mean(1)
    return rows.where(exists, 0).flatten(1).sum(1) / exists.flatten(1).sum(1)


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


__all__ = ["MSE", "CrossEntropy", "Hinge", "Loss", "StableMax", "regress"]
