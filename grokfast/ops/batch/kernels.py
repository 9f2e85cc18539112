"""A minibatch's bookkeeping in Triton: a model in a program, or a tile of its rows; sums have one order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from grokfast.ops.kernels import launch


@triton.jit
def choose_kernel(
    p_batch, p_targets, p_chosen, p_target, p_counts, p_share, size, n_rows, batch_model, batch_row, BM: tl.constexpr
):
    i_model = tl.program_id(0).to(tl.int64)
    p_batch += i_model * batch_model
    total = tl.zeros([BM], tl.int32)
    for i in range(0, size, BM):
        at = i + tl.arange(0, BM)
        total += (tl.load(p_batch + at * batch_row, mask=at < size, other=-1) >= 0).to(tl.int32)
    share = 1.0 / tl.maximum(tl.sum(total, 0), 1).to(tl.float32)
    for i in range(0, size, BM):
        at = i + tl.arange(0, BM)
        exists = at < size
        row = tl.load(p_batch + at * batch_row, mask=exists, other=-1)
        counts = tl.where(row >= 0, 1.0, 0.0)
        row = tl.maximum(row, 0)
        target = tl.load(p_targets + i_model * n_rows + row, mask=exists, other=0)
        tl.store(p_chosen + i_model * size + at, row, mask=exists)
        tl.store(p_target + i_model * size + at, target, mask=exists)
        tl.store(p_counts + i_model * size + at, counts, mask=exists)
        tl.store(p_share + i_model * size + at, counts * share, mask=exists)


@triton.jit
def sum_up_kernel(p_values, p_right, p_counts, p_share, p_loss, p_correct, size, BM: tl.constexpr):
    i_model = tl.program_id(0).to(tl.int64)
    loss, correct = tl.zeros([BM], tl.float32), tl.zeros([BM], tl.float32)
    for i in range(0, size, BM):
        places = i + tl.arange(0, BM)
        exists, at = places < size, i_model * size + places
        value, share = tl.load(p_values + at, mask=exists, other=0), tl.load(p_share + at, mask=exists, other=0)
        loss += value * share
        correct += tl.load(p_right + at, mask=exists, other=0) * tl.load(p_counts + at, mask=exists, other=0)
    tl.store(p_loss + i_model, tl.sum(loss, 0).to(p_loss.dtype.element_ty))
    tl.store(p_correct + i_model, tl.sum(correct, 0).to(p_correct.dtype.element_ty))


@triton.jit
def unpack_kernel(p_flat, p_start, p_size, p_out, n_models, n_columns, flat_model, BM: tl.constexpr):
    """Column c of model e to where its tensor's part of that model is: tensors one after the other, [E, size] each."""
    columns, i_model = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1).to(tl.int64)
    mask = columns < n_columns
    start = tl.load(p_start + columns, mask=mask, other=0)
    size = tl.load(p_size + columns, mask=mask, other=0)
    value = tl.load(p_flat + i_model * flat_model + columns, mask=mask, other=0)
    tl.store(p_out + start * n_models + i_model * size + (columns - start), value, mask=mask)


@triton.jit
def read_tokens_kernel(
    p_fixed_keys, p_fixed_own, p_table, p_offsets, p_chosen, p_keys, p_own,
    n_fixed, size, n_rows, first, n_data, chosen_model,
    T: tl.constexpr, CAUSAL: tl.constexpr, OFFSETS: tl.constexpr, BM: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    rows, i_model = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1).to(tl.int64)
    positions = tl.arange(0, BT)
    is_fixed, exists = rows < n_fixed, rows < n_rows
    i_batch, own_position = (rows - n_fixed) % size, first + (rows - n_fixed) // size
    is_read = exists & (rows >= n_fixed)
    chosen = tl.load(p_chosen + i_model * chosen_model + i_batch, mask=is_read, other=0)
    is_position = (positions < T)[None, :]
    mask = is_read[:, None] & is_position
    p_table += i_model * n_data * T
    keys = tl.load(p_table + chosen[:, None] * T + positions[None, :], mask=mask, other=0)  # [BM, BT]
    own = tl.load(p_table + chosen * T + own_position, mask=is_read, other=0)
    if OFFSETS:
        keys += tl.load(p_offsets + i_batch[:, None] * T + positions[None, :], mask=mask, other=0)
        own += tl.load(p_offsets + i_batch * T + own_position, mask=is_read, other=0)
    if CAUSAL:
        keys = tl.where(positions[None, :] > own_position[:, None], -1, keys)
    of_fixed = is_fixed[:, None] & is_position
    fixed = tl.load(p_fixed_keys + rows[:, None] * T + positions[None, :], mask=of_fixed, other=0)
    keys = tl.where(is_fixed[:, None], fixed, keys)
    own = tl.where(is_fixed, tl.load(p_fixed_own + rows, mask=is_fixed, other=0), own)
    at = i_model * n_rows + rows
    tl.store(p_keys + (at * T)[:, None] + positions[None, :], keys, mask=exists[:, None] & is_position)
    tl.store(p_own + at, own, mask=exists)


def choose(batch: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """batch [E, B], targets [E, N] -> chosen, targets, counts, share, [E, B] each."""
    targets = targets.contiguous()
    chosen, target = torch.empty(2, *batch.shape, dtype=torch.int64, device=batch.device)
    counts, share = torch.empty(2, *batch.shape, dtype=torch.float32, device=batch.device)
    launch(
        choose_kernel, (len(batch),), batch, targets, chosen, target, counts, share,
        batch.shape[1], targets.shape[1], *batch.stride(), BM=1024, num_warps=4,
    )  # fmt: skip
    return chosen, target, counts, share


def sum_up(values: Tensor, right: Tensor, counts: Tensor, share: Tensor, loss: Tensor, correct: Tensor) -> None:
    tensors = (t.contiguous() for t in (values, right, counts, share))
    launch(sum_up_kernel, (len(values),), *tensors, loss, correct, values.shape[1], BM=1024, num_warps=4)


def unpack(flat: Tensor, start: Tensor, size: Tensor, out: Tensor) -> None:
    """flat [E, P'] -> out [E P]; start and size [P], int64, of the tensor that a column is in."""
    launch(
        unpack_kernel, (triton.cdiv(len(start), 1024), len(flat)),
        flat, start, size, out, len(flat), len(start), flat.stride(0), BM=1024, num_warps=4,
    )  # fmt: skip


def read_tokens(
    fixed_keys: Tensor,
    fixed_own: Tensor,
    table: Tensor,
    offsets: Tensor | None,
    chosen: Tensor,
    first: int,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    (n_models, n_data, seq_len), size, n_fixed = table.shape, chosen.shape[1], len(fixed_own)
    n_rows = n_fixed + (seq_len - first) * size
    keys = table.new_empty(n_models, n_rows, seq_len)
    own = table.new_empty(n_models, n_rows)
    tile = configuration(seq_len)
    launch(
        read_tokens_kernel, (triton.cdiv(n_rows, tile["BM"]), n_models),
        fixed_keys.contiguous(), fixed_own.contiguous(), table.contiguous(), table if offsets is None else offsets,
        chosen, keys, own, n_fixed, size, n_rows, first, n_data, chosen.stride(0),
        T=seq_len, CAUSAL=causal, OFFSETS=offsets is not None, **tile,
    )  # fmt: skip
    return keys, own


def configuration(seq_len: int) -> dict[str, int]:
    """Rows BM and positions BT of a tile, warps; none of these spills."""
    positions = triton.next_power_of_2(seq_len)
    return {"BM": max(16, 1024 // positions), "BT": positions, "num_warps": 4}
