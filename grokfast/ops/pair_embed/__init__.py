"""The first layer of a network that reads two one-hot operands: a gather of two rows, a bias, an activation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from grokfast import backend as backends
from grokfast import checks
from grokfast.ops import dispatch
from grokfast.ops.indices import check_indices
from grokfast.ops.pair_embed.reference import ACTIVATIONS
from grokfast.ops.pair_embed.reference import pair_embed as reference
from grokfast.ops.rows import PairIndex, pair_readers

IN_EXTENSION = {"identity": 0, "relu": 1, "square": 2, "abs": 3}


def pair_embed(
    w_a: Tensor,
    w_b: Tensor,
    pairs: Tensor | PairIndex,
    bias: Tensor | None = None,
    *,
    activation: str = "identity",
    backend: str | None = None,
) -> Tensor:
    """act(w_a[a] + w_b[b] + bias): a linear layer on two concatenated one-hot vectors, without the multiplication.

    w_a [E, A, H], w_b [E, B, H], bias [E, H] or None; pairs [E, N, 2] int64, with pairs[..., 0] in [0, A) and
    pairs[..., 1] in [0, B), else IndexError. On a GPU, which would have to be waited for, such a pair's row is NaN in
    the kernels, torch's device-side assert otherwise. E at least 1.
    activation: "identity", "relu", "square", "abs" or "gelu". Returns [E, N, H]. The gradient of a table row is the
    sum over the pairs that read it, in the order of the pairs: the same bits every time. For it the kernels have to
    know who reads each row; a PairIndex in the place of `pairs` works that out once, a tensor in every backward.
    backend: as in ops.mlp. The Triton kernels take fp32, bf16 and fp16, with sums in fp32. On CPU fp32 tensors with the
    extension both directions are one pass each. Both keep only the tables and indices and are differentiable once, the
    plain path any number of times. Raises TypeError or ValueError naming the argument.
    """
    index, pairs = (pairs, pairs.pairs) if isinstance(pairs, PairIndex) else (None, pairs)
    _check(w_a, w_b, pairs, bias, activation)
    dispatch.check_backend(backend)
    if index is not None and index.n_rows != (w_a.shape[1], w_b.shape[1]):
        raise ValueError(f"pairs must be of {w_a.shape[1]} and {w_b.shape[1]} rows as w_a and w_b, got {index.n_rows}")
    by_triton = dispatch.uses_triton("pair_embed", w_a, backend, "")
    own = backend is None and not by_triton and backends.extension() is not None
    if not (own and _fits(w_a, w_b, pairs, bias)) and index is None:  # the extension looks itself
        check_indices("pairs[..., 0]", pairs[..., 0], w_a.shape[1])
        check_indices("pairs[..., 1]", pairs[..., 1], w_b.shape[1])
    if by_triton:
        return _pair_embed(w_a, w_b, pairs, bias, [] if index is None else index.readers, activation)
    if not own or not _fits(w_a, w_b, pairs, bias):
        return reference(w_a, w_b, pairs, bias, activation)
    if activation == "gelu":
        return ACTIVATIONS["gelu"](_PairEmbed.apply(w_a, w_b, pairs, bias, IN_EXTENSION["identity"]))
    return _PairEmbed.apply(w_a, w_b, pairs, bias, IN_EXTENSION[activation])


def _check(w_a: Tensor, w_b: Tensor, pairs: Tensor, bias: Tensor | None, activation: str) -> None:
    checks.choice("activation", activation, ACTIVATIONS)
    for name, t in (("w_a", w_a), ("w_b", w_b), ("pairs", pairs), ("bias", bias)):
        if not isinstance(t, Tensor) and not (name == "bias" and t is None):
            raise TypeError(f"{name} must be a tensor, got {t!r} ({type(t).__name__})")
    for name, table in (("w_a", w_a), ("w_b", w_b)):
        if table.ndim != 3 or not len(table) or not table.is_floating_point():
            raise ValueError(f"{name} must be [E, rows, H] of a float dtype, got {tuple(table.shape)} {table.dtype}")
    models, _, width = w_a.shape
    if (w_b.shape[0], w_b.shape[2]) != (models, width) or w_b.dtype != w_a.dtype:
        raise ValueError(f"w_b must be [{models}, rows, {width}] {w_a.dtype}, got {tuple(w_b.shape)} {w_b.dtype}")
    if pairs.ndim != 3 or (pairs.shape[0], pairs.shape[2]) != (models, 2) or pairs.dtype != torch.int64:
        raise ValueError(f"pairs must be [{models}, N, 2] torch.int64, got {tuple(pairs.shape)} {pairs.dtype}")
    if bias is not None and (bias.shape != (models, width) or bias.dtype != w_a.dtype):
        raise ValueError(f"bias must be [{models}, {width}] {w_a.dtype}, got {tuple(bias.shape)} {bias.dtype}")
    for name, t in (("w_b", w_b), ("pairs", pairs), ("bias", bias)):
        if t is not None and t.device != w_a.device:
            raise ValueError(f"{name} must be on {w_a.device} as w_a is, got {t.device}")


def _fits(w_a: Tensor, w_b: Tensor, pairs: Tensor, bias: Tensor | None) -> bool:
    """CPU fp32 tables whose rows are contiguous within a model (models may lie further apart)."""
    tables = [w_a, w_b] if bias is None else [w_a, w_b, bias]
    return type(pairs) is Tensor and all(backends.plain(t) and t[0].is_contiguous() for t in tables)


@torch.library.custom_op(
    "grokfast::pair_embed",
    mutates_args=(),
    schema="(Tensor w_a, Tensor w_b, Tensor pairs, Tensor? bias, Tensor[] readers, str activation) -> Tensor",
)
def _pair_embed(
    w_a: Tensor, w_b: Tensor, pairs: Tensor, bias: Tensor | None, readers: list[Tensor], activation: str
) -> Tensor:
    """The kernels: [E, N, H]. `readers` is PairIndex.readers, or empty."""
    from grokfast.ops.pair_embed import kernels

    return kernels.forward(w_a, w_b, pairs, bias, activation)


@torch.library.custom_op(
    "grokfast::pair_embed_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor w_a, Tensor w_b, Tensor pairs, Tensor? bias, Tensor[] readers, str activation, "
    "bool[] wanted) -> (Tensor, Tensor, Tensor)",
)
def _pair_embed_backward(
    grad: Tensor, w_a: Tensor, w_b: Tensor, pairs: Tensor, bias: Tensor | None, readers: list[Tensor],
    activation: str, wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of w_a, w_b and bias; empty where `wanted` is False."""
    from grokfast.ops.pair_embed import kernels

    return kernels.backward(grad, w_a, w_b, pairs, bias, readers, activation, wanted)


@_pair_embed.register_fake
def _(w_a: Tensor, w_b: Tensor, pairs: Tensor, *rest: Any) -> Tensor:
    return w_a.new_empty(*pairs.shape[:2], w_a.shape[2])


@_pair_embed_backward.register_fake
def _(grad: Tensor, w_a: Tensor, w_b: Tensor, pairs: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    shapes = w_a.shape, w_b.shape, (w_a.shape[0], w_a.shape[2])
    of_a, of_b, of_bias = (w_a.new_empty(shape if wants else 0) for shape, wants in zip(shapes, rest[-1]))
    return of_a, of_b, of_bias


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    w_a, w_b, pairs, bias, readers, ctx.activation = inputs
    ctx.save_for_backward(w_a, w_b, pairs, bias, *readers)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    w_a, w_b, pairs, bias, *readers = ctx.saved_tensors
    wanted = [ctx.needs_input_grad[i] for i in (0, 1, 3)]
    readers = readers or pair_readers(pairs, w_a.shape[1], w_b.shape[1])
    grads = _pair_embed_backward(grad, w_a, w_b, pairs, bias, readers, ctx.activation, wanted)
    of_a, of_b, of_bias = (g if needed else None for g, needed in zip(grads, wanted))
    return of_a, of_b, None, of_bias, [None] * len(ctx.saved_tensors[4:]), None


_pair_embed.register_autograd(_differentiate, setup_context=_save)
dispatch.refuse_second_derivative("pair_embed", _pair_embed_backward)
dispatch.fold_vmap(_pair_embed, _pair_embed_backward)


class _PairEmbed(torch.autograd.Function):
    @staticmethod
    @dispatch.outside_autocast
    def forward(ctx: Any, w_a: Tensor, w_b: Tensor, pairs: Tensor, bias: Tensor | None, activation: int) -> Tensor:
        models, n, _ = pairs.shape
        indices = pairs.permute(2, 0, 1).contiguous()  # [2, E, N]
        out = w_a.new_empty(models, n, w_a.shape[2])
        a, b = indices
        backends.load_extension().pair_embed_forward(w_a, w_b, bias, a, b, out, activation, _threads(out))
        ctx.save_for_backward(w_a, w_b, indices, bias)
        ctx.activation = activation
        return out

    @staticmethod
    @once_differentiable
    @dispatch.outside_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        w_a, w_b, (a, b), bias = ctx.saved_tensors
        grad = grad.contiguous()
        grad_a, grad_b = w_a.new_empty(w_a.shape), w_b.new_empty(w_b.shape)
        grad_bias = None if bias is None else bias.new_empty(bias.shape)
        backends.load_extension().pair_embed_backward(
            w_a, w_b, bias, a, b, grad, grad_a, grad_b, grad_bias, ctx.activation, _threads(grad)
        )
        return grad_a, grad_b, None, grad_bias, None


def _threads(out: Tensor) -> int:
    """One thread where starting another costs more than it saves."""
    return torch.get_num_threads() if out.numel() >= 16384 else 1
