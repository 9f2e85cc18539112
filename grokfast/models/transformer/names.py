"""A decoder's weights under the names that others have for them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from grokfast import checks

NAMES = ("hooked_transformer",)


def weights_as(names: str, model: Any) -> dict[str, Tensor]:
    """Copies of the weights of one GrokTransformer, unstacked; with H heads of d_head dimensions

        embed.W_E [n_tokens, d], pos_embed.W_pos [n_positions, d], unembed.W_U [d, n_outputs], unembed.b_U
        blocks.0.attn.W_Q, W_K, W_V [H, d, d_head], b_Q, b_K, b_V [H, d_head], W_O [H, d_head, d], b_O [d]
        blocks.0.mlp.W_in [d, d_mlp], b_in, W_out [d_mlp, d], b_out
        blocks.0.ln1.w, b, blocks.0.ln2.w, b, ln_final.w, b [d], where there are LayerNorms

    Biases that the model does not have are 0. Raises TypeError or ValueError for other `names`.
    """
    checks.choice("names", names, NAMES)
    config, table = model.config, model.embedding
    unembedding = table[: model.n_outputs] if model.unembedding is None else model.unembedding
    found = {
        "embed.W_E": table,
        "pos_embed.W_pos": model.positions,
        "unembed.W_U": unembedding.mT,
        "unembed.b_U": table.new_zeros(model.n_outputs),
    }
    norms = {} if config.norm not in ("pre", "replace") else {"ln_final": model.final_norm}
    heads = (config.n_heads, config.d_model // config.n_heads)
    for i, block in enumerate(model.blocks):
        at = f"blocks.{i}"
        zeros = table.new_zeros(3 * config.d_model)
        b_qkv = zeros if block.b_qkv is None else block.b_qkv
        matrices, biases = block.w_qkv.unflatten(0, (3, *heads)).mT, b_qkv.unflatten(0, (3, *heads))
        for letter, matrix, bias in zip("QKV", matrices, biases):
            found |= {f"{at}.attn.W_{letter}": matrix, f"{at}.attn.b_{letter}": bias}
        found |= {
            f"{at}.attn.W_O": block.w_o.mT.unflatten(0, heads),
            f"{at}.attn.b_O": zeros[: config.d_model] if block.b_o is None else block.b_o,
            f"{at}.mlp.W_in": block.w_in.mT,
            f"{at}.mlp.b_in": table.new_zeros(config.d_mlp) if block.b_in is None else block.b_in,
            f"{at}.mlp.W_out": block.w_out.mT,
            f"{at}.mlp.b_out": zeros[: config.d_model] if block.b_out is None else block.b_out,
        }
        norms |= {} if config.norm == "none" else {f"{at}.ln1": block.ln1, f"{at}.ln2": block.ln2}
    for name, norm in norms.items():
        found |= {f"{name}.w": norm.weight, f"{name}.b": norm.bias}
    return {name: weight.detach().clone().contiguous() for name, weight in found.items()}
