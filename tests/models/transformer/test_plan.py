from dataclasses import replace

import pytest
import torch

from grokfast import Experiment
from grokfast.models import Plan, TransformerConfig

SMALL = TransformerConfig(d_model=4, n_heads=2, d_mlp=3)


def random_tokens(n, seq_len, below, seed=0):
    return torch.randint(below, (n, seq_len), generator=torch.Generator().manual_seed(seed))


def enumerated(p, layout="operator"):
    """Pairs of 0..p-1, all but a few, with fixed tokens between and after them."""
    a, b = torch.cartesian_prod(torch.arange(p), torch.arange(p))[1::2].unbind(1)
    fixed = {"pair": [a, b], "operator": [a, torch.full_like(a, p), b, torch.full_like(a, p + 1)]}
    return torch.stack(fixed[layout], 1)


def what_is_computed(rows):
    """Carry out a plan on symbols: what each row of the batch is a function of, layer by layer."""
    values = [tuple(pair) for pair in rows.pairs.tolist()]
    for layer in rows.layers:
        keys, query = layer.keys.index.tolist(), layer.query
        own = range(len(keys)) if query is None else query.index.tolist()
        assert layer.keys.n_rows == len(values)
        assert query is None or query.n_rows == len(values) - layer.first
        values = [(values[layer.first + i], tuple(values[k] for k in of_row if k >= 0)) for i, of_row in zip(own, keys)]
    return values if rows.output is None else [values[i] for i in rows.output.index.tolist()]


def what_should_be(config, tokens):
    """The same of the last position, by the definition of a decoder."""
    return [values[-1] for values in every_position(config, tokens)]


def every_position(config, tokens):
    results = []
    for row in tokens.tolist():
        values = [(token, t) for t, token in enumerate(row)]
        for _ in range(config.n_layers):
            seen = [values[: t + 1] if config.causal else values for t in range(len(row))]
            values = [(value, tuple(s)) for value, s in zip(values, seen)]
        results.append(values)
    return results


DATA = {
    "pairs": enumerated(7, "pair"),
    "a ∘ b =": enumerated(7),
    "nothing shared": torch.arange(60).view(20, 3),
    "shared now and then": random_tokens(40, 5, 3),
    "equal rows": random_tokens(50, 3, 2),
    "one row": random_tokens(1, 4, 9),
    "one token": random_tokens(9, 1, 9),
    "nine tokens": random_tokens(30, 9, 2),
}


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("n_layers", [1, 2, 3])
@pytest.mark.parametrize("data", DATA)
def test_a_plan_computes_the_decoder(data, n_layers, causal):
    config, tokens = replace(SMALL, n_layers=n_layers, causal=causal), DATA[data]
    plan, g = Plan(config, tokens), torch.Generator().manual_seed(0)
    assert what_is_computed(plan.rows()) == what_should_be(config, tokens)
    for size in (1, 5, len(tokens), 2 * len(tokens)):
        batch = torch.randint(len(tokens), (size,), generator=g)
        assert what_is_computed(plan.rows(batch)) == what_should_be(config, tokens[batch])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("n_layers", [1, 2, 3])
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_it_computes_the_positions_that_are_asked(data, n_layers, causal, share):
    config, tokens = replace(SMALL, n_layers=n_layers, causal=causal), DATA[data]
    g = torch.Generator().manual_seed(1)
    n_answers = min(3, tokens.shape[1])
    asked = torch.rand(len(tokens), n_answers, generator=g) < share
    asked[:, -1] |= ~asked.any(1)
    plan = Plan(config, tokens, asked)
    for batch in (None, *(torch.randint(len(tokens), (size,), generator=g) for size in (1, 5, 2 * len(tokens)))):
        found = what_is_computed(plan.rows(batch))
        expected = every_position(config, tokens if batch is None else tokens[batch])
        its = asked if batch is None else asked[batch]
        assert found == [expected[r][len(expected[r]) - n_answers + s] for r, s in its.nonzero().tolist()]


@pytest.mark.parametrize("asked", [torch.ones(4, 1), torch.ones(3, 1) > 0, torch.ones(4, 4) > 0, torch.ones(4) > 0])
def test_asked_must_fit(asked):
    with pytest.raises(ValueError, match=r"asked must be bool \[4, S\]"):
        Plan(SMALL, random_tokens(4, 3, 5), asked)


def sizes(rows):
    """Rows that enter the first layer, then keys and values and outputs of each layer."""
    return len(rows.pairs), [(layer.keys.n_rows, layer.keys.shape[0]) for layer in rows.layers]


def test_enumerated_data_has_few_distinct_rows():
    nanda = Experiment.preset("nanda")
    data = nanda.task.build()
    assert sizes(Plan(nanda.model, data.train.inputs).rows()) == (227, [(227, 3830)])
    layers = Plan(nanda.model, data.train.inputs).rows().layers
    assert (layers[0].first, layers[0].query.n_rows) == (226, 1)

    grokfast = Experiment.preset("grokfast")
    data = grokfast.task.build()
    plan = Plan(grokfast.model, data.train.inputs)
    n_a, n_b = 97, 96
    assert sizes(plan.rows()) == (n_a + n_b + 2, [(195, 2 * n_a + 2 * 4656), (2 * n_a + 2 * 4656, 4656)])
    batch = torch.arange(512)
    assert sizes(plan.rows(batch)) == (195, [(195, 2 * n_a + 2 * 512), (2 * n_a + 2 * 512, 512)])
    batch = torch.arange(48)  # fewer rows than tokens: only the fixed ones are shared
    assert sizes(plan.rows(batch)) == (48 + 1 + 48 + 1, [(98, 4 * 48), (4 * 48, 48)])


@pytest.mark.parametrize("n_layers", [1, 3])
def test_where_nothing_is_shared_each_position_of_each_row_is_computed_once(n_layers):
    n, seq_len = 20, 3
    rows = Plan(replace(SMALL, n_layers=n_layers), torch.arange(n * seq_len).view(n, seq_len)).rows()
    whole = n * seq_len
    assert sizes(rows) == (whole, [(whole, whole)] * (n_layers - 1) + [(whole, n)])
    assert rows.output is None


def test_without_causality_only_tokens_are_shared_and_one_position_read():
    rows = Plan(replace(SMALL, n_layers=2, causal=False), enumerated(7)).rows()
    assert sizes(rows) == (7 + 1 + 7 + 1, [(16, 4 * 24), (4 * 24, 24)])


def test_equal_rows_are_computed_once():
    tokens = random_tokens(200, 3, 2)
    rows = Plan(replace(SMALL, n_layers=2), tokens).rows()
    assert sizes(rows) == (6, [(6, 14), (14, 8)])
    assert rows.output.shape == (200,)


def test_whether_a_plan_shares_anything():
    two, data = replace(SMALL, n_layers=2), enumerated(7)
    assert Plan(two, data).shares()
    assert Plan(two, data).shares(len(data))
    assert not Plan(two, data).shares(1)
    assert not Plan(two, torch.arange(60).view(20, 3)).shares()
    assert not Plan(replace(two, causal=False), data).shares()
    assert Plan(SMALL, torch.arange(60).view(20, 3)).shares()  # one layer: only one position goes through it


def test_the_whole_data_set_is_planned_once():
    plan = Plan(SMALL, enumerated(7))
    assert plan.rows() is plan.rows()
    assert len(plan) == 24


def test_the_data_may_change_afterwards():
    tokens = enumerated(7)
    plan = Plan(SMALL, tokens)
    tokens.zero_()
    assert what_is_computed(plan.rows()) == what_should_be(SMALL, enumerated(7))


@pytest.mark.parametrize(
    ("config", "tokens", "error", "message"),
    [
        ({}, enumerated(5), TypeError, "config must be a TransformerConfig, got {}"),
        (SMALL, enumerated(5).int(), TypeError, "tokens must be an int64 tensor, got torch.int32"),
        (SMALL, [[0]], TypeError, "tokens must be an int64 tensor, got list"),
        (SMALL, enumerated(5)[0], ValueError, r"tokens must be \[N, T\], not empty, got \[4\]"),
        (SMALL, enumerated(5)[:0], ValueError, r"tokens must be \[N, T\], not empty, got \[0, 4\]"),
    ],
)
def test_bad_plans_are_refused(config, tokens, error, message):
    with pytest.raises(error, match=message):
        Plan(config, tokens)


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (torch.zeros(3), TypeError, "batch must be an int64 tensor, got torch.float32"),
        ([0, 1], TypeError, "batch must be an int64 tensor, got list"),
        (torch.zeros(2, 2, dtype=torch.int64), ValueError, r"batch must be \[B\], not empty, got \[2, 2\]"),
        (torch.zeros(0, dtype=torch.int64), ValueError, r"batch must be \[B\], not empty, got \[0\]"),
        (torch.tensor([0, 24]), IndexError, "24 is out of bounds"),
    ],
)
def test_bad_batches_are_refused(batch, error, message):
    with pytest.raises(error, match=message):
        Plan(SMALL, enumerated(7)).rows(batch)
