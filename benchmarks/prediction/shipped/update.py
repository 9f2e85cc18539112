"""Filter and optimizer, and the count of their steps: configurations that are launched."""

from __future__ import annotations

from itertools import product
from typing import Any

import triton.language as tl

from grokfast.transforms.kernels import tick_kernel, update_kernel
from grokfast.transforms.sizes import BLOCK, MAX_REGISTERS, NUM_WARPS, ROW_BLOCK, ROW_CHUNK


def shipped() -> list[dict[str, Any]]:
    """The configurations that are launched, for the offline check of registers and spills."""
    tables = {"p_entries": "*i64", "p_chunks": "*i32", "p_tickets": "*i32", "p_hyper": "*fp64", "p_overrides": "*i64"}
    variants = [(rule, filter, tl.float32, tl.float32) for rule, filter in product(range(4), (1, 2))]
    variants += [(0, 1, tl.bfloat16, tl.float32), (0, 2, tl.float16, tl.float32), (0, 2, tl.float32, tl.bfloat16)]
    tick = {
        "p_grad": "*fp32", "p_loss": "*fp32", "p_steps": "*i64", "p_lr": "*fp64", "p_warmup": "*fp64",
        "p_hyper": "*fp64", "p_diverged": "*i64", "p_tickets": "*i32", "size": "i32",
    }  # fmt: skip
    rules, filters = ("Adam", "SGD", "Lion", "filter only"), ("", "EMA", "MA")
    return [
        {
            "name": f"update {rules[rule]}, {filters[filter]}, {dtype}, ring {ring}, chunk {chunk}",
            "kernel": update_kernel,
            "signature": tables,
            "constants": {
                "RULE": rule, "FILTER": filter, "DTYPE": dtype, "RING": ring,
                "BLOCK": BLOCK, "CHUNK": chunk, "SLICE": 64,
            },
            "num_warps": NUM_WARPS,
            "maxnreg": MAX_REGISTERS,
        }
        for (rule, filter, dtype, ring), chunk in product(variants, (BLOCK, 8 * BLOCK))
    ] + [
        {"name": f"tick, {splits} splits", "kernel": tick_kernel, "num_warps": 4, "aligned": ["size"],
         "constants": {"BLOCK": ROW_BLOCK, "CHUNK": chunk, "SPLITS": splits}, "signature": tick}
        for splits, chunk in ((1, ROW_CHUNK), (16, ROW_BLOCK))
    ]  # fmt: skip
