"""GrokTransformer's forward pass over the rows of a plan: the same function, each distinct thing computed once."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from grokfast.models.transformer.model import GrokTransformer, TransformerConfig
from grokfast.models.transformer.plan import LayerRows, PlannedRows
from grokfast.ops import gathered_attention, layer_norm, mlp, pair_embed
from grokfast.ops.products import linear


def logits_of(model: GrokTransformer, weights: Mapping[str, Tensor], rows: PlannedRows) -> Tensor:
    """The logits [B, n_outputs] of one of the models, given its own parameters by name, without the ensemble axis."""
    config = model.config
    table, positions = weights["embedding"], weights.get("positions", model.positions[0])
    x = pair_embed(table[None], positions[None], rows.pairs[None])[0]  # [R, d]
    for i, layer in enumerate(rows.layers):
        of_block = {name.split(".", 2)[2]: w for name, w in weights.items() if name.startswith(f"blocks.{i}.")}
        x = _block(config, of_block, x, layer)
    if config.norm in ("pre", "replace"):
        x = _norm(x, weights, "final_norm")
    unembedding = weights["unembedding"] if "unembedding" in weights else table[: model.n_outputs]
    logits = linear(x, unembedding)
    return logits if rows.output is None else F.embedding(rows.output.index, logits)


def _block(config: TransformerConfig, w: Mapping[str, Tensor], x: Tensor, rows: LayerRows) -> Tensor:
    """One layer: x [R_in, d] -> [R, d]; `Block.forward` on rows."""
    norm = config.norm
    if norm == "replace":
        x = _norm(x, w, "ln1")
    y = gathered_attention(
        _norm(x, w, "ln1") if norm == "pre" else x, w["w_qkv"], w.get("b_qkv"), w["w_o"], w.get("b_o"),
        rows.keys, rows.query, n_heads=config.n_heads, first=rows.first, skip=x if config.residual else None,
    )  # fmt: skip
    if norm == "post":
        y = _norm(y, w, "ln1")
    inner = _norm(y, w, "ln2") if norm in ("pre", "replace") else y
    skip = y if config.residual else None
    y = mlp(inner, w["w_in"], w.get("b_in"), w["w_out"], w.get("b_out"), activation=config.activation, skip=skip)
    return _norm(y, w, "ln2") if norm == "post" else y


def _norm(x: Tensor, w: Mapping[str, Tensor], name: str) -> Tensor:
    return layer_norm(x, w[f"{name}.weight"], w[f"{name}.bias"])
