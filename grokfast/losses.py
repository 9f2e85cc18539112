"""Losses as parts: how far a model's outputs are from the targets, and which rows are right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from grokfast import checks, parts
from grokfast.parts import Part, added

if TYPE_CHECKING:
    from torch import Tensor


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

        exists: bool [E, N], which rows count; None: all.
        """
        raise NotImplementedError


@parts.register("cross_entropy")
@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Loss):
    """−Σ q log softmax(logits), mean over rows; q is 1 at the answer, or 1 − label_smoothing there, and
    label_smoothing / C everywhere (Szegedy et al. 2016, arXiv 1512.00567), as torch's."""

    varies: ClassVar[frozenset[str]] = frozenset({"label_smoothing"})

    label_smoothing: float = added(0.0)

    def __post_init__(self) -> None:
        checks.Fields(self, "loss.").real("label_smoothing", minimum=0, maximum=1)

    @property
    def op(self) -> str | None:
        return None if self.label_smoothing else "cross_entropy"

    def __call__(self, logits: Tensor, target: Tensor, exists: Tensor | None = None) -> tuple[Tensor, Tensor]:
        from grokfast.ops import classify

        value, accuracy = classify(logits, target, loss="cross_entropy", exists=exists)
        if self.label_smoothing:
            spread = -logits.log_softmax(-1).mean(-1)  # [E, N]
            rows = spread.mean(-1) if exists is None else (spread * exists).sum(-1) / exists.sum(-1)
            value = (1 - self.label_smoothing) * value + self.label_smoothing * rows
        return value, accuracy


@parts.register("mse")
@dataclass(frozen=True, kw_only=True)
class MSE(Loss):
    """Squared error against the one-hot answer, mean over rows and classes, as torch's `mean`."""

    @property
    def op(self) -> str | None:
        return "mse"

    def __call__(self, logits: Tensor, target: Tensor, exists: Tensor | None = None) -> tuple[Tensor, Tensor]:
        from grokfast.ops import classify

        return classify(logits, target, loss="mse", exists=exists)


__all__ = ["MSE", "CrossEntropy", "Loss"]
