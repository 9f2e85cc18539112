"""ops.layer_norm: configurations that are launched."""

from __future__ import annotations

from typing import Any

from grokfast.ops.layer_norm.kernels import configuration, layer_norm_bwd_kernel, layer_norm_fwd_kernel


def shipped() -> list[dict[str, Any]]:
    """Configurations at the usual sizes and at odd ones, for the offline check of registers and spills."""
    forward_strides = ["x_model", "x_row", "weight_model", "bias_model"]
    backward_strides = ["grad_model", "grad_row", "x_model", "x_row", "weight_model"]
    kernels = {
        "fwd": (layer_norm_fwd_kernel, ["p_x", "p_weight", "p_bias", "p_out"], ["n_rows"], forward_strides),
        "bwd": (
            layer_norm_bwd_kernel,
            ["p_grad", "p_x", "p_weight", "p_grad_x", "p_of_weight", "p_of_bias"],
            ["n_rows", "rows_per_split", "n_models"],
            backward_strides,
        ),
    }
    configs: list[dict[str, Any]] = []
    for d, kind in ((128, "*fp32"), (100, "*bf16"), (4096, "*fp32")):
        for name, (kernel, tensors, numbers, strides) in kernels.items():
            tile = configuration(d)
            warps = tile.pop("num_warps")
            partials = {t: "*fp32" for t in ("p_of_weight", "p_of_bias") if t in tensors}
            signature = dict.fromkeys(tensors, kind) | dict.fromkeys([*numbers, *strides], "i32") | {"eps": "fp32"}
            configs.append(
                {
                    "name": f"layer_norm {name}, {kind[1:]}, {d}",
                    "kernel": kernel,
                    "signature": signature | partials,
                    "constants": {"D": d, **tile},
                    "ones": ["n_models"] if name == "bwd" else [],
                    "aligned": strides if d % 16 == 0 else [],
                    "num_warps": warps,
                }
            )
    return configs
