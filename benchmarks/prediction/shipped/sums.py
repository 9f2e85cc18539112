"""The sums that many operations share: configurations that are launched."""

from __future__ import annotations

from typing import Any

from grokfast.ops.kernels import rows_configuration, sum_rows_kernel, sum_splits_kernel, sums_configuration


def shipped() -> list[dict[str, Any]]:
    """Configurations of the sums, for the offline check of registers and spills."""
    configs: list[dict[str, Any]] = []
    for splits, kind in ((2, "*fp32"), (30, "*fp32"), (128, "*bf16")):
        tile = sums_configuration(splits)
        configs.append(
            {
                "name": f"sum of {splits} partials, {kind[1:]}",
                "kernel": sum_splits_kernel,
                "signature": {"p_partial": "*fp32", "p_out": kind, "n_splits": "i32", "n": "i32"},
                "num_warps": tile.pop("num_warps"),
                "constants": tile,
                "aligned": ["n"],
            }
        )
    for d, kind in ((128, "*fp32"), (100, "*bf16"), (7, "*fp16")):
        tile = rows_configuration(d)
        numbers = ["n_rows", "rows_per_split", "n_models", "x_model", "x_row"]
        configs.append(
            {
                "name": f"sum of rows, {kind[1:]}, {d}",
                "kernel": sum_rows_kernel,
                "signature": {"p_x": kind, "p_partial": "*fp32"} | dict.fromkeys(numbers, "i32"),
                "num_warps": tile.pop("num_warps"),
                "constants": {"D": d, **tile},
                "aligned": numbers[3:] if d % 16 == 0 else [],
            }
        )
    return configs
