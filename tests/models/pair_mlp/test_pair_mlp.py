import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import grokfast
from grokfast.models import PairMLP, PairMLPConfig

P, C = 7, 5
PAIRS = torch.cartesian_prod(torch.arange(P), torch.arange(P))
ANSWERS = PAIRS.sum(1) % C


def build(seeds=(0,), dtype=torch.float32, **config):
    return PairMLP(PairMLPConfig(**{"width": 12, **config}), n_tokens=P, n_answers=C, seeds=seeds, dtype=dtype)


class Activation(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.function = {"relu": F.relu, "square": lambda z: z * z, "gelu": F.gelu, "abs": torch.abs}[name]

    def forward(self, z):
        return self.function(z)


def one_hot_network(model, e=0):
    """The same network as ordinary layers on two concatenated one-hot vectors, with model e's weights."""
    layers = [(torch.cat([model.w_a[e], model.w_b[e]]).T, model.b_in)]
    layers += [(layer.weight[e], layer.bias) for layer in (*model.hidden, model.out)]
    modules = []
    for weight, bias in layers:
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
        linear.weight.data.copy_(weight)
        if bias is not None:
            linear.bias.data.copy_(bias[e])
        modules += [linear, Activation(model.config.activation)]
    return nn.Sequential(*modules[:-1])


def one_hot(pairs):
    return F.one_hot(pairs, P).flatten(-2)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("activation", ["relu", "square", "gelu", "abs"])
def test_it_is_a_network_on_one_hot_vectors(activation, depth, bias):
    model = build(seeds=(3, 4), dtype=torch.float64, activation=activation, depth=depth, bias=bias)
    logits = model(PAIRS)
    F.cross_entropy(logits.flatten(0, 1), ANSWERS.repeat(2), reduction="sum").backward()
    for e in range(2):
        same = one_hot_network(model, e)
        expected = same(one_hot(PAIRS).double())
        F.cross_entropy(expected, ANSWERS, reduction="sum").backward()
        torch.testing.assert_close(logits[e], expected, rtol=1e-10, atol=1e-10)
        first = torch.cat([model.w_a.grad[e], model.w_b.grad[e]]).T
        grads = [first, *([model.b_in.grad[e]] if bias else [])]
        grads += [p.grad[e] for layer in (*model.hidden, model.out) for p in layer.parameters()]
        for got, p in zip(grads, same.parameters(), strict=True):
            torch.testing.assert_close(got, p.grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("activation", ["relu", "square", "gelu", "abs"])
def test_fp32_agrees_with_fp64(activation, each_backend, judge):
    model, exact = build(activation=activation, depth=2), build(activation=activation, depth=2, dtype=torch.float64)
    judge(model(PAIRS).detach()[0], one_hot_network(model)(one_hot(PAIRS).float()).detach(), exact(PAIRS).detach()[0])


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_an_ensemble_trains_each_model_as_if_alone(activation, depth, each_backend):
    seeds, pairs = (5, 0, 9), torch.stack([PAIRS.roll(e, 0) for e in range(3)])

    def trained(seeds, pairs):
        model = build(seeds=seeds, activation=activation, depth=depth, width=65)
        opt = grokfast.GrokFastAdamW(model.parameters(), lr=1e-2)
        for _ in range(3):
            opt.zero_grad()
            loss, _ = grokfast.ops.classify(model(pairs), pairs.sum(-1) % C)
            loss.sum().backward()
            opt.step()
        return [*model.parameters()]

    together = trained(seeds, pairs)
    for e, seed in enumerate(seeds):
        for p, alone in zip(together, trained((seed,), pairs[e : e + 1])):
            assert torch.equal(p[e], alone[0])


def test_pairs_may_be_common_to_all_models(each_backend):
    model = build(seeds=(0, 1))
    assert torch.equal(model(PAIRS), model(PAIRS.expand(2, -1, 2)))
    assert model(PAIRS).shape == (2, len(PAIRS), C)
    assert model(PAIRS[:0]).shape == (2, 0, C)
    assert torch.equal(model(PAIRS, masks=[torch.Generator()] * 2), model(PAIRS))


@pytest.mark.parametrize("init_scale", [1.0, 3.0])
def test_torch_initialisation_is_that_of_linear_layers(init_scale):
    model = PairMLP(PairMLPConfig(width=300, depth=2, init_scale=init_scale), n_tokens=50, n_answers=40)
    for p, fan_in in [
        (model.w_a, 100), (model.w_b, 100), (model.b_in, 100),
        (model.hidden[0].weight, 300), (model.hidden[0].bias, 300), (model.out.weight, 300), (model.out.bias, 300),
    ]:  # fmt: skip
        bound = fan_in**-0.5 * (init_scale if p.ndim == 3 else 1)  # biases are not scaled
        assert 0.9 * bound < p.abs().max() <= bound
        if p.ndim == 3:
            assert p.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
            assert p.mean().item() == pytest.approx(0, abs=0.03 * bound)


def test_gromov_initialisation_is_normal_without_biases():
    width = 400
    config = PairMLPConfig(width=width, depth=2, init="gromov", init_scale=2.0)
    model = PairMLP(config, n_tokens=97, n_answers=97)
    sigma = 2.0 * 0.5 / (2 * width) ** (1 / 3)
    for p in (model.w_a, model.w_b, model.hidden[0].weight, model.out.weight):
        assert p.std().item() == pytest.approx(sigma, rel=0.03)
        assert p.abs().max() > 3 * sigma
        assert p.mean().item() == pytest.approx(0, abs=0.03 * sigma)
    assert not any(bias.any() for bias in (model.b_in, model.hidden[0].bias, model.out.bias))


def test_a_seed_is_a_model():
    first, again, other = build(seeds=(1, 2)), build(seeds=(2, 1, 2)), build(seeds=(3,))
    for p, q, r in zip(first.parameters(), again.parameters(), other.parameters()):
        assert torch.equal(p[1], q[0])
        assert torch.equal(p[0], q[1])
        assert torch.equal(q[0], q[2])
        assert not torch.equal(p[0], r[0])
    assert not torch.equal(first.w_a, first.w_b)


@pytest.mark.parametrize(("depth", "bias"), [(1, True), (3, True), (2, False)])
def test_parameters_are_counted_per_model(depth, bias):
    model, h = build(seeds=(0, 1, 2), depth=depth, bias=bias), 12
    weights, biases = 2 * P * h + (depth - 1) * h * h + h * C, depth * h + C
    assert model.n_parameters == weights + bias * biases
    assert all(p.shape[0] == 3 for p in model.parameters())


def test_its_state_can_be_saved_and_loaded():
    model, other = build(seeds=(1,), depth=2), build(seeds=(2,), depth=2)
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(PAIRS), other(PAIRS))


def test_it_compiles_in_one_graph(each_backend):
    model = build(seeds=(0, 1))

    def loss(pairs):
        return grokfast.ops.classify(model(pairs), ANSWERS.expand(2, -1))[0].sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="eager", fullgraph=True)(PAIRS)
    torch.testing.assert_close(compiled, loss(PAIRS))
    torch.testing.assert_close(torch.autograd.grad(compiled, model.w_a), torch.autograd.grad(loss(PAIRS), model.w_a))


def test_the_configuration_is_a_frozen_value():
    assert PairMLPConfig() == PairMLPConfig(width=256)
    assert len({PairMLPConfig(), PairMLPConfig(depth=2), PairMLPConfig()}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        PairMLPConfig().width = 3


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"width": 0}, ValueError, "width must be at least 1, got 0"),
        ({"width": 2.0}, TypeError, "width must be an integer, got 2.0"),
        ({"depth": 0}, ValueError, "depth must be between 1 and 1000, got 0"),
        ({"activation": "identity"}, ValueError, "activation must be one of 'relu', .* got 'identity'"),
        ({"bias": 1}, TypeError, "bias must be True or False, got 1"),
        (
            {"init": "gromow"},
            ValueError,
            r"init must be one of 'torch', 'gromov', 'normal', got 'gromow' \(did you mean 'gromov'",
        ),
        ({"init_scale": 0}, ValueError, r"init_scale must be in \(0, 1e\+38\], got 0"),
        ({"init_scale": float("nan")}, ValueError, "init_scale must be in"),
    ],
)
def test_bad_configurations_are_named(config, error, message):
    with pytest.raises(error, match=message):
        PairMLPConfig(**config)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"config": {"width": 3}}, TypeError, r"config must be a PairMLPConfig, got .* \(dict\)"),
        ({"n_tokens": 0}, ValueError, "n_tokens must be at least 1, got 0"),
        ({"n_answers": True}, TypeError, "n_answers must be an integer, got True"),
        ({"seeds": ()}, ValueError, "seeds must name at least one model"),
        ({"dtype": torch.int64}, TypeError, "dtype must be a floating-point torch.dtype"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    with pytest.raises(error, match=message):
        PairMLP(**({"config": PairMLPConfig(), "n_tokens": P, "n_answers": C} | change))


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        (PAIRS.float(), ValueError, r"pairs must be \[2, N, 2\] torch.int64, got .* torch.float32"),
        (PAIRS[:, :1], ValueError, r"pairs must be \[2, N, 2\]"),
        (PAIRS[0], ValueError, r"pairs must be \[2, N, 2\]"),
        (PAIRS.expand(3, -1, 2), ValueError, r"pairs must be \[2, N, 2\]"),
        (PAIRS + 1, IndexError, rf"pairs\[..., 0\] must be in \[0, {P}\), got {P}"),
    ],
)
def test_bad_tokens_are_refused(tokens, error, message, each_backend):
    with pytest.raises(error, match=message):
        build(seeds=(0, 1))(tokens)
