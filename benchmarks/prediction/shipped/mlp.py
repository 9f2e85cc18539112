"""ops.mlp: configurations that are launched."""

from __future__ import annotations

from typing import Any

from grokfast.ops.mlp.kernels import configuration, mlp_bwd_data_kernel, mlp_bwd_weights_kernel, mlp_fwd_kernel


def shipped() -> list[dict[str, Any]]:
    """Configurations at the usual sizes and at odd ones, for the offline check of registers and spills."""
    pointers = ["p_grad", "p_x", "p_w_in", "p_b_in", "p_w_out"]
    strides = ["grad_model", "grad_row", "x_model", "x_row"]
    kernels = {
        "fwd": (mlp_fwd_kernel, [*pointers[1:], "p_b_out", "p_y"], ["n_rows", *strides[2:]]),
        "bwd_data": (mlp_bwd_data_kernel, [*pointers, "p_grad_x"], ["n_rows", *strides]),
        "bwd_w_in": (
            mlp_bwd_weights_kernel,
            [*pointers, "p_grad_w", "p_grad_b"],
            ["n_rows", "rows_per_split", "n_models", *strides],
        ),
    }
    kernels["bwd_w_out"] = kernels["bwd_w_in"]
    sizes = [((128, 512, 128), "relu", p, "*fp32") for p in ("ieee", "tf32x3", "tf32", "bf16")]
    sizes += [((128, 512, 128), "relu", "bf16", "*bf16")]
    sizes += [((97, 200, 113), "gelu", p, "*fp32") for p in ("ieee", "tf32")]
    configs: list[dict[str, Any]] = []
    for (d_in, hidden, d_out), activation, precision, kind in sizes:
        for name, (kernel, tensors, numbers) in kernels.items():
            tile = configuration(name, precision, d_in, hidden, d_out)
            options: dict[str, int] = {key: tile.pop(key) for key in ("num_warps", "maxnreg") if key in tile}
            constants = {
                "D_IN": d_in, "HIDDEN": hidden, "D_OUT": d_out, "ACTIVATION": activation, "BIAS_IN": True,
                "PRECISION": precision, **tile,
            }  # fmt: skip
            if kernel is mlp_bwd_weights_kernel:
                constants["INPUT"] = name == "bwd_w_in"
            else:
                constants["RESIDUAL"] = d_in == d_out
            if name == "fwd":
                constants["BIAS_OUT"] = True
            signature = {t: "*fp32" if t in ("p_grad_w", "p_grad_b") else kind for t in tensors}
            configs.append(
                {
                    "name": f"mlp {name}, {precision}, {kind[1:]}, {d_in}-{hidden}-{d_out} {activation}",
                    "kernel": kernel,
                    "signature": signature | dict.fromkeys(numbers, "i32"),
                    "constants": constants,
                    "ones": ["n_models"] if d_in == 128 and "n_models" in numbers else [],
                    "aligned": [n for n in strides if n in numbers] if d_in == 128 else [],
                    **options,
                }
            )
    return configs
