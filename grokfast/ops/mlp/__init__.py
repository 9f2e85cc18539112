"""Two linear layers and what is between them, without the hidden layer in memory."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from grokfast import checks
from grokfast.ops import dispatch
from grokfast.ops.mlp import cpu
from grokfast.ops.mlp.reference import ACTIVATIONS
from grokfast.ops.mlp.reference import mlp as reference
from grokfast.ops.sum_rows import sum_rows

IN_KERNELS = ("relu", "gelu", "squared_relu", "square")
MAX_WIDTH = 512  # of x and y: the kernels make the hidden layer anew for every 128 columns


def mlp(
    x: Tensor,
    w_in: Tensor,
    b_in: Tensor | None,
    w_out: Tensor,
    b_out: Tensor | None,
    *,
    activation: str = "relu",
    skip: Tensor | None = None,
    precision: str = "ieee",
    backend: str | None = None,
) -> Tensor:
    """y = skip + act(x W_inᵀ + b_in) W_outᵀ + b_out; weights as in nn.Linear, skip often x itself.

    x [..., d], w_in [h, d], b_in [h] or None, w_out [o, h], b_out [o] or None, skip [..., o] or None -> [..., o].
    An ensemble has a leading E everywhere: x [E, ..., d], w_in [E, h, d], b_in [E, h], w_out [E, o, h], b_out [E, o].

    activation: "relu", "gelu" (with erf), "squared_relu" (relu(z)²; So et al. 2021, arXiv 2109.08668), "square" (z²),
    or, in plain PyTorch, "gelu_tanh" (with tanh, as GPT-2 has it) or "silu" (z · sigmoid(z)).
    precision: of the products of fp32 tensors, "ieee", "tf32x3", "tf32" (which leaves the lower 13 bits of a number
    unread) or "bf16" (rounded), with sums in fp32; 16-bit tensors are multiplied as they are. The plain path leaves the
    first three to torch. Under autocast tensors take its dtype.
    backend: "triton", "reference" (plain PyTorch) or None, chosen by grokfast.backend.

    The kernels take fp32, bf16 and fp16 and d and o up to 512, need no memory for the hidden layer, give the same bits
    for the same input, and are differentiable once. On large CPU fp32 tensors (one model, relu or gelu) the C++
    extension does what is between the products in one pass, differentiable once, too; torch's own layers, which are
    faster for small ones (`grokfast doctor` says up to where), and backend "reference" any number of times.
    Under torch.func.vmap the kernels take its axis as one of models; torch.func.grad and its kin get plain PyTorch.
    Raises TypeError or ValueError naming the argument.
    """
    if activation not in ACTIVATIONS or not _is_right(x, w_in, b_in, w_out, b_out, skip):
        _check(x, w_in, b_in, w_out, b_out, activation, skip)
    dispatch.check_options(precision, backend)
    residual = skip is x
    if w_in.ndim == 2 and dispatch.torchs_own("mlp", x, x.numel() * w_in.shape[0], precision, backend):
        y = F.linear(ACTIVATIONS[activation](F.linear(x, w_in, b_in)), w_out, b_out)
        return y if skip is None else skip + y
    x, w_in, b_in, w_out, b_out, skip = dispatch.autocast(x, w_in, b_in, w_out, b_out, skip)  # type: ignore[assignment]
    skip = x if residual else skip
    is_ensemble = w_in.ndim == 3
    width = max(w_in.shape[-1], w_out.shape[-2])
    obstacle = f"they take a width up to {MAX_WIDTH}, got {width}" if width > MAX_WIDTH else ""
    if activation not in IN_KERNELS:
        obstacle = f"they take {', '.join(IN_KERNELS)}, got {activation}"
    if not dispatch.uses_triton("mlp", x, backend, obstacle):
        return _plain(x, w_in, b_in, w_out, b_out, activation, skip, precision, backend)
    precision = dispatch.kernel_precision(x.dtype, precision)
    if is_ensemble:
        y = _mlp(x.flatten(1, -2), w_in, b_in, w_out, b_out, activation, residual, precision)
        y = y.unflatten(1, x.shape[1:-1])
    else:
        rows = x.reshape(1, -1, x.shape[-1])
        weights = (None if t is None else t.unsqueeze(0) for t in (w_in, b_in, w_out, b_out))
        y = _mlp(rows, *weights, activation, residual, precision).view(*x.shape[:-1], w_out.shape[0])
    return y if skip is None or residual else y + skip


def _plain(
    x: Tensor, w_in: Tensor, b_in: Tensor | None, w_out: Tensor, b_out: Tensor | None, activation: str,
    skip: Tensor | None, precision: str, backend: str | None,
) -> Tensor:  # fmt: skip
    """By the C++ extension where it fits, else the reference."""
    if w_in.ndim == 3:
        rows = (None if t is None else t.flatten(1, -2) for t in (x, skip))
    else:
        rows = (None if t is None else t.reshape(-1, t.shape[-1]) for t in (x, skip))
    flat, flat_skip = rows
    assert flat is not None
    flat_skip = flat if skip is x else flat_skip
    own = backend is None and precision != "bf16" and w_in.ndim == 2
    if own and cpu.fits(activation, x, w_in, b_in, w_out, b_out, skip):
        y = cpu.mlp(flat, w_in, b_in, w_out, b_out, activation, flat_skip)
    else:
        y = reference(flat, w_in, b_in, w_out, b_out, activation, flat_skip, precision)
    return y.view(*x.shape[:-1], w_out.shape[-2])


def _is_right(
    x: Tensor, w_in: Tensor, b_in: Tensor | None, w_out: Tensor, b_out: Tensor | None, skip: Tensor | None
) -> bool:
    """A quick yes for one model on a CPU to what `_check` asks in words."""
    tensors = [t for t in (x, w_in, w_out, b_in, b_out) if t is not None]
    for t in tensors:
        if not (isinstance(t, Tensor) and t.is_cpu and t.dtype is x.dtype):
            return False
    if not (x.ndim and w_in.ndim == w_out.ndim == 2 and x.dtype.is_floating_point and (skip is None or skip is x)):
        return False
    (h, d), (o, same) = w_in.shape, w_out.shape
    return (
        x.shape[-1] == d > 0 and h == same > 0 and o > 0 and (skip is None or o == d)
        and (b_in is None or b_in.shape == (h,)) and (b_out is None or b_out.shape == (o,))
    )  # fmt: skip


def _check(
    x: Tensor, w_in: Tensor, b_in: Tensor | None, w_out: Tensor, b_out: Tensor | None, activation: str,
    skip: Tensor | None,
) -> None:  # fmt: skip
    checks.choice("activation", activation, ACTIVATIONS)
    dispatch.check_tensor("x", x, ["...", "d"], x)
    models = dispatch.check_models("x", x, "w_in", w_in)
    dispatch.check_tensor("w_in", w_in, [*models, "h", x.shape[-1]], x)
    hidden = w_in.shape[-2]
    dispatch.check_tensor("w_out", w_out, [*models, "o", hidden], x)
    for name, bias, n in (("b_in", b_in, hidden), ("b_out", b_out, w_out.shape[-2])):
        if bias is not None:
            dispatch.check_tensor(name, bias, [*models, n], x)
    if skip is not None:
        dispatch.check_tensor("skip", skip, [*x.shape[:-1], w_out.shape[-2]], x)
    if 0 in (*w_in.shape, *w_out.shape):
        raise ValueError(f"w_in and w_out must not be empty, got {tuple(w_in.shape)} and {tuple(w_out.shape)}")


@torch.library.custom_op(
    "grokfast::mlp",
    mutates_args=(),
    schema="(Tensor x, Tensor w_in, Tensor? b_in, Tensor w_out, Tensor? b_out, str activation, bool residual, "
    "str precision) -> Tensor",
)
def _mlp(
    x: Tensor, w_in: Tensor, b_in: Tensor | None, w_out: Tensor, b_out: Tensor | None,
    activation: str, residual: bool, precision: str,
) -> Tensor:  # fmt: skip
    """The kernels: x [E, N, d] -> [E, N, o]."""
    from grokfast.ops.mlp import kernels

    return kernels.forward(x, w_in, b_in, w_out, b_out, activation, residual, precision)


@torch.library.custom_op(
    "grokfast::mlp_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor w_in, Tensor? b_in, Tensor w_out, str activation, bool residual, "
    "str precision, bool[] wanted) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _mlp_backward(
    grad: Tensor, x: Tensor, w_in: Tensor, b_in: Tensor | None, w_out: Tensor,
    activation: str, residual: bool, precision: str, wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, w_in, b_in, w_out; empty where `wanted` (x, w_in or b_in, w_out) is False."""
    from grokfast.ops.mlp import kernels

    return kernels.backward(grad, x, w_in, b_in, w_out, activation, residual, precision, wanted)


@_mlp.register_fake
def _(x: Tensor, w_in: Tensor, b_in: Tensor | None, w_out: Tensor, b_out: Tensor | None, *options: Any) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], w_out.shape[1])


@_mlp_backward.register_fake
def _(grad: Tensor, x: Tensor, w_in: Tensor, b_in: Tensor | None, w_out: Tensor, *options: Any) -> tuple[Tensor, ...]:
    wants_x, wants_in, wants_out = options[-1]
    return (
        x.new_empty(x.shape if wants_x else 0),
        x.new_empty(w_in.shape if wants_in else 0),
        x.new_empty(b_in.shape if wants_in and b_in is not None else 0),
        x.new_empty(w_out.shape if wants_out else 0),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.activation, ctx.residual, ctx.precision = inputs
    ctx.save_for_backward(*tensors[:4])


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, w_in, b_in, w_out = ctx.saved_tensors
    of_x, of_w_in, of_b_in, of_w_out, of_b_out, *_ = ctx.needs_input_grad
    wanted = [of_x, of_w_in or of_b_in, of_w_out]
    grads = _mlp_backward(grad, x, w_in, b_in, w_out, ctx.activation, ctx.residual, ctx.precision, wanted)
    kept = [g if needed else None for g, needed in zip(grads, (of_x, of_w_in, of_b_in, of_w_out))]
    return *kept, sum_rows(grad) if of_b_out else None, None, None, None


_mlp.register_autograd(_differentiate, setup_context=_save)
dispatch.refuse_second_derivative("mlp", _mlp_backward)
dispatch.fold_vmap(_mlp, _mlp_backward)
