"""ops.read_rows: configurations that are launched."""

from __future__ import annotations

from typing import Any

from grokfast.ops.read_rows.kernels import configuration, group_readers_kernel, sum_chunks_kernel, sum_readers_kernel
from grokfast.ops.read_rows.readers import CHUNK


def shipped() -> list[dict[str, Any]]:
    """Configurations at a usual size and at odd ones, for the offline check of registers and spills."""
    readers, numbers = ["p_start", "p_items", "p_slots"], ["n_slots", "start_model"]
    known = [name.replace("p_", "p_known_") for name in readers]
    kernels: dict[str, tuple[Any, list[str], list[str]]] = {
        "group": (
            group_readers_kernel,
            ["p_index", *readers, "p_blocks", *known],
            ["size", "n_rows", "n_slots", "index_model"],
        ),
        "readers": (
            sum_readers_kernel,
            ["p_x", *readers, "p_partial"],
            ["n_rows", *numbers, "items_model", "slots_model"],
        ),
        "chunks": (sum_chunks_kernel, ["p_partial", "p_start", "p_out"], [*numbers, "out_model", "out_row"]),
    }
    configs: list[dict[str, Any]] = []
    for name, d in [("group", 0), *((name, d) for d in (128, 256, 7) for name in ("readers", "chunks"))]:
        kernel, pointers, integers = kernels[name]
        tile = configuration(name, d)
        warps = tile.pop("num_warps")
        signature = {
            p: "*i64" if p in ("p_index", "p_blocks", *readers, *known) else "*fp32" for p in pointers
        } | dict.fromkeys(integers, "i32")
        configs.append(
            {
                "name": f"read_rows {name}, {d}" if d else f"read_rows {name}",
                "kernel": kernel,
                "signature": signature,
                "constants": {"CHUNK": CHUNK, **tile, **({"D": d} if d else {"S": 4, "KNOWN": True})},
                "aligned": [n for n in ("out_model", "out_row") if n in integers and d % 16 == 0],
                "num_warps": warps,
            }
        )
    return configs
