from dataclasses import replace

import pytest
import torch

from grokfast.models import TransformerConfig
from grokfast.models.transformer.ensemble_plan import EnsemblePlan
from grokfast.ops.rows import PairIndex

SMALL = TransformerConfig(d_model=4, n_heads=2, d_mlp=3)


def splits(p, n_models, n, *, operator=True):
    """Each model's own n of the pairs of 0..p-1, with fixed tokens between and after them: [E, n, T]."""
    a, b = torch.cartesian_prod(torch.arange(p), torch.arange(p)).unbind(1)
    tokens = torch.stack([a, torch.full_like(a, p), b, torch.full_like(a, p + 1)] if operator else [a, b], 1)
    orders = [torch.randperm(p * p, generator=torch.Generator().manual_seed(e))[:n] for e in range(n_models)]
    return tokens[torch.stack(orders)]


def words(n, seq_len, below):
    return torch.randint(below, (2, n, seq_len), generator=torch.Generator().manual_seed(0))


def what_is_computed(rows, e):
    """Carry out a plan of model e on symbols: what each row of the batch is a function of, layer by layer."""
    pairs = rows.pairs.pairs if isinstance(rows.pairs, PairIndex) else rows.pairs
    values = [tuple(pair) for pair in pairs[e].tolist()]
    for layer in rows.layers:
        keys = layer.keys.index[e].tolist()
        own = range(len(keys)) if layer.own is None else layer.own.index[e].tolist()
        assert layer.keys.n_rows == len(values)
        assert layer.own is None or layer.own.n_rows == len(values)
        assert all(of_row.count(i) == 1 for i, of_row in zip(own, keys))  # each row is among its own keys
        values = [(values[i], tuple(values[k] for k in of_row if k >= 0)) for i, of_row in zip(own, keys)]
    return values if rows.output is None else [values[i] for i in rows.output.index[e].tolist()]


def what_should_be(config, tokens):
    """The same by the definition of a decoder."""
    results = []
    for row in tokens.tolist():
        values = [(token, t) for t, token in enumerate(row)]
        for _ in range(config.n_layers):
            seen = [values[: t + 1] if config.causal else values for t in range(len(row))]
            values = [(value, tuple(s)) for value, s in zip(values, seen)]
        results.append(values[-1])
    return results


DATA = {
    "pairs": splits(6, 2, 20, operator=False),
    "a ∘ b =": splits(6, 2, 20),
    "other tokens in each": torch.arange(60).view(2, 10, 3),
    "shared now and then": words(30, 5, 3),
    "equal rows": words(30, 3, 2),
    "one row": words(1, 4, 9),
    "one token": words(9, 1, 9),
}


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("n_layers", [1, 2, 3])
@pytest.mark.parametrize("data", DATA)
def test_a_plan_computes_each_models_decoder(data, n_layers, causal):
    config, tokens = replace(SMALL, n_layers=n_layers, causal=causal), DATA[data]
    plan, g, n = EnsemblePlan(config, tokens, n_tokens=60), torch.Generator().manual_seed(0), tokens.shape[1]
    for batch in (None, *(torch.randint(n, (2, size), generator=g) for size in (1, 5, n, 2 * n))):
        rows = plan.rows(batch)
        for e in range(2):
            expected = tokens[e] if batch is None else tokens[e, batch[e]]
            assert what_is_computed(rows, e) == what_should_be(config, expected)


def sizes(rows):
    """Rows that enter the first layer, then keys and values and outputs of each layer."""
    pairs = rows.pairs.pairs if isinstance(rows.pairs, PairIndex) else rows.pairs
    return pairs.shape[1], [(layer.keys.n_rows, layer.keys.shape[1]) for layer in rows.layers]


def test_tables_hold_what_any_model_has_and_rows_are_each_models_own():
    p, n = 13, 80
    plan = EnsemblePlan(replace(SMALL, n_layers=2), splits(p, 3, n), n_tokens=p + 2)
    tables = 2 * p + 2
    assert sizes(plan.rows()) == (tables, [(tables, 2 * p + 2 * n), (2 * p + 2 * n, n)])
    batch = torch.zeros(3, 40, dtype=torch.int64)
    assert sizes(plan.rows(batch)) == (tables, [(tables, 2 * p + 2 * 40), (2 * p + 2 * 40, 40)])
    one_layer = EnsemblePlan(SMALL, splits(p, 3, n), n_tokens=p + 2).rows()
    assert sizes(one_layer) == (tables, [(tables, n)])


def test_what_is_left_of_an_ensemble_keeps_its_tables():
    tokens = torch.stack([torch.arange(12).view(4, 3), torch.zeros(4, 3, dtype=torch.int64)])
    plan = EnsemblePlan(replace(SMALL, n_layers=2), tokens, n_tokens=12)
    kept = plan.keep([1])
    assert kept.n_models == 1
    assert sizes(kept.rows()) == sizes(plan.rows())
    assert what_is_computed(kept.rows(), 0) == what_should_be(plan.config, tokens[1])
    assert what_is_computed(kept.keep([0]).rows(), 0) == what_should_be(plan.config, tokens[1])


def test_the_whole_data_set_is_planned_once():
    plan = EnsemblePlan(SMALL, splits(5, 2, 9), n_tokens=7)
    assert plan.rows() is plan.rows()


@pytest.mark.parametrize(
    ("tokens", "options", "error", "message"),
    [
        (splits(5, 2, 9).int(), {}, TypeError, "tokens must be an int64 tensor, got torch.int32"),
        ([[0]], {}, TypeError, "tokens must be an int64 tensor, got list"),
        (splits(5, 2, 9)[0], {}, ValueError, r"tokens must be \[E, N, T\], not empty, got \[9, 4\]"),
        (splits(5, 2, 9)[:0], {}, ValueError, r"tokens must be \[E, N, T\], not empty, got \[0, 9, 4\]"),
        (splits(5, 2, 9) - 1, {}, ValueError, r"tokens must be in \[0, 7\), got -1"),
        (splits(5, 2, 9), {"n_tokens": 6}, ValueError, r"tokens must be in \[0, 6\), got 6"),
        (splits(5, 2, 9), {"n_positions": 3}, ValueError, "n_positions must be at least 4, got 3"),
    ],
)
def test_bad_plans_are_refused(tokens, options, error, message):
    with pytest.raises(error, match=message):
        EnsemblePlan(SMALL, tokens, **{"n_tokens": 7, **options})


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (torch.zeros(2, 3), TypeError, "batch must be an int64 tensor, got torch.float32"),
        ([0, 1], TypeError, "batch must be an int64 tensor, got list"),
        (torch.zeros(3, 2, dtype=torch.int64), ValueError, r"batch must be \[2, B\], not empty, on cpu, got \[3, 2\]"),
        (torch.zeros(2, 0, dtype=torch.int64), ValueError, r"batch must be \[2, B\], not empty, on cpu, got \[2, 0\]"),
    ],
)
def test_bad_batches_are_refused(batch, error, message):
    with pytest.raises(error, match=message):
        EnsemblePlan(SMALL, splits(5, 2, 9), n_tokens=7).rows(batch)
