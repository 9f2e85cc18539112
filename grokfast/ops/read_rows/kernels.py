"""Sums over the readers of each row in Triton: chunk after chunk in their order, and over the chunks in theirs."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from grokfast.ops.kernels import launch
from grokfast.ops.read_rows import CHUNK, Readers


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
        for i in range(0, CHUNK, BM):
            places = begin + i + tl.arange(0, BM)
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
    acc = tl.zeros([BM, BD], tl.float32)
    for i in range(0, n_chunks, BM):
        chunks = i + tl.arange(0, BM)
        mask = (chunks < n_chunks)[:, None] & (columns < D)[None, :]
        acc += tl.load(p_partial + chunks[:, None] * D + columns[None, :], mask=mask, other=0)
    tl.store(p_out + i_model * out_model + i_row * out_row + columns, tl.sum(acc, 0), mask=columns < D)


def configuration(kernel: str, d: int) -> dict[str, int]:
    """Readers or chunks BM and columns BD of a tile, warps; none of these spills. kernel: "readers" or "chunks"."""
    columns = min(128, max(16, triton.next_power_of_2(d)))
    return {"BM": 8, "BD": columns, "num_warps": 4} if kernel == "readers" else {"BM": 4, "BD": columns, "num_warps": 1}


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


def shipped() -> list[dict[str, Any]]:
    """Configurations at a usual size and at odd ones, for the offline check of registers and spills."""
    readers, numbers = ["p_start", "p_items", "p_slots"], ["n_slots", "start_model"]
    kernels: dict[str, tuple[Any, list[str], list[str]]] = {
        "readers": (
            sum_readers_kernel,
            ["p_x", *readers, "p_partial"],
            ["n_rows", *numbers, "items_model", "slots_model"],
        ),
        "chunks": (sum_chunks_kernel, ["p_partial", "p_start", "p_out"], [*numbers, "out_model", "out_row"]),
    }
    configs: list[dict[str, Any]] = []
    for d in (128, 256, 7):
        for name, (kernel, pointers, integers) in kernels.items():
            tile = configuration(name, d)
            warps = tile.pop("num_warps")
            signature = {p: "*i64" if p in readers else "*fp32" for p in pointers} | dict.fromkeys(integers, "i32")
            configs.append(
                {
                    "name": f"read_rows, sum of {name}, {d}",
                    "kernel": kernel,
                    "signature": signature,
                    "constants": {"D": d, "CHUNK": CHUNK, **tile},
                    "aligned": [n for n in ("out_model", "out_row") if n in integers and d % 16 == 0],
                    "num_warps": warps,
                }
            )
    return configs
