"""Unembedding, loss and accuracy, without the logits in memory unless they are asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from grokfast import backend as backends
from grokfast import checks
from grokfast.ops import dispatch
from grokfast.ops.classify import classify
from grokfast.ops.indices import check_indices
from grokfast.ops.linear_cross_entropy.reference import LOSSES, logits_of, loss_of

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
    return_logits: bool = False,
    precision: str = "ieee",
    backend: str | None = None,
) -> Any:
    """Loss of the logits z = x Wᵀ: x [N, d], weight [V, d] as in nn.Linear, target [N] int64 in [0, V) -> a scalar.

    An ensemble has a leading E everywhere: x [E, N, d], weight [E, V, d], target [E, N] -> loss [E].

    loss: of a row with answer t, "cross_entropy" is log Σ exp(z) - z_t; "stablemax" is log Σ s(z) - log s(z_t) with
    s(z) = z + 1 for z >= 0, else 1 / (1 - z) (Prieto et al. 2025, arXiv 2501.04697, section 4); "mse" is the mean over
    the V classes of (z - one-hot)².
    reduction: over the N rows of each model; "none" gives [N] or [E, N].
    return_accuracy: also return the share of rows where t is the first of the largest logits; with "none", 1 or 0 of
    each row. It has no gradient.
    return_logits: also, and last, return z [N, V] or [E, N, V], which may have a gradient, too.
    precision, backend: as in ops.mlp. Loss, accuracy and logits of 16-bit tensors, also under autocast, are fp32.

    The kernels take fp32, bf16 and fp16 and d up to 512, keep two numbers a row, give the same bits for the same input,
    and are differentiable once. On CPU fp32 tensors the C++ extension makes loss, accuracy and the gradient of the
    logits in one pass ("cross_entropy" and "mse", unless reduction is "none"), differentiable once, too; the plain path
    any number of times.
    Returns the loss, or a tuple with what else is asked for.
    Raises TypeError or ValueError naming the argument, IndexError for a target out of range. On a GPU, which would
    have to be waited for, such a row has loss and gradient NaN in the kernels, torch's device-side assert otherwise.
    """
    _check(x, weight, target, loss, reduction)
    checks.boolean("return_accuracy", return_accuracy)
    checks.boolean("return_logits", return_logits)
    dispatch.check_options(precision, backend)
    check_indices("target", target, weight.shape[-2])
    x, weight = dispatch.autocast(x, weight)  # type: ignore[assignment]
    width = x.shape[-1]
    obstacle = f"they take d up to {MAX_WIDTH}, got {width}" if width > MAX_WIDTH else ""
    is_reduced = False
    if dispatch.uses_triton("linear_cross_entropy", x, backend, obstacle):
        tensors = (x, weight, target) if x.ndim == 3 else (x[None], weight[None], target[None])
        precision = dispatch.kernel_precision(x.dtype, precision)
        rows, right, _, logits = _linear_cross_entropy(*tensors, loss, precision, return_logits)
        rows, right, logits = rows.view(target.shape), right.detach().view(target.shape), logits.view(*target.shape, -1)
    else:
        logits = logits_of(x, weight, precision)
        is_reduced = backend is None and reduction != "none" and loss != "stablemax" and _fits(logits, target)
        if is_reduced:
            of_models = (logits, target) if x.ndim == 3 else (logits[None], target[None])
            rows, right = (t.view(target.shape[:-1]) for t in classify(*of_models, loss=loss))
            rows = rows * target.shape[-1] if reduction == "sum" else rows
        else:
            rows, right = loss_of(logits, target, loss, return_accuracy)
    if reduction != "none" and not is_reduced:
        rows = rows.mean(-1) if reduction == "mean" else rows.sum(-1)
        right = right.mean(-1) if return_accuracy else right
    asked = [t for t, is_asked in ((right, return_accuracy), (logits, return_logits)) if is_asked]
    return (rows, *asked) if asked else rows


def _fits(logits: Tensor, target: Tensor) -> bool:
    return backends.extension() is not None and backends.plain(logits) and type(target) is Tensor


def _check(x: Tensor, weight: Tensor, target: Tensor, loss: str, reduction: str) -> None:
    checks.choice("loss", loss, LOSSES)
    checks.choice("reduction", reduction, REDUCTIONS)
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
    schema="(Tensor x, Tensor weight, Tensor target, str loss, str precision, bool with_logits) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)
def _linear_cross_entropy(
    x: Tensor, weight: Tensor, target: Tensor, loss: str, precision: str, with_logits: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The kernels: x [E, N, d] -> fp32 loss [E, N], right or not [E, N], for the backward norm [2, E, N], and logits.

    These are [E, N, V], or [E, N, 0].
    """
    from grokfast.ops.linear_cross_entropy import kernels

    return kernels.forward(x, weight, target, loss, precision, with_logits)


@torch.library.custom_op(
    "grokfast::linear_cross_entropy_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor? grad_logits, Tensor x, Tensor weight, Tensor target, Tensor norm, str loss, "
    "str precision, bool[] wanted) -> (Tensor, Tensor)",
)
def _linear_cross_entropy_backward(
    grad: Tensor, grad_logits: Tensor | None, x: Tensor, weight: Tensor, target: Tensor, norm: Tensor,
    loss: str, precision: str, wanted: list[bool],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of x and weight from those of the rows' losses [E, N] and of the logits; empty where not `wanted`."""
    from grokfast.ops.linear_cross_entropy import kernels

    return kernels.backward(grad, grad_logits, x, weight, target, norm, loss, precision, wanted)


@_linear_cross_entropy.register_fake
def _(x: Tensor, weight: Tensor, target: Tensor, loss: str, precision: str, with_logits: bool) -> tuple[Tensor, ...]:
    models, n = target.shape
    classes = weight.shape[1] if with_logits else 0
    shapes = (models, n), (models, n), (2, models, n), (models, n, classes)
    return tuple(x.new_empty(shape, dtype=torch.float32) for shape in shapes)


@_linear_cross_entropy_backward.register_fake
def _(grad: Tensor, grad_logits: Tensor | None, x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    wants_x, wants_weight = rest[-1]
    return x.new_empty(x.shape if wants_x else 0), x.new_empty(weight.shape if wants_weight else 0)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.loss, ctx.precision, ctx.with_logits = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any, grad: Tensor | None, _right: Tensor | None, _norm: Tensor | None, grad_logits: Tensor | None
) -> tuple[Tensor | None, ...]:
    wanted, norm = list(ctx.needs_input_grad[:2]), ctx.saved_tensors[3]
    grad = torch.zeros_like(norm[0]) if grad is None else grad
    grad_logits = grad_logits if ctx.with_logits else None
    grads = _linear_cross_entropy_backward(grad, grad_logits, *ctx.saved_tensors, ctx.loss, ctx.precision, wanted)
    return *(g if needed else None for g, needed in zip(grads, wanted)), None, None, None, None


_linear_cross_entropy.register_autograd(_differentiate, setup_context=_save)
dispatch.refuse_second_derivative("linear_cross_entropy", _linear_cross_entropy_backward)
