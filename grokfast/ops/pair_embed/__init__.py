"""The first layer of a network that reads two one-hot operands: a gather of two rows, a bias, an activation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from grokfast import backend, checks
from grokfast.ops.indices import check_indices
from grokfast.ops.pair_embed.reference import ACTIVATIONS
from grokfast.ops.pair_embed.reference import pair_embed as reference

_IN_EXTENSION = {"identity": 0, "relu": 1, "square": 2, "abs": 3}


def pair_embed(
    w_a: Tensor, w_b: Tensor, pairs: Tensor, bias: Tensor | None = None, *, activation: str = "identity"
) -> Tensor:
    """act(w_a[a] + w_b[b] + bias): a linear layer on two concatenated one-hot vectors, without the multiplication.

    w_a [E, A, H], w_b [E, B, H], bias [E, H] or None; pairs [E, N, 2] int64, with pairs[..., 0] in [0, A) and
    pairs[..., 1] in [0, B), else IndexError (on a GPU torch's device-side assert). E at least 1.
    activation: "identity", "relu", "square", "abs" or "gelu". Returns [E, N, H]. The gradient of a table row is the
    sum over the pairs that read it, in the order of the pairs: the same bits every time. On CPU fp32 tensors with the
    extension both directions are one pass each and keep only the indices; differentiable once there.
    Raises ValueError naming the argument.
    """
    _check(w_a, w_b, pairs, bias, activation)
    if backend.extension() is None or not _fits(w_a, w_b, pairs, bias):
        check_indices("pairs[..., 0]", pairs[..., 0], w_a.shape[1])
        check_indices("pairs[..., 1]", pairs[..., 1], w_b.shape[1])
        return reference(w_a, w_b, pairs, bias, activation)
    if activation == "gelu":
        return ACTIVATIONS["gelu"](_PairEmbed.apply(w_a, w_b, pairs, bias, _IN_EXTENSION["identity"]))
    return _PairEmbed.apply(w_a, w_b, pairs, bias, _IN_EXTENSION[activation])


def _check(w_a: Tensor, w_b: Tensor, pairs: Tensor, bias: Tensor | None, activation: str) -> None:
    checks.choice("activation", activation, ACTIVATIONS)
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
    return type(pairs) is Tensor and all(backend.plain(t) and t[0].is_contiguous() for t in tables)


class _PairEmbed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w_a: Tensor, w_b: Tensor, pairs: Tensor, bias: Tensor | None, activation: int) -> Tensor:
        models, n, _ = pairs.shape
        indices = pairs.permute(2, 0, 1).contiguous()  # [2, E, N]
        out = w_a.new_empty(models, n, w_a.shape[2])
        a, b = indices
        backend.load_extension().pair_embed_forward(
            _tables(w_a, w_b, bias), a.data_ptr(), b.data_ptr(), out.data_ptr(), models, n, activation, _threads(out)
        )
        ctx.save_for_backward(w_a, w_b, indices, bias)
        ctx.activation = activation
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        w_a, w_b, (a, b), bias = ctx.saved_tensors
        grad = grad.contiguous()
        grad_a, grad_b = w_a.new_empty(w_a.shape), w_b.new_empty(w_b.shape)
        grad_bias = None if bias is None else bias.new_empty(bias.shape)
        backend.load_extension().pair_embed_backward(
            _tables(w_a, w_b, bias), a.data_ptr(), b.data_ptr(), grad.data_ptr(), grad_a.data_ptr(), grad_b.data_ptr(),
            0 if grad_bias is None else grad_bias.data_ptr(), *a.shape, ctx.activation, _threads(grad),
        )  # fmt: skip
        return grad_a, grad_b, None, grad_bias, None


def _tables(w_a: Tensor, w_b: Tensor, bias: Tensor | None) -> Any:
    return backend.load_extension().PairTables(
        w_a.data_ptr(), w_b.data_ptr(), 0 if bias is None else bias.data_ptr(),
        w_a.stride(0), w_b.stride(0), 0 if bias is None else bias.stride(0),
        w_a.shape[1], w_b.shape[1], w_a.shape[2],
    )  # fmt: skip


def _threads(out: Tensor) -> int:
    """One thread where starting another costs more than it saves."""
    return torch.get_num_threads() if out.numel() >= 16384 else 1
