from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from grokfast.models import Plan, TransformerConfig
from grokfast.models.transformer.folding import FoldedRows, fold, unfold
from grokfast.ops.mixed_rows.reference import mixed_rows
from tests.models.transformer.test_planned import DATA, build

SMALL = TransformerConfig(d_model=12, n_heads=3, d_mlp=20)
VARIANTS = [
    {},
    {"attention_bias": True, "mlp_bias": False},
    {"attention_bias": True, "n_heads": 1, "d_model": 5, "d_mlp": 3},
    {"causal": False, "attention_rate": 0.3, "positions": "sinusoidal", "d_model": 6},
    {"attention_rate": 0.0, "attention_bias": True},
    {"tied": True, "outputs": "tokens", "n_heads": 4},
]


def parameters(model):
    """Of the first model, as `fold` takes them; the leaves first."""
    leaves = {n.removeprefix("blocks.0."): p.detach()[0].requires_grad_() for n, p in model.named_parameters()}
    others = {"positions": model.positions[0], "unembedding": leaves["embedding"][: model.n_outputs]}
    return leaves, {**others, **leaves}


def logits_of(config, folded, rows, n_outputs):
    mixed = mixed_rows(
        folded.tables, folded.scores, folded.base, rows.keys.index, rows.query, rows.common, config.attention_rate
    )
    hidden, linear = mixed.split([config.d_mlp, mixed.shape[1] - config.d_mlp], 1)
    return (linear + hidden.relu() @ folded.to_logits)[:, :n_outputs]


@pytest.mark.parametrize("data", ["a b", "a ∘ b =", "shared now and then", "equal rows", "nine tokens"])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_logits_and_every_gradient_are_the_models(data, variant):
    config, tokens = replace(SMALL, **variant), DATA[data]
    model = build(config, tokens)
    leaves, w = parameters(model)
    plan = Plan(config, tokens)
    batch = torch.arange(len(tokens)).flip(0)[: len(tokens) - 3]
    for chosen in (None, batch):
        rows = FoldedRows.of(plan, model.embedding.shape[1], chosen)
        own = tokens if chosen is None else tokens[chosen]
        expected = torch.func.functional_call(
            model, {n: leaves[n.removeprefix("blocks.0.")][None] for n, _ in model.named_parameters()}, (own,)
        )[0]
        targets = own.sum(1) % expected.shape[1]
        true = torch.autograd.grad(F.cross_entropy(expected, targets), list(leaves.values()))
        folded = fold(config, w, rows)
        logits = logits_of(config, folded, rows, expected.shape[1])
        torch.testing.assert_close(logits, expected[rows.order], rtol=0, atol=1e-12)
        made = [folded.tables, folded.scores, folded.base, folded.to_logits]
        grads = torch.autograd.grad(F.cross_entropy(logits, targets[rows.order]), made)
        written = {name: torch.full_like(t, torch.nan) for name, t in leaves.items()}
        with torch.no_grad():
            unfold(config, w, rows, folded, tuple(g.clone() for g in grads), written)
        for name, g in zip(leaves, true):
            torch.testing.assert_close(written[name], g, rtol=0, atol=1e-10, msg=name)


def test_a_token_that_all_rows_have_is_not_mixed():
    plan = Plan(SMALL, DATA["a ∘ b ="])
    rows = FoldedRows.of(plan, 9)
    assert rows.keys.shape == (len(plan), 3)
    assert rows.n_queries == 1
    assert rows.query is None
    assert (rows.tokens.index[rows.common], rows.positions.index[rows.common]) == (8, 3)
    assert FoldedRows.of(Plan(SMALL, DATA["a b"]), 9).common is None
