"""ops.pair_embed: configurations that are launched."""

from __future__ import annotations

from typing import Any

from grokfast.ops.pair_embed.kernels import configuration, pair_embed_bwd_kernel, pair_embed_fwd_kernel


def shipped() -> list[dict[str, Any]]:
    """Configurations at the usual sizes and at odd ones, for the offline check of registers and spills."""
    strides = ["a_model", "b_model", "bias_model"]
    forward_numbers = ["n_rows", "n_a", "n_b", *strides, "pairs_model", "pairs_row", "pairs_side"]
    backward_strides = ["grad_model", "grad_row", "own_model", "other_model", "bias_model"]
    backward_numbers = ["n_own", "n_other", "n_models", "n_splits", *backward_strides, "index_model", "index_row"]
    kernels = {
        "fwd": (pair_embed_fwd_kernel, ["p_a", "p_b", "p_pairs", "p_bias", "p_out"], forward_numbers),
        "bwd": (
            pair_embed_bwd_kernel,
            ["p_grad", "p_own", "p_other", "p_index", "p_bias", "p_start", "p_items", "p_partial"],
            [*backward_numbers, "start_model", "items_model"],
        ),
    }
    kinds = {"p_pairs": "*i64", "p_index": "*i64", "p_start": "*i64", "p_items": "*i64", "p_partial": "*fp32"}
    configs: list[dict[str, Any]] = []
    for width, activation, kind in ((128, "identity", "*fp32"), (256, "relu", "*fp32"), (200, "gelu", "*bf16")):
        for name, (kernel, tensors, numbers) in kernels.items():
            tile = configuration(width)
            warps = tile.pop("num_warps")
            configs.append(
                {
                    "name": f"pair_embed {name}, {kind[1:]}, {width} {activation}",
                    "kernel": kernel,
                    "signature": {t: kinds.get(t, kind) for t in tensors} | dict.fromkeys(numbers, "i32"),
                    "constants": {"H": width, "ACTIVATION": activation, "BIAS": True, **tile},
                    "ones": [n for n in ("pairs_side", "n_splits") if n in numbers],
                    "aligned": [n for n in (*strides, *backward_strides) if n in numbers and width % 16 == 0],
                    "num_warps": warps,
                }
            )
    return configs
