"""Sums over the readers of each row in Triton: chunk after chunk in their order, and over the chunks in theirs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from grokfast.ops.kernels import launch
from grokfast.ops.read_rows.readers import CHUNK, ROWS, Known, Readers, n_slots

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
def _ones(p_index, i, n, begin, before, BM: tl.constexpr, S: tl.constexpr):
    """Of a column of the index, n long, BM entries from the i-th on: where they lie, the rows counted from `begin`, and
    from the program's first, where its number begins among the bits (others': where nobody looks), a one there."""
    i_rows = i + tl.arange(0, BM)
    row = (tl.load(p_index + i_rows * S, mask=i_rows < n, other=-1).to(tl.int32) - begin).to(tl.uint32)
    own = row - before
    bits = tl.minimum(own, OWN) * BITS
    return i_rows * S, row, own, bits, tl.full([BM], 1, tl.uint32) << bits


@triton.jit
def _copy(p_from, p_to, begin, end, BM: tl.constexpr):
    for i in range(begin, end, BM):
        places = i + tl.arange(0, BM)
        tl.store(p_to + places, tl.load(p_from + places, mask=places < end), mask=places < end)


@triton.jit
def group_readers_kernel(
    p_index, p_start, p_items, p_slots, p_blocks, p_known_start, p_known_items, p_known_slots, size, n_rows, n_slots,
    index_model, CHUNK: tl.constexpr, BM: tl.constexpr, S: tl.constexpr, KNOWN: tl.constexpr,
):  # fmt: skip
    """Some rows' readers: counts what comes before and what is theirs, and then writes it where it belongs.

    A few rows are counted in one number, a few bits each: so a warp looks at each place twice for all of them. Where
    some is known, a line of p_blocks says: the column of the index that reads a program's rows, the first row of that
    column, the program's first, and the column's end; or, without a column, whose readers are copied.
    """
    i_own, i_model = tl.program_id(0), tl.program_id(1).to(tl.int64)
    p_index += i_model * index_model
    p_start += i_model * (n_rows + 1)
    p_items += i_model * size
    p_slots += i_model * n_slots
    if KNOWN:
        p_blocks += i_own * 4
        column, begin = tl.load(p_blocks).to(tl.int32), tl.load(p_blocks + 1).to(tl.int32)
        first, end = tl.load(p_blocks + 2).to(tl.int32), tl.load(p_blocks + 3).to(tl.int32)
        base, n_starts = tl.load(p_known_start + begin).to(tl.int32), end
        if i_own == 0:
            tl.store(p_start + n_rows, tl.load(p_known_start + n_rows))
    else:
        column, begin, first, end, base, n_starts = 0, 0, i_own * OWN, n_rows, 0, n_rows + 1
    if column >= 0:
        p_index += column
        n, n_before = size // S, (first - begin).to(tl.uint32)
        numbers = tl.arange(0, 4)
        before, count = tl.zeros([BM], tl.int32), tl.zeros([4], tl.int32)
        for i in range(0, n, BM):
            _, row, _, _, ones = _ones(p_index, i, n, begin, n_before, BM, S)
            before += (row < n_before).to(tl.int32)
            total = tl.sum(ones, 0)
            count += ((total >> (numbers * BITS).to(tl.uint32)) & MOST).to(tl.int32)
        start = base + tl.sum(before, 0) + tl.cumsum(count, 0) - count
        rows = first + numbers
        is_row = (rows < end) & (numbers < OWN)
        tl.store(p_start + rows, start.to(tl.int64), mask=(rows < n_starts) & (numbers < OWN))
        first_slot = start // CHUNK + rows
        last = (start + count) // CHUNK + rows + 1  # of the slots that are its own, used or not
        last = tl.where(rows == n_rows - 1, n_slots, last)
        last_used = first_slot + (count + CHUNK - 1) // CHUNK
        for i in range(0, tl.max(tl.where(is_row, last - first_slot, 0), 0), 8):
            slots = first_slot[:, None] + i + tl.arange(0, 8)[None, :]
            value = tl.where(slots < last_used[:, None], rows[:, None], -1)
            mask = (slots < last[:, None]) & is_row[:, None]
            tl.store(p_slots + slots, value.to(tl.int64), mask=mask)
        at_0 = tl.sum(tl.where(numbers == 0, start, 0), 0)
        at_1, at_2 = at_0 + tl.sum(tl.where(numbers == 0, count, 0), 0), tl.sum(tl.where(numbers == 2, start, 0), 0)
        for i in range(0, n, BM):
            places, _, own, bits, ones = _ones(p_index, i, n, begin, n_before, BM, S)
            rank = ((tl.cumsum(ones, 0) >> bits) & MOST).to(tl.int32)
            at = tl.where(own == 0, at_0, tl.where(own == 1, at_1, at_2)) + rank - 1
            tl.store(p_items + at, (places + column).to(tl.int64), mask=own < OWN)
            found = tl.sum(ones, 0)
            at_0 += (found & MOST).to(tl.int32)
            at_1 += ((found >> BITS) & MOST).to(tl.int32)
            at_2 += ((found >> (2 * BITS)) & MOST).to(tl.int32)
    else:
        last_item = tl.load(p_known_start + end).to(tl.int32)
        last_slot = tl.where(end == n_rows, n_slots, last_item // CHUNK + end)
        _copy(p_known_start, p_start, begin, end, BM)
        _copy(p_known_items, p_items, base, last_item, BM)
        _copy(p_known_slots, p_slots, base // CHUNK + begin, last_slot, BM)


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


def group_readers(index: Tensor, n_rows: int, known: Known | None = None) -> Readers:
    """The readers of an index [E, M] with -1 for none, each looked for by its row, as far as it is not `known`."""
    index = index.contiguous()
    n_models, size = index.shape
    start, items, slots = (index.new_empty(n_models, n) for n in (n_rows + 1, size, n_slots(size, n_rows)))
    if known is None:
        programs, columns, given = triton.cdiv(n_rows + 1, ROWS), 1, (start, start, items, slots)
    else:
        programs, columns, given = len(known.blocks), known.columns, (known.blocks, *tensors(known.readers))
    launch(
        group_readers_kernel, (programs, n_models),
        index, start, items, slots, *given, size, n_rows, slots.shape[1], index.stride(0),
        CHUNK=CHUNK, S=columns, KNOWN=known is not None, **configuration("group"),
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
