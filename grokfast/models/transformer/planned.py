"""GrokTransformer's forward pass over the rows of a plan: the same function, each distinct thing computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from grokfast.models.transformer.model import GrokTransformer, TransformerConfig
from grokfast.models.transformer.plan import LayerRows, Plan, PlannedRows
from grokfast.ops import gathered_attention, layer_norm, mlp, pair_embed
from grokfast.ops.products import linear


def planned_forward(model: GrokTransformer, plans: Sequence[Plan], batch: Tensor | None = None) -> Tensor:
    """model(tokens) of the plans' data sets, without dropout: plans one per model, batch [E, B] rows of each, or None.

    Returns logits [E, B, n_outputs], equal to the model's own up to rounding, and differentiable as they are. Model e
    computes bit for bit what it computes alone.
    Raises ValueError where the plans do not fit the model, and what Plan.rows raises.
    """
    if len(plans) != model.n_models:
        raise ValueError(f"plans must be one per model, {model.n_models}, got {len(plans)}")
    if batch is not None and len(batch) != model.n_models:
        raise ValueError(f"batch must be [{model.n_models}, B], got {list(batch.shape)}")
    for e, plan in enumerate(plans):
        if plan.config != model.config or plan.tokens.shape[1] > model.positions.shape[1]:
            raise ValueError(f"plans[{e}] is of another config, or its tokens are more than the model has positions")
    names = [name for name, _ in model.named_parameters()]
    weights = [dict(zip(names, of_model)) for of_model in zip(*(p.unbind() for p in model.parameters()))]
    rows = [plan.rows(None if batch is None else batch[e]) for e, plan in enumerate(plans)]
    return torch.stack([logits_of(model, of_model, r) for of_model, r in zip(weights, rows)])


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
