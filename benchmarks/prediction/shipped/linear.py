"""ops.linear: configurations that are launched."""

from __future__ import annotations

from typing import Any

from grokfast.ops.linear.kernels import configuration, linear_bwd_weight_kernel, linear_bwd_x_kernel, linear_fwd_kernel


def shipped() -> list[dict[str, Any]]:
    """Configurations at the usual sizes and at odd ones, for the offline check of registers and spills."""
    kernels = {
        "fwd": (
            linear_fwd_kernel,
            ["p_x", "p_weight", "p_bias", "p_skip", "p_own", "p_y"],
            ["n_rows", "x_model", "x_row", "skip_model", "skip_row", "own_model"],
        ),
        "bwd_x": (
            linear_bwd_x_kernel,
            ["p_grad", "p_weight", "p_skip", "p_grad_x"],
            ["n_rows", "grad_model", "grad_row", "skip_model", "skip_row"],
        ),
        "bwd_weight": (
            linear_bwd_weight_kernel,
            ["p_grad", "p_x", "p_grad_w", "p_grad_b"],
            ["n_rows", "rows_per_split", "n_models", "grad_model", "grad_row", "x_model", "x_row"],
        ),
    }
    sizes = [(128, 384, p, False, "identity") for p in ("ieee", "tf32x3", "tf32", "bf16")]
    sizes += [(128, 128, "tf32", True, "identity")] + [(100, 100, "ieee", skip, "identity") for skip in (False, True)]
    sizes += [(512, 128, p, True, activation) for p in ("ieee", "tf32x3") for activation in ("relu", "gelu")]
    configs: list[dict[str, Any]] = []
    for d_in, d_out, precision, with_skip, activation in sizes:
        for name, (kernel, tensors, numbers) in kernels.items():
            tile = configuration(name, precision, d_in, d_out)
            warps = tile.pop("num_warps")
            known = {
                "D_IN": d_in, "D_OUT": d_out, "PRECISION": precision, "ACTIVATION": activation, "BIAS": True,
                "SKIP": with_skip,
                "OWN": with_skip,
            }  # fmt: skip
            signature = {t: "*i64" if t == "p_own" else "*fp32" for t in tensors} | dict.fromkeys(numbers, "i32")
            strides = [n for n in numbers if n.endswith(("_model", "_row"))]
            configs.append(
                {
                    "name": f"linear {name}, {precision}, {d_in}-{d_out}{', skip' if with_skip else ''} {activation}",
                    "kernel": kernel,
                    "signature": signature,
                    "constants": {k: v for k, v in known.items() if k in kernel.arg_names} | tile,
                    "aligned": strides if d_in % 16 == 0 else [],
                    "num_warps": warps,
                }
            )
    return configs
