"""Sums over the readers of each row in Triton: chunk after chunk in their order, and over the chunks in theirs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from grokfast.ops.kernels import launch
from grokfast.ops.read_rows.readers import CHUNK, ROWS, Readers, n_slots

OWN = tl.constexpr(ROWS)  # rows of a program of group_readers_kernel
BITS, MOST = tl.constexpr(10), tl.constexpr(1023)  # in which each row's readers of a tile are counted, and the most


@triton.jit
def chunk_of(p_start, p_slots, i_slot, i_model, start_model, slots_model, CHUNK: tl.constexpr):
    """The row of a slot, or -1, and where its chunk of the readers begins and ends."""
    row = tl.load(p_slots + i_model * slots_model + i_slot)
    place = tl.maximum(row, 0)
    start = tl.load(p_start + i_model * start_model + place)
    end = tl.load(p_start + i_model * start_model + place + 1)
    begin = start + (i_slot - (start // CHUNK + place)) * CHUNK
    return row, begin, tl.minimum(begin + CHUNK, end)


@triton.jit
def _ones(p_index, places, size, first):
    """The index at some places, whether it is one of the program's rows, its bits, and a one in them, else 0."""
    index = tl.load(p_index + places, mask=places < size, other=-1).to(tl.int32)
    row = index - first
    is_own = (row >= 0) & (row < OWN)
    bits = tl.where(is_own, row, 0) * BITS
    return index, is_own, bits, tl.where(is_own, 1 << bits, 0)


@triton.jit
def group_readers_kernel(
    p_index, p_start, p_items, p_slots, size, n_rows, n_slots, index_model,
    CHUNK: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Some rows' readers: counts what comes before and what is theirs, and then writes it where it belongs.

    A few rows are counted in one number, a few bits each: so a warp looks at each place twice for all of them.
    """
    first, i_model = tl.program_id(0) * OWN, tl.program_id(1).to(tl.int64)
    p_index += i_model * index_model
    numbers = tl.arange(0, 4)
    before, count = tl.zeros([BM], tl.int32), tl.zeros([4], tl.int32)
    for i in range(0, size, BM):
        index, _, _, ones = _ones(p_index, i + tl.arange(0, BM), size, first)
        before += ((index >= 0) & (index < first)).to(tl.int32)
        total = tl.sum(ones, 0)
        count += (total >> (numbers * BITS)) & MOST
    start = tl.sum(before, 0) + tl.cumsum(count, 0) - count
    rows = first + numbers
    is_row = (rows < n_rows) & (numbers < OWN)
    tl.store(p_start + i_model * (n_rows + 1) + rows, start.to(tl.int64), mask=(rows <= n_rows) & (numbers < OWN))
    first_slot = start // CHUNK + rows
    last = (start + count) // CHUNK + rows + 1  # of the slots that are its own, used or not
    last = tl.where(rows == n_rows - 1, n_slots, last)
    end = first_slot + (count + CHUNK - 1) // CHUNK
    for i in range(0, tl.max(tl.where(is_row, last - first_slot, 0), 0), 8):
        slots = first_slot[:, None] + i + tl.arange(0, 8)[None, :]
        value = tl.where(slots < end[:, None], rows[:, None], -1)
        mask = (slots < last[:, None]) & is_row[:, None]
        tl.store(p_slots + i_model * n_slots + slots, value.to(tl.int64), mask=mask)
    at_0 = tl.sum(tl.where(numbers == 0, start, 0), 0)
    at_1, at_2 = at_0 + tl.sum(tl.where(numbers == 0, count, 0), 0), tl.sum(tl.where(numbers == 2, start, 0), 0)
    for i in range(0, size, BM):
        places = i + tl.arange(0, BM)
        _, is_own, bits, ones = _ones(p_index, places, size, first)
        rank = (tl.cumsum(ones, 0) >> bits) & MOST
        at = tl.where(bits == 0, at_0, tl.where(bits == BITS, at_1, at_2)) + rank - 1
        tl.store(p_items + i_model * size + at, places.to(tl.int64), mask=is_own)
        found = tl.sum(ones, 0)
        at_0 += found & MOST
        at_1 += (found >> BITS) & MOST
        at_2 += found >> (2 * BITS)


@triton.jit
def sum_readers_kernel(
    p_x, p_start, p_items, p_slots, p_partial, n_rows, n_slots, start_model, items_model, slots_model,
    D: tl.constexpr, CHUNK: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The sum of x [E, R, D] over a chunk of the readers of a row: [E, slots, D]."""
    i_slot, i_model = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    row, begin, end = chunk_of(p_start, p_slots, i_slot, i_model, start_model, slots_model, CHUNK)
    if row >= 0:
        columns = tl.program_id(1) * BD + tl.arange(0, BD)
        acc = tl.zeros([BM, BD], tl.float32)
        for i in range(begin, end, BM):
            places = i + tl.arange(0, BM)
            item = tl.load(p_items + i_model * items_model + places, mask=places < end, other=0)
            mask = (places < end)[:, None] & (columns < D)[None, :]
            at = (i_model * n_rows + item)[:, None] * D + columns[None, :]
            acc += tl.load(p_x + at, mask=mask, other=0).to(tl.float32)
        p_partial += (i_model * n_slots + i_slot) * D
        tl.store(p_partial + columns, tl.sum(acc, 0), mask=columns < D)


@triton.jit
def sum_chunks_kernel(
    p_partial, p_start, p_out, n_slots, start_model, out_model, out_row,
    D: tl.constexpr, CHUNK: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The sum of a row's chunks: partial [E, slots, D] -> out [E, n_rows, D], zero where nobody reads."""
    i_row, i_model = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    columns = tl.program_id(1) * BD + tl.arange(0, BD)
    start = tl.load(p_start + i_model * start_model + i_row)
    n_chunks = (tl.load(p_start + i_model * start_model + i_row + 1) - start + CHUNK - 1) // CHUNK
    p_partial += (i_model * n_slots + start // CHUNK + i_row) * D
    if n_chunks <= 1:  # as most rows have
        total = tl.load(p_partial + columns, mask=(columns < D) & (n_chunks == 1), other=0)
    else:
        acc = tl.zeros([BM, BD], tl.float32)
        for i in range(0, n_chunks, BM):
            chunks = i + tl.arange(0, BM)
            mask = (chunks < n_chunks)[:, None] & (columns < D)[None, :]
            acc += tl.load(p_partial + chunks[:, None] * D + columns[None, :], mask=mask, other=0)
        total = tl.sum(acc, 0)
    tl.store(p_out + i_model * out_model + i_row * out_row + columns, total, mask=columns < D)


def configuration(kernel: str, d: int = 1) -> dict[str, int]:
    """Places, readers or chunks BM, columns BD of a tile, warps; none spills. kernel: "group", "readers", "chunks".

    A row's chunks are added up by one warp, which asks no other.
    """
    if kernel == "group":
        return {"BM": 512, "num_warps": 1}
    columns = min(128, max(16, triton.next_power_of_2(d)))
    return {"BM": 16, "BD": columns, "num_warps": 1 if kernel == "chunks" else 4}


def group_readers(index: Tensor, n_rows: int) -> Readers:
    """The readers of an index [E, M] with -1 for none, each looked for by its row."""
    index = index.contiguous()
    n_models, size = index.shape
    start, items, slots = (index.new_empty(n_models, n) for n in (n_rows + 1, size, n_slots(size, n_rows)))
    tile = configuration("group")
    launch(
        group_readers_kernel, (triton.cdiv(n_rows + 1, ROWS), n_models),
        index, start, items, slots, size, n_rows, slots.shape[1], index.stride(0), CHUNK=CHUNK, **tile,
    )  # fmt: skip
    return Readers(start, items, slots)


def sum_readers(x: Tensor, readers: Readers, out: Tensor) -> Tensor:
    """out[e, k] = the sum of x's rows that read row k: contiguous x [E, R, d], out [E, n_rows, d]."""
    n_models, n_rows, d = x.shape
    tile, n_slots = configuration("readers", d), readers.slots.shape[1]
    partial = torch.empty(n_models, n_slots, d, dtype=torch.float32, device=x.device)
    launch(
        sum_readers_kernel, (n_slots, triton.cdiv(d, tile["BD"]), n_models),
        x, *tensors(readers), partial, n_rows, n_slots, *strides(readers), D=d, CHUNK=CHUNK, **tile,
    )  # fmt: skip
    sum_chunks(partial, readers, out)
    return out


def sum_chunks(partial: Tensor, readers: Readers, out: Tensor) -> None:
    """out[e, k] = the sum of row k's chunks: partial [E, slots, d], out [E, n_rows, d], zero where nobody reads."""
    n_models, n_rows, d = out.shape
    tile = configuration("chunks", d)
    launch(
        sum_chunks_kernel, (n_rows, triton.cdiv(d, tile["BD"]), n_models),
        partial, readers.start, out, readers.slots.shape[1], readers.start.stride(0), out.stride(0), out.stride(1),
        D=d, CHUNK=CHUNK, **tile,
    )  # fmt: skip


def tensors(readers: Readers) -> tuple[Tensor, Tensor, Tensor]:
    return readers.start, readers.items, readers.slots


def strides(readers: Readers) -> list[int]:
    return [t.stride(0) for t in tensors(readers)]
