"""Filter and optimizer: configurations that are launched."""

from __future__ import annotations

from itertools import product
from typing import Any

import triton.language as tl

from grokfast.optim.device import BLOCK, MAX_REGISTERS, NUM_WARPS
from grokfast.optim.kernels import update_kernel


def shipped() -> list[dict[str, Any]]:
    """The configurations that are launched, for the offline check of registers and spills."""
    tables = {"p_entries": "*i64", "p_chunks": "*i32", "p_tickets": "*i32", "p_hyper": "*fp64", "p_overrides": "*i64"}
    variants = [(rule, filter, tl.float32, tl.float32) for rule, filter in product(range(4), (1, 2))]
    variants += [(0, 1, tl.bfloat16, tl.float32), (0, 2, tl.float16, tl.float32), (0, 2, tl.float32, tl.bfloat16)]
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
    ]  # fmt: skip
