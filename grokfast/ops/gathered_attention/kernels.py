"""Attention over gathered rows in Triton, for every model of an ensemble: tiles of rows forward, and backward in parts.

The forward keeps the largest score of a row and its sum of exp(score - largest), whose logarithm would lose digits; the
backward over rows makes the weights anew, writes the gradient of each query, and of each key that is read its weight
and the gradient of its score. What a row of the table gets from its readers is then summed chunk after chunk of
readers, in their order, and over the chunks in theirs.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from grokfast.ops.kernels import launch
from grokfast.ops.read_rows import EnsembleIndex
from grokfast.ops.read_rows.kernels import chunk_of, strides, sum_chunks, tensors
from grokfast.ops.read_rows.readers import CHUNK


@triton.jit
def _load_rows(p, at, columns, exists, DH: tl.constexpr):
    """fp32 [..., C] of the rows that begin at offsets `at` [...] and exist, zero outside."""
    return tl.load(p + at + columns, mask=exists & (columns < DH), other=0).to(tl.float32)


@triton.jit
def gathered_attention_fwd_kernel(
    p_qkv, p_keys, p_own, p_out, p_largest, p_total, n_rows, table_model, keys_model, own_model, scale,
    H: tl.constexpr, DH: tl.constexpr, S: tl.constexpr, OWN: tl.constexpr,
    BR: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Rows of one head: qkv [E, K, 3 H DH] -> out [E, R, H DH], and [E, R, H] twice."""
    i_row, head, i_model = tl.program_id(0).to(tl.int64) * BR, tl.program_id(1), tl.program_id(2).to(tl.int64)
    rows, columns = i_row + tl.arange(0, BR), tl.arange(0, BD)
    exists = rows < n_rows
    p_qkv += i_model * table_model + head * DH
    p_keys += i_model * keys_model
    own = tl.load(p_own + i_model * own_model + rows, mask=exists, other=0) if OWN else rows
    q = _load_rows(p_qkv, own[:, None] * (3 * H * DH), columns[None, :], exists[:, None], DH) * scale  # [BR, BD]
    largest, total = tl.full([BR], float("-inf"), tl.float32), tl.zeros([BR], tl.float32)
    acc = tl.zeros([BR, BD], tl.float32)
    for i in range(0, S, BS):
        slots = i + tl.arange(0, BS)
        mask = exists[:, None] & (slots < S)[None, :]
        keys = tl.load(p_keys + rows[:, None] * S + slots[None, :], mask=mask, other=-1)  # [BR, BS]
        reads = keys >= 0
        at = (keys * (3 * H * DH))[:, :, None]
        k = _load_rows(p_qkv + H * DH, at, columns[None, None, :], reads[:, :, None], DH)  # [BR, BS, BD]
        scores = tl.where(reads, tl.sum(q[:, None, :] * k, 2), float("-inf"))
        now = tl.maximum(largest, tl.max(scores, 1))
        now = tl.where(now == float("-inf"), 0.0, now)  # of rows that do not exist
        old, weights = tl.exp(largest - now), tl.exp(scores - now[:, None])
        v = _load_rows(p_qkv + 2 * H * DH, at, columns[None, None, :], reads[:, :, None], DH)
        acc = acc * old[:, None] + tl.sum(weights[:, :, None] * v, 1)
        total = total * old + tl.sum(weights, 1)
        largest = now
    total = tl.where(exists, total, 1.0)
    at = (i_model * n_rows + rows) * H + head
    mask = exists[:, None] & (columns < DH)[None, :]
    tl.store(p_out + (at * DH)[:, None] + columns[None, :], acc / total[:, None], mask=mask)
    tl.store(p_largest + at, largest, mask=exists)
    tl.store(p_total + at, total, mask=exists)


@triton.jit
def gathered_attention_bwd_rows_kernel(
    p_grad, p_out, p_largest, p_total, p_qkv, p_keys, p_own, p_grad_q, p_weights, p_grad_scores,
    n_rows, table_model, keys_model, own_model, scale,
    H: tl.constexpr, DH: tl.constexpr, S: tl.constexpr, OWN: tl.constexpr,
    BR: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Rows of one head: each query's gradient, and the weights and gradients of scores [E, R, S, H]."""
    i_row, head, i_model = tl.program_id(0).to(tl.int64) * BR, tl.program_id(1), tl.program_id(2).to(tl.int64)
    rows, columns = i_row + tl.arange(0, BR), tl.arange(0, BD)
    exists = rows < n_rows
    p_qkv += i_model * table_model + head * DH
    p_keys += i_model * keys_model
    own = tl.load(p_own + i_model * own_model + rows, mask=exists, other=0) if OWN else rows
    at_row = (i_model * n_rows + rows) * H + head
    q = _load_rows(p_qkv, own[:, None] * (3 * H * DH), columns[None, :], exists[:, None], DH) * scale  # [BR, BD]
    grad = _load_rows(p_grad, (at_row * DH)[:, None], columns[None, :], exists[:, None], DH)
    out = _load_rows(p_out, (at_row * DH)[:, None], columns[None, :], exists[:, None], DH)
    mean = tl.sum(grad * out, 1)  # of the gradients of the weights, by the weights
    largest = tl.load(p_largest + at_row, mask=exists, other=0)
    total = tl.load(p_total + at_row, mask=exists, other=1)
    acc = tl.zeros([BR, BD], tl.float32)
    for i in range(0, S, BS):
        slots = i + tl.arange(0, BS)
        mask = exists[:, None] & (slots < S)[None, :]
        keys = tl.load(p_keys + rows[:, None] * S + slots[None, :], mask=mask, other=-1)  # [BR, BS]
        reads = keys >= 0
        at = (keys * (3 * H * DH))[:, :, None]
        v = _load_rows(p_qkv + 2 * H * DH, at, columns[None, None, :], reads[:, :, None], DH)  # [BR, BS, BD]
        grad_weights = tl.sum(grad[:, None, :] * v, 2)
        k = _load_rows(p_qkv + H * DH, at, columns[None, None, :], reads[:, :, None], DH)
        weights = tl.where(reads, tl.exp(tl.sum(q[:, None, :] * k, 2) - largest[:, None]) / total[:, None], 0.0)
        grad_scores = tl.where(reads, weights * (grad_weights - mean[:, None]) * scale, 0.0)
        acc += tl.sum(grad_scores[:, :, None] * k, 1)
        at_weight = ((i_model * n_rows + rows)[:, None] * S + slots[None, :]) * H + head
        tl.store(p_weights + at_weight, weights, mask=mask)
        tl.store(p_grad_scores + at_weight, grad_scores, mask=mask)
    mask = exists[:, None] & (columns < DH)[None, :]
    tl.store(p_grad_q + (at_row * DH)[:, None] + columns[None, :], acc, mask=mask)


@triton.jit
def gathered_attention_bwd_table_kernel(
    p_grad, p_qkv, p_own, p_weights, p_grad_scores, p_grad_q, p_grad_y, p_start, p_items, p_slots, p_partial,
    n_rows, n_slots, table_model, table_row, grad_row, weights_row, own_model, start_model, items_model, slots_model,
    H: tl.constexpr, DH: tl.constexpr, S: tl.constexpr, OWN: tl.constexpr, SKIP: tl.constexpr,
    CHUNK: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """What a chunk of a row's readers gives to its query, key, value and, if SKIP, itself: [E, slots, 3 or 4, H DH].

    A row is always among its own keys, so the readers of its key and value are those of its query, too.
    """
    i_slot, i_model = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    row, begin, end = chunk_of(p_start, p_slots, i_slot, i_model, start_model, slots_model, CHUNK)
    if row >= 0:
        columns = tl.program_id(1) * BD + tl.arange(0, BD)
        is_column = columns < H * DH
        heads = columns // DH
        of_query, of_key = tl.zeros([BM, BD], tl.float32), tl.zeros([BM, BD], tl.float32)
        of_value, of_row = tl.zeros([BM, BD], tl.float32), tl.zeros([BM, BD], tl.float32)
        p_qkv += i_model * table_model
        for i in range(begin, end, BM):
            places = i + tl.arange(0, BM)
            exists = places < end
            item = tl.load(p_items + i_model * items_model + places, mask=exists, other=0)
            reader = item // S
            mask = exists[:, None] & is_column[None, :]
            at_weight = ((i_model * n_rows + reader) * weights_row + item % S * H)[:, None] + heads[None, :]
            at_row = (i_model * n_rows + reader)[:, None] * grad_row + columns[None, :]
            weights = tl.load(p_weights + at_weight, mask=mask, other=0)
            of_value += weights * tl.load(p_grad + at_row, mask=mask, other=0)
            own = tl.load(p_own + i_model * own_model + reader, mask=exists, other=0) if OWN else reader
            grad_scores = tl.load(p_grad_scores + at_weight, mask=mask, other=0)
            of_key += grad_scores * tl.load(p_qkv + own[:, None] * table_row + columns[None, :], mask=mask, other=0)
            mask &= (own == row)[:, None]
            of_query += tl.load(p_grad_q + at_row, mask=mask, other=0)
            if SKIP:
                of_row += tl.load(p_grad_y + at_row, mask=mask, other=0)
        p_partial += (i_model * n_slots + i_slot) * ((4 if SKIP else 3) * H * DH)
        tl.store(p_partial + columns, tl.sum(of_query, 0), mask=is_column)
        tl.store(p_partial + H * DH + columns, tl.sum(of_key, 0), mask=is_column)
        tl.store(p_partial + 2 * H * DH + columns, tl.sum(of_value, 0), mask=is_column)
        if SKIP:
            tl.store(p_partial + 3 * H * DH + columns, tl.sum(of_row, 0), mask=is_column)


def configuration(seq_len: int, d_head: int) -> dict[str, int]:
    """Rows BR, keys BS and columns BD of a tile of the kernels over rows, warps; none of these spills."""
    columns, keys = max(16, triton.next_power_of_2(d_head)), min(4, triton.next_power_of_2(seq_len))
    return {"BR": max(1, 2048 // (keys * columns)), "BS": keys, "BD": columns, "num_warps": 4}


def table_configuration(d: int) -> dict[str, int]:
    """Readers BM and columns BD of a tile of the kernel over tables, warps; none of these spills."""
    return {"BM": 8, "BD": min(128, max(16, triton.next_power_of_2(d))), "num_warps": 2}


def forward(qkv: Tensor, keys: EnsembleIndex, own: EnsembleIndex | None, n_heads: int) -> tuple[Tensor, Tensor]:
    """qkv [E, K, 3d], keys [E, R, S], own [E, R] -> out [E, R, d], norm [2, E, R, H]."""
    (n_models, n_rows, seq_len), d = keys.shape, qkv.shape[2] // 3
    out = torch.empty(n_models, n_rows, d, dtype=torch.float32, device=qkv.device)
    norm = torch.empty(2, n_models, n_rows, n_heads, dtype=torch.float32, device=qkv.device)
    tile = configuration(seq_len, d // n_heads)
    launch(
        gathered_attention_fwd_kernel, (triton.cdiv(n_rows, tile["BR"]), n_heads, n_models),
        qkv, keys.index, _index(own, keys), out, *norm, n_rows, qkv.stride(0), keys.index.stride(0), _stride(own),
        1 / math.sqrt(d // n_heads), H=n_heads, DH=d // n_heads, S=seq_len, OWN=own is not None, **tile,
    )  # fmt: skip
    return out, norm


def backward(
    grad: Tensor, grad_y: Tensor | None, out: Tensor, norm: Tensor, qkv: Tensor,
    keys: EnsembleIndex, own: EnsembleIndex | None, n_heads: int,
) -> Tensor:  # fmt: skip
    """The gradient of qkv [E, K, 3d] from that of out [E, R, d].

    With grad_y [E, R, d], of a sum with the rows themselves, its sums over who has which row follow: [E, K, 4d].
    """
    (n_models, n_rows, seq_len), (_, n_table, width) = keys.shape, qkv.shape
    d = width // 3
    grad_q = torch.empty_like(out)
    weights, grad_scores = qkv.new_empty(2, n_models, n_rows, seq_len, n_heads)
    sizes = {"H": n_heads, "DH": d // n_heads, "S": seq_len, "OWN": own is not None}
    tile = configuration(seq_len, d // n_heads)
    launch(
        gathered_attention_bwd_rows_kernel, (triton.cdiv(n_rows, tile["BR"]), n_heads, n_models),
        grad, out, *norm, qkv, keys.index, _index(own, keys), grad_q, weights, grad_scores,
        n_rows, qkv.stride(0), keys.index.stride(0), _stride(own), 1 / math.sqrt(d // n_heads), **sizes, **tile,
    )  # fmt: skip
    grad_qkv = qkv.new_empty(n_models, n_table, (3 if grad_y is None else 4) * d)
    sum_tables(grad, grad_q, grad_y, weights, grad_scores, qkv, keys, own, grad_qkv)
    return grad_qkv


def sum_tables(
    grad: Tensor, grad_q: Tensor, grad_y: Tensor | None, weights: Tensor, grad_scores: Tensor, qkv: Tensor,
    keys: EnsembleIndex, own: EnsembleIndex | None, out: Tensor, partial: Tensor | None = None,
) -> None:  # fmt: skip
    """What each row of the table gets from its readers: out [E, K, 3d], or [E, K, 4d] with grad_y.

    grad, grad_q, grad_y [E, R, d], weights and grad_scores [E, R, S, H], qkv [E, K, 3d]; rows may be parts of longer
    ones, a model's R rows adjacent and equally long in the first three, and likewise in the next two. partial
    [E, slots, 3d or 4d] is scratch.
    """
    (n_models, n_rows, seq_len), d, n_heads = keys.shape, grad.shape[2], weights.shape[3]
    readers, tile = keys.readers, table_configuration(d)
    n_slots = readers.slots.shape[1]
    partial = out.new_empty(n_models, n_slots, out.shape[2]) if partial is None else partial
    launch(
        gathered_attention_bwd_table_kernel, (n_slots, triton.cdiv(d, tile["BD"]), n_models),
        grad, qkv, _index(own, keys), weights, grad_scores, grad_q, grad if grad_y is None else grad_y,
        *tensors(readers), partial, n_rows, n_slots, *qkv.stride()[:2], grad.stride(1), weights.stride(1),
        _stride(own), *strides(readers),
        H=n_heads, DH=d // n_heads, S=seq_len, OWN=own is not None, SKIP=grad_y is not None, CHUNK=CHUNK, **tile,
    )  # fmt: skip
    sum_chunks(partial, readers, out)


def _index(own: EnsembleIndex | None, keys: EnsembleIndex) -> Tensor:
    """What a kernel that reads no such index gets in its place."""
    return keys.index if own is None else own.index


def _stride(own: EnsembleIndex | None) -> int:
    return 0 if own is None else own.index.stride(0)
