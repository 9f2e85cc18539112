"""ops.gathered_attention: configurations that are launched."""

from __future__ import annotations

from typing import Any

from grokfast.ops.gathered_attention.kernels import (
    configuration,
    gathered_attention_bwd_rows_kernel,
    gathered_attention_bwd_table_kernel,
    gathered_attention_fwd_kernel,
    table_configuration,
)
from grokfast.ops.read_rows.readers import CHUNK


def shipped() -> list[dict[str, Any]]:
    """Configurations at the sizes of the recipes and at odd ones, for the offline check of registers and spills."""
    rows = [
        "p_grad",
        "p_out",
        "p_largest",
        "p_total",
        "p_qkv",
        "p_keys",
        "p_own",
        "p_grad_q",
        "p_weights",
        "p_grad_scores",
    ]
    table = ["p_grad", "p_qkv", "p_own", "p_weights", "p_grad_scores", "p_grad_q", "p_grad_y"]
    readers, tables = ["p_start", "p_items", "p_slots"], ["table_model", "keys_model", "own_model"]
    strided = ["table_row", "grad_row", "weights_row"]
    kernels: dict[str, tuple[Any, list[str], list[str]]] = {
        "fwd": (
            gathered_attention_fwd_kernel,
            ["p_qkv", "p_keys", "p_own", "p_out", "p_largest", "p_total"],
            ["n_rows", *tables],
        ),
        "bwd rows": (gathered_attention_bwd_rows_kernel, rows, ["n_rows", *tables]),
        "bwd table": (
            gathered_attention_bwd_table_kernel,
            [*table, *readers, "p_partial"],
            ["n_rows", "n_slots", "table_model", *strided, "own_model", "start_model", "items_model", "slots_model"],
        ),
    }
    whole = ("p_keys", "p_own", *readers)
    configs: list[dict[str, Any]] = []
    for heads, d_head, seq_len, has_own in ((4, 32, 3, True), (4, 32, 4, False), (3, 24, 64, True), (1, 512, 5, True)):
        known = {"H": heads, "DH": d_head, "S": seq_len, "OWN": has_own, "CHUNK": CHUNK, "SKIP": True}
        for name, (kernel, tensors_, numbers) in kernels.items():
            is_rows = name != "bwd table"
            tile = configuration(seq_len, d_head) if is_rows else table_configuration(heads * d_head)
            warps = tile.pop("num_warps")
            signature = {t: "*i64" if t in whole else "*fp32" for t in tensors_} | dict.fromkeys(numbers, "i32")
            configs.append(
                {
                    "name": f"gathered_attention {name}, {heads} heads of {d_head}, {seq_len} keys",
                    "kernel": kernel,
                    "signature": signature | ({"scale": "fp32"} if is_rows else {}),
                    "constants": {k: v for k, v in known.items() if k in kernel.arg_names} | tile,
                    "aligned": [n for n in ("table_model", *strided[:2]) if n in numbers and heads * d_head % 16 == 0],
                    "num_warps": warps,
                }
            )
    return configs
