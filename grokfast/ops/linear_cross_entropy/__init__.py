"""Unembedding, loss and accuracy without the logits in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from grokfast import checks
from grokfast.ops import dispatch
from grokfast.ops.indices import check_indices
from grokfast.ops.linear_cross_entropy.reference import LOSSES
from grokfast.ops.linear_cross_entropy.reference import linear_cross_entropy as reference

MAX_WIDTH = 512  # of x: the kernels make the logits anew for every 128 columns of a gradient
REDUCTIONS = ("mean", "sum", "none")


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    loss: str = "cross_entropy",
    reduction: str = "mean",
    return_accuracy: bool = False,
    precision: str = "ieee",
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Loss of the logits z = x Wᵀ: x [N, d], weight [V, d] as in nn.Linear, target [N] int64 in [0, V) -> a scalar.

    An ensemble has a leading E everywhere: x [E, N, d], weight [E, V, d], target [E, N] -> loss [E].

    loss: of a row with answer t, "cross_entropy" is log Σ exp(z) - z_t; "stablemax" is log Σ s(z) - log s(z_t) with
    s(z) = z + 1 for z >= 0, else 1 / (1 - z) (Prieto et al. 2025, arXiv 2501.04697, section 4); "mse" is the mean over
    the V classes of (z - one-hot)².
    reduction: over the N rows of each model; "none" gives [N] or [E, N].
    return_accuracy: also return the share of rows where t is the first of the largest logits; with "none", 1 or 0 of
    each row. It has no gradient.
    precision, backend: as in ops.mlp. Loss and accuracy of 16-bit tensors, also under autocast, are fp32.

    The kernels take fp32, bf16 and fp16 and d up to 512, keep two numbers a row, give the same bits for the same input,
    and are differentiable once; the plain path any number of times.
    Raises TypeError or ValueError naming the argument, IndexError for a target out of range. On a GPU, which would
    have to be waited for, such a row has loss and gradient NaN in the kernels, torch's device-side assert otherwise.
    """
    _check(x, weight, target, loss, reduction, return_accuracy)
    dispatch.check_options(precision, backend)
    check_indices("target", target, weight.shape[-2])
    x, weight = dispatch.autocast(x, weight)  # type: ignore[assignment]
    width = x.shape[-1]
    obstacle = f"they take d up to {MAX_WIDTH}, got {width}" if width > MAX_WIDTH else ""
    if dispatch.uses_triton("linear_cross_entropy", x, backend, obstacle):
        tensors = (x, weight, target) if x.ndim == 3 else (x[None], weight[None], target[None])
        rows, right, _ = _linear_cross_entropy(*tensors, loss, dispatch.kernel_precision(x.dtype, precision))
        rows, is_right = rows.view(target.shape), right.detach().view(target.shape) if return_accuracy else None
    else:
        rows, is_right = reference(x, weight, target, loss, precision, return_accuracy)
    if reduction != "none":
        rows = rows.mean(-1) if reduction == "mean" else rows.sum(-1)
        is_right = None if is_right is None else is_right.mean(-1)
    return rows if is_right is None else (rows, is_right)


def _check(x: Tensor, weight: Tensor, target: Tensor, loss: str, reduction: str, return_accuracy: bool) -> None:
    checks.choice("loss", loss, LOSSES)
    checks.choice("reduction", reduction, REDUCTIONS)
    checks.boolean("return_accuracy", return_accuracy)
    dispatch.check_tensor("x", x, ["...", "N", "d"], x)
    models = dispatch.check_models("x", x, "weight", weight)
    dispatch.check_tensor("x", x, [*models, "N", "d"], x)
    dispatch.check_tensor("weight", weight, [*models, "V", x.shape[-1]], x)
    if 0 in (*x.shape, *weight.shape):
        raise ValueError(f"x and weight must not be empty, got {tuple(x.shape)} and {tuple(weight.shape)}")
    if not isinstance(target, Tensor):
        raise TypeError(f"target must be a tensor, got {target!r} ({type(target).__name__})")
    if target.shape != x.shape[:-1] or target.dtype != torch.int64:
        raise ValueError(f"target must be {tuple(x.shape[:-1])} torch.int64, got {tuple(target.shape)} {target.dtype}")
    if target.device != x.device:
        raise ValueError(f"target must be on {x.device} as x is, got {target.device}")


@torch.library.custom_op(
    "grokfast::linear_cross_entropy",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor target, str loss, str precision) -> (Tensor, Tensor, Tensor)",
)
def _linear_cross_entropy(
    x: Tensor, weight: Tensor, target: Tensor, loss: str, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The kernels: x [E, N, d] -> fp32 loss [E, N], right or not [E, N], and for the backward norm [2, E, N]."""
    from grokfast.ops.linear_cross_entropy import kernels

    return kernels.forward(x, weight, target, loss, precision)


@torch.library.custom_op(
    "grokfast::linear_cross_entropy_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor weight, Tensor target, Tensor norm, str loss, str precision, "
    "bool[] wanted) -> (Tensor, Tensor)",
)
def _linear_cross_entropy_backward(
    grad: Tensor, x: Tensor, weight: Tensor, target: Tensor, norm: Tensor, loss: str, precision: str, wanted: list[bool]
) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight from that of the rows' losses [E, N]; empty where not `wanted`."""
    from grokfast.ops.linear_cross_entropy import kernels

    return kernels.backward(grad, x, weight, target, norm, loss, precision, wanted)


@_linear_cross_entropy.register_fake
def _(x: Tensor, weight: Tensor, target: Tensor, loss: str, precision: str) -> tuple[Tensor, Tensor, Tensor]:
    models, n = target.shape
    rows = [x.new_empty(models, n, dtype=torch.float32) for _ in range(2)]
    return rows[0], rows[1], x.new_empty(2, models, n, dtype=torch.float32)


@_linear_cross_entropy_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    wants_x, wants_weight = rest[-1]
    return x.new_empty(x.shape if wants_x else 0), x.new_empty(weight.shape if wants_weight else 0)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.loss, ctx.precision = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, output[2])


def _differentiate(ctx: Any, grad: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[:2])
    grads = _linear_cross_entropy_backward(grad, *ctx.saved_tensors, ctx.loss, ctx.precision, wanted)
    return *(g if needed else None for g, needed in zip(grads, wanted)), None, None, None


_linear_cross_entropy.register_autograd(_differentiate, setup_context=_save)
dispatch.refuse_second_derivative("linear_cross_entropy", _linear_cross_entropy_backward)
