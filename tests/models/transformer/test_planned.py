import itertools
from dataclasses import replace

import pytest
import torch

from grokfast.models import GrokTransformer, Plan, TransformerConfig
from tests.models.transformer.common import planned_forward

SMALL = TransformerConfig(d_model=12, n_heads=3, d_mlp=20)


def random_tokens(n, seq_len, below):
    return torch.randint(below, (n, seq_len), generator=torch.Generator().manual_seed(0))


def pairs(p, *fixed):
    a, b = torch.cartesian_prod(torch.arange(p), torch.arange(p))[1::2].unbind(1)
    return torch.stack(
        [
            a,
            *[torch.full_like(a, token) for token in fixed[:1]],
            b,
            *[torch.full_like(a, token) for token in fixed[1:]],
        ],
        1,
    )


DATA = {
    "a b": pairs(7),
    "a ∘ b =": pairs(7, 7, 8),
    "nothing shared": torch.arange(60).view(20, 3),
    "shared now and then": random_tokens(40, 5, 3),
    "equal rows": random_tokens(50, 3, 2),
    "nine tokens": random_tokens(33, 9, 2),
}
VARIANTS = [
    *[{"norm": n, "n_layers": k} for n, k in itertools.product(("none", "pre", "post", "replace"), (1, 2, 3))],
    *[{"norm": norm, "residual": False, "n_layers": 2} for norm in ("none", "pre", "post", "replace")],
    {"n_layers": 2, "causal": False, "norm": "pre"},
    {"n_layers": 1, "causal": False, "attention_bias": True},
    {"n_layers": 2, "positions": "sinusoidal", "norm": "post", "mlp_bias": False},
    {"n_layers": 2, "attention_bias": True, "activation": "gelu", "n_positions": 10, "norm": "replace"},
    {"n_layers": 1, "positions": "sinusoidal", "attention_bias": True, "activation": "gelu"},
    {"n_layers": 2, "tied": True, "norm": "pre", "outputs": "tokens"},
    {"n_layers": 3, "n_heads": 1, "d_model": 5, "d_mlp": 3, "attention_bias": True},
    {"n_layers": 2, "dropout": 0.3},
]


def build(config, tokens, seeds=(0,), dtype=torch.float64):
    sizes = {"n_tokens": int(tokens.max()) + 2, "n_answers": 3, "seq_len": tokens.shape[-1]}
    model, g = GrokTransformer(config, **sizes, seeds=seeds, dtype=torch.float64), torch.Generator().manual_seed(1)
    with torch.no_grad():  # biases and LayerNorms must matter
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape[1:], generator=g, dtype=torch.float64)
    return model.to(dtype).eval()


def results(model, logits):
    """Logits, their loss, and the gradient of every parameter."""
    targets = torch.arange(logits.shape[1]).expand(logits.shape[:2]) % logits.shape[2]
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    loss = losses.view(logits.shape[:2]).mean(1)
    return [logits.detach(), loss.detach(), *torch.autograd.grad(loss.sum(), list(model.parameters()))]


def both(config, tokens, batch=None, dtype=torch.float64):
    """Results of the plan, and of the model itself."""
    model = build(config, tokens, dtype=dtype)
    plan = Plan(config, tokens)
    planned = planned_forward(model, [plan], None if batch is None else batch[None])
    return results(model, planned), results(model, model(tokens if batch is None else tokens[batch]))


BATCHES = {"whole": None, "part": slice(0, 13), "one row": slice(2, 3)}


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_the_plan_is_the_model_to_rounding(variant, data, batch):
    tokens = DATA[data]
    rows = (
        torch.randperm(len(tokens), generator=torch.Generator().manual_seed(2))[BATCHES[batch]]
        if BATCHES[batch]
        else None
    )
    planned, ordinary = both(replace(SMALL, **variant), tokens, rows)
    for got, expected in zip(planned, ordinary):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def relative_error(got, exact):
    """Of each model: [E, ...] -> [E]."""
    got, exact = got.double().view(len(got), -1), exact.view(len(exact), -1)
    return (got - exact).norm(dim=1) / exact.norm(dim=1).clamp(min=1e-30)


def judge_together(config, tokens, batch=None):
    """The median of eight models: on a few numbers of one of them either side may be exact by luck."""
    seeds = range(8)
    single, double = build(config, tokens, seeds, torch.float32), build(config, tokens, seeds)
    x, rows = (tokens, None) if batch is None else (tokens[batch], batch.expand(8, -1))
    planned = results(single, planned_forward(single, [Plan(config, tokens)] * 8, rows))
    by_torch, exact = results(single, single(x)), results(double, double(x))
    for got, theirs, right in zip(planned, by_torch, exact):
        error, yardstick = (relative_error(t, right).median() for t in (got, theirs))
        assert error <= 2 * yardstick + torch.finfo(torch.float32).eps


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_in_fp32_it_is_as_good_as_torch(variant, data, compiled, poisoned):
    judge_together(replace(SMALL, **variant), DATA[data])


@pytest.mark.parametrize("sizes", [(128, 4, 512), (36, 3, 50)])
@pytest.mark.parametrize("norm", ["none", "replace"])
def test_a_larger_model_on_a_minibatch(norm, sizes, each_backend):
    d_model, n_heads, d_mlp = sizes
    config = replace(SMALL, d_model=d_model, n_heads=n_heads, d_mlp=d_mlp, norm=norm, n_layers=2, activation="gelu")
    judge_together(config, pairs(23, 23, 24), torch.arange(0, 200))


@pytest.mark.parametrize("batch_size", [None, 60])
@pytest.mark.parametrize("norm", ["none", "pre", "post", "replace"])
def test_an_ensemble_has_each_models_bits(norm, batch_size, each_backend):
    """Each model with a data set of its own, sharing other prefixes."""
    config, seeds, g = replace(SMALL, d_model=36, d_mlp=65, norm=norm, n_layers=2), (3, 4, 8), torch.Generator()
    data = [pairs(15, 15, 16)[torch.randperm(112, generator=g.manual_seed(s))[:100]] for s in seeds]
    plans = [Plan(config, tokens) for tokens in data]
    batch = None
    if batch_size:
        batch = torch.stack([torch.randperm(100, generator=g)[:batch_size] for _ in seeds])
    model = build(config, torch.tensor([[16] * 4]), seeds, torch.float32)
    logits, loss, *grads = results(model, planned_forward(model, plans, batch))
    for e, seed in enumerate(seeds):
        alone = build(config, torch.tensor([[16] * 4]), (seed,), torch.float32)
        own = results(alone, planned_forward(alone, plans[e : e + 1], None if batch is None else batch[e : e + 1]))
        for got, expected in zip((logits, loss, *grads), own):
            assert torch.equal(got[e], expected[0])


def test_the_same_bits_twice(each_backend):
    tokens = pairs(40, 40, 41)
    config = replace(SMALL, d_model=64, n_heads=4, d_mlp=128, norm="pre", n_layers=2)
    first, second = (both(config, tokens, torch.arange(300), dtype=torch.float32)[0] for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_without_gradients(each_backend):
    tokens = pairs(7, 7, 8)
    model = build(SMALL, tokens, dtype=torch.float32)
    with torch.no_grad():
        logits = planned_forward(model, [Plan(SMALL, tokens)])
    assert not logits.requires_grad
    torch.testing.assert_close(logits, planned_forward(model, [Plan(SMALL, tokens)]), rtol=0, atol=0)
