"""Loss and accuracy of classifiers from their logits, and the gradient of the logits, in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from grokfast import backend, checks
from grokfast.ops.classify.reference import LOSSES
from grokfast.ops.classify.reference import classify as reference
from grokfast.ops.dispatch import outside_autocast
from grokfast.ops.indices import check_indices

UNASKED = -1  # in the place of a target: nothing is asked there


def classify(
    logits: Tensor, target: Tensor, *, loss: str = "cross_entropy", exists: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean loss and accuracy of each model: logits [E, N, C], target [E, N] int64 -> (loss [E], accuracy [E]).

    With S answers a row, logits [E, N, S, C] and target [E, N, S], -1 where none is asked: the loss is the mean over
    all answers that are, and a row is right when all its own are (`position_accuracy` has each one's).

    loss: "cross_entropy" (softmax), or "mse" against the one-hot target (mean over N and C, as torch's `mean`).
    exists: bool [E, N], which rows count, one at least of each model; None: all. With it, this is plain PyTorch.
    A row is right when `target` is the first of its largest logits. Targets must lie in [0, C), else IndexError (on a
    GPU torch's device-side assert).
    Only the loss is differentiable; on CPU fp32 logits with the extension its gradient is worked out in the forward
    pass, so that the backward costs nothing, and it is differentiable once.
    Raises ValueError naming the argument.
    """
    checks.choice("loss", loss, LOSSES)
    if logits.ndim == 4 and target.ndim == 3:
        return _positions(logits, target, loss, exists)
    if logits.ndim != 3 or not logits.is_floating_point() or logits.numel() == 0:
        raise ValueError(
            f"logits must be [E, N, C], not empty, of a float dtype, got {tuple(logits.shape)} {logits.dtype}"
        )
    if target.shape != logits.shape[:2] or target.dtype != torch.int64:
        accepted = f"{tuple(logits.shape[:2])} torch.int64"
        raise ValueError(f"target must be {accepted}, got {tuple(target.shape)} {target.dtype}")
    if target.device != logits.device:
        raise ValueError(f"target must be on {logits.device} as logits are, got {target.device}")
    if exists is not None and (exists.shape != target.shape or exists.dtype != torch.bool):
        raise ValueError(f"exists must be {tuple(target.shape)} torch.bool, got {tuple(exists.shape)} {exists.dtype}")
    if exists is not None or backend.extension() is None or not backend.plain(logits) or type(target) is not Tensor:
        check_indices("target", target, logits.shape[2])
        return reference(logits, target, loss, exists)
    return _Classify.apply(logits.contiguous(), target.contiguous(), LOSSES.index(loss), torch.is_grad_enabled())


def _positions(logits: Tensor, target: Tensor, loss: str, exists: Tensor | None) -> tuple[Tensor, Tensor]:
    """`classify` of every answer as a row of its own, then which rows are all right."""
    asked = check_positions(logits, target, exists)
    value, _ = classify(
        logits.flatten(1, 2), target.where(target != UNASKED, 0).flatten(1, 2), loss=loss,
        exists=None if asked is None else asked.flatten(1, 2),
    )  # fmt: skip
    return value, all_right(logits, target, exists)


def check_positions(logits: Tensor, target: Tensor, exists: Tensor | None = None) -> Tensor | None:
    """Which answers count, bool [E, N, S]: those that are asked, target not -1, of the rows that exist; None: all.

    logits [E, N, S, C], target [E, N, S], exists [E, N]; ValueError where shapes are others. On a GPU, which is not
    asked whether all are, never None.
    """
    if logits.ndim != 4 or target.shape != logits.shape[:3] or target.dtype != torch.int64:
        accepted = f"{tuple(logits.shape[:3])} torch.int64" if logits.ndim == 4 else "of logits [E, N, S, C]"
        raise ValueError(f"target must be {accepted}, got {tuple(target.shape)} {target.dtype}")
    if exists is not None and exists.shape != target.shape[:2]:
        raise ValueError(f"exists must be {tuple(target.shape[:2])} torch.bool, got {tuple(exists.shape)}")
    asked = target != UNASKED
    if exists is not None:
        return asked & exists[..., None]
    return None if target.is_cpu and bool(asked.all()) else asked


def all_right(logits: Tensor, target: Tensor, exists: Tensor | None = None) -> Tensor:
    """Share of rows whose asked answers are all right: logits [E, N, S, C], target [E, N, S] -> [E]."""
    right = (logits.detach().argmax(-1) == target) | (target == UNASKED)
    return _share(right.all(-1).to(logits.dtype), exists)


def position_accuracy(logits: Tensor, target: Tensor, exists: Tensor | None = None) -> Tensor:
    """Share of right answers at each position, of those asked there (NaN: none is): logits [E, N, S, C], target
    [E, N, S], exists [E, N] -> [E, S]."""
    asked = check_positions(logits, target, exists)
    right = (logits.detach().argmax(-1) == target).to(logits.dtype)
    return right.mean(1) if asked is None else (right * asked).sum(1) / asked.sum(1)


def _share(right: Tensor, exists: Tensor | None) -> Tensor:
    """Mean over the rows [E, N] that exist."""
    return right.mean(1) if exists is None else (right * exists).sum(1) / exists.sum(1)


class _Classify(torch.autograd.Function):
    @staticmethod
    @outside_autocast
    def forward(ctx: Any, logits: Tensor, target: Tensor, loss: int, with_grad: bool) -> tuple[Tensor, Tensor]:
        models, n, _ = logits.shape
        grad = torch.empty_like(logits) if with_grad and logits.requires_grad else None
        values, accuracy = logits.new_empty(models), logits.new_empty(models)
        threads = torch.get_num_threads() if logits.numel() >= 16384 else 1
        backend.load_extension().classify(loss, logits, target, grad, values, accuracy, n, threads)
        ctx.save_for_backward(grad)
        ctx.mark_non_differentiable(accuracy)
        return values, accuracy

    @staticmethod
    @once_differentiable
    @outside_autocast
    def backward(ctx: Any, grad_values: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        if bool((grad_values == 1).all()):  # `loss.sum().backward()`, the ordinary case
            return grad, None, None, None
        return grad * grad_values[:, None, None], None, None, None
