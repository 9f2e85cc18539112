"""ops.linear_cross_entropy: configurations that are launched."""

from __future__ import annotations

from typing import Any

from grokfast.ops.linear_cross_entropy.kernels import (
    configuration,
    linear_cross_entropy_bwd_weight_kernel,
    linear_cross_entropy_bwd_x_kernel,
    linear_cross_entropy_fwd_kernel,
)


def shipped() -> list[dict[str, Any]]:
    """Configurations at the usual sizes and at odd ones, for the offline check of registers and spills."""
    strides = ["x_model", "x_row", "weight_model", "weight_row"]
    backward = ["p_grad", "p_x", "p_weight", "p_target", "p_largest", "p_total", "p_grad_logits"]
    kernels = {
        "fwd": (
            linear_cross_entropy_fwd_kernel,
            ["p_x", "p_weight", "p_target", "p_loss", "p_right", "p_largest", "p_total", "p_logits"],
            ["n_rows", *strides],
        ),
        "bwd_x": (linear_cross_entropy_bwd_x_kernel, [*backward, "p_grad_x"], ["n_rows", *strides]),
        "bwd_weight": (
            linear_cross_entropy_bwd_weight_kernel,
            [*backward, "p_grad_weight"],
            ["n_rows", "rows_per_split", "n_models", *strides],
        ),
    }
    sizes = [(128, 113, "cross_entropy", p, "*fp32", False) for p in ("ieee", "tf32x3", "tf32", "bf16")]
    sizes += [(128, 113, "cross_entropy", "bf16", "*bf16", False), (128, 113, "cross_entropy", "ieee", "*fp32", True)]
    sizes += [(97, 97, "stablemax", p, "*fp32", p == "tf32") for p in ("ieee", "tf32")]
    configs = []
    for d, classes, loss, precision, kind, logits in sizes:
        for name, (kernel, tensors, numbers) in kernels.items():
            tile = configuration(name, precision, d, classes)
            warps = tile.pop("num_warps")
            kinds = {"p_x": kind, "p_weight": kind, "p_grad_x": kind, "p_target": "*i64"}
            what = f"{d}-{classes} {loss}, with logits" if logits else f"{d}-{classes} {loss}"
            configs.append(
                {
                    "name": f"linear_cross_entropy {name}, {precision}, {kind[1:]}, {what}",
                    "kernel": kernel,
                    "signature": {t: kinds.get(t, "*fp32") for t in tensors} | dict.fromkeys(numbers, "i32"),
                    "constants": {"D": d, "V": classes, "LOSS": loss, "PRECISION": precision, "LOGITS": logits, **tile},
                    "ones": ["n_models"] if d == 128 and "n_models" in numbers else [],
                    "aligned": strides if d == 128 else [],
                    "num_warps": warps,
                }
            )
    return configs
