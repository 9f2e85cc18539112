"""ops.batch: configurations that are launched."""

from __future__ import annotations

from typing import Any

from grokfast.ops.batch.kernels import choose_kernel, configuration, read_tokens_kernel, sum_up_kernel, unpack_kernel


def shipped() -> list[dict[str, Any]]:
    """Configurations at usual sizes, for the offline check of registers and spills."""
    rows = ["p_values", "p_right", "p_counts", "p_share", "p_loss", "p_correct"]
    chosen = ["p_batch", "p_targets", "p_chosen", "p_target"]
    tables = ["p_fixed_keys", "p_fixed_own", "p_table", "p_offsets", "p_chosen", "p_keys", "p_own"]
    numbers = ["n_fixed", "size", "n_rows", "first", "n_data", "chosen_model"]
    configs: list[dict[str, Any]] = [
        {
            "name": "batch choose",
            "kernel": choose_kernel,
            "signature": dict.fromkeys(chosen, "*i64")
            | dict.fromkeys(["p_counts", "p_share"], "*fp32")
            | dict.fromkeys(["size", "n_rows", "batch_model", "batch_row"], "i32"),
            "constants": {"BM": 1024},
            "num_warps": 4,
        },
        {
            "name": "batch sum_up",
            "kernel": sum_up_kernel,
            "signature": {**dict.fromkeys(rows, "*fp32"), "p_correct": "*i32", "size": "i32"},
            "constants": {"BM": 1024},
            "num_warps": 4,
        },
    ]
    configs.append(
        {
            "name": "batch unpack",
            "kernel": unpack_kernel,
            "signature": {"p_flat": "*fp32", "p_start": "*i64", "p_size": "*i64", "p_out": "*fp32"}
            | dict.fromkeys(["n_models", "n_columns", "flat_model"], "i32"),
            "constants": {"BM": 1024},
            "aligned": ["flat_model"],
            "num_warps": 4,
        }
    )
    for seq_len in (3, 4, 64):
        tile = configuration(seq_len)
        configs.append(
            {
                "name": f"batch read_tokens, {seq_len} positions",
                "kernel": read_tokens_kernel,
                "signature": dict.fromkeys(tables, "*i64") | dict.fromkeys(numbers, "i32"),
                "num_warps": tile.pop("num_warps"),
                "constants": {"T": seq_len, "CAUSAL": True, "OFFSETS": True, **tile},
            }
        )
    return configs
