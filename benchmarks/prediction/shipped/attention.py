"""ops.attention: configurations that are launched."""

from __future__ import annotations

from typing import Any

from grokfast.ops.attention.kernels import attention_bwd_kernel, attention_fwd_kernel, configuration


def shipped() -> list[dict[str, Any]]:
    """Configurations at the usual sizes, the largest and odd ones, for the offline check of registers and spills."""
    kernels: dict[str, tuple[Any, list[str], str]] = {
        "fwd": (attention_fwd_kernel, ["p_q", "p_k", "p_v", "p_out"], "qkv"),
        "bwd": (
            attention_bwd_kernel,
            ["p_grad", "p_q", "p_k", "p_v", "p_grad_q", "p_grad_k", "p_grad_v"],
            "gqkv",
        ),
    }
    sizes = [(4, 32, p, "*fp32") for p in ("ieee", "tf32x3", "tf32", "bf16")]
    sizes += [(3, 32, "bf16", "*bf16"), (5, 24, "tf32", "*fp32"), (23, 64, "ieee", "*fp32")]
    sizes += [(64, 128, p, "*fp32") for p in ("ieee", "tf32x3", "tf32")]
    configs: list[dict[str, Any]] = []
    for t, d_head, precision, kind in sizes:
        for name, (kernel, tensors, strided) in kernels.items():
            tile = configuration(precision, t, d_head)
            options: dict[str, int] = {key: tile.pop(key) for key in ("num_warps", "maxnreg") if key in tile}
            strides = [f"{letter}_{axis}" for letter in strided for axis in ("batch", "head", "row")]
            signature = dict.fromkeys(tensors, kind) | dict.fromkeys(["n_pairs", *strides], "i32")
            configs.append(
                {
                    "name": f"attention {name}, {precision}, {kind[1:]}, T {t}, head {d_head}",
                    "kernel": kernel,
                    "signature": signature | {"scale": "fp32"},
                    "constants": {"H": 4, "T": t, "DH": d_head, "CAUSAL": True, "PRECISION": precision, **tile},
                    "aligned": strides if d_head % 16 == 0 else [],
                    **options,
                }
            )
    return configs
