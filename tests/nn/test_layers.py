"""nn.MLP and nn.Attention against the torch layers whose places they take."""

import copy

import pytest
import torch
from torch import nn

from grokfast.nn import MLP, Attention
from grokfast.ops.mlp.reference import ACTIVATIONS


def causal_mask(length):
    return torch.ones(length, length, dtype=torch.bool).triu(1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp_is_its_stack_of_layers(activation, bias):
    layer = MLP(12, 20, activation, bias)
    x = torch.randn(2, 5, 12)
    torch.testing.assert_close(layer(x), layer.to_linear()(x))
    layer.residual = True
    torch.testing.assert_close(layer(x), x + layer.to_linear()(x))


def test_mlp_from_a_stack_and_back_shares_parameters():
    for act in (nn.ReLU(), nn.GELU()):
        stack = nn.Sequential(nn.Linear(12, 20), act, nn.Linear(20, 7))
        layer = MLP.from_linear(stack)
        x = torch.randn(5, 12)
        torch.testing.assert_close(layer(x), stack(x))
        assert [*map(id, layer.parameters())] == [*map(id, stack.parameters())]
        assert [*map(id, layer.to_linear().parameters())] == [*map(id, stack.parameters())]
        again = MLP.from_linear(layer.to_linear())
        assert again.activation == layer.activation
    assert MLP.from_linear(MLP(4, 8, "square").to_linear()).activation == "square"


def test_mlp_has_torchs_names():
    theirs = nn.TransformerEncoderLayer(12, 2, 20).state_dict()
    ours = MLP(12, 20).state_dict()
    assert all(theirs[name].shape == value.shape for name, value in ours.items())
    torch.manual_seed(0)
    layer = MLP(12, 20)
    torch.manual_seed(0)
    assert torch.equal(nn.Linear(12, 20).weight, layer.linear1.weight)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_torchs(causal, bias):
    layer = Attention(12, 3, causal, bias)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(4, 5, 12)
    torchs = layer.to_multihead()
    expected, _ = torchs(x, x, x, attn_mask=causal_mask(5) if causal else None, need_weights=False)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer(x.view(2, 2, 5, 12)).view(4, 5, 12), expected)
    torch.testing.assert_close(layer(x[0]), expected[0])
    assert [*map(id, torchs.parameters())] == [*map(id, layer.parameters())]


@pytest.mark.parametrize("bias", [True, False])
def test_attention_from_torchs_and_state_dicts_both_ways(bias):
    theirs = nn.MultiheadAttention(12, 3, bias=bias)
    ours = Attention.from_multihead(theirs, causal=False)
    assert [*map(id, theirs.parameters())] == [*map(id, ours.parameters())]
    x = torch.randn(5, 4, 12)  # sequence first
    torch.testing.assert_close(ours(x.transpose(0, 1)).transpose(0, 1), theirs(x, x, x)[0])
    other = Attention(12, 3, bias=bias)
    other.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(other.state_dict())
    torch.manual_seed(0)
    fresh = nn.MultiheadAttention(12, 3, bias=bias)
    torch.manual_seed(0)
    assert torch.equal(fresh.in_proj_weight, Attention(12, 3, bias=bias).in_proj_weight)


@pytest.mark.parametrize("make", [lambda **o: MLP(12, 20, "gelu", **o), lambda **o: Attention(12, 3, **o)])
def test_kernels_train_the_layer_as_plain_pytorch_does(make, judge):
    pytest.importorskip("triton")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layer = make(backend="reference").to(device)
    x = torch.randn(4, 5, 12).to(device)
    grads = {}
    for name, dtype in (("triton", torch.float32), ("reference", torch.float32), ("exact", torch.float64)):
        one = copy.deepcopy(layer).to(dtype)
        one.backend = "reference" if name == "exact" else name
        one(x.to(dtype)).square().sum().backward()
        grads[name] = [p.grad for p in one.parameters()]
    for got, by_torch, exact in zip(*grads.values()):
        judge(got, by_torch, exact, factor=3)


@pytest.mark.parametrize("make", [lambda: MLP(12, 20), lambda: Attention(12, 3)])
def test_layers_compile_and_copy(make):
    torch.compiler.reset()
    layer, x = make(), torch.randn(4, 5, 12)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


MANY = [
    lambda **o: MLP(12, 20, "gelu", **o),
    lambda **o: MLP(12, 20, bias=False, residual=True, **o),
    lambda **o: Attention(12, 3, **o),
    lambda **o: Attention(12, 3, False, False, **o),
]


@pytest.mark.parametrize("make", MANY)
def test_many_models_are_as_if_alone(make):
    torch.manual_seed(0)
    alone = [make() for _ in range(3)]
    torch.manual_seed(0)
    together = make(n_models=3)
    x = torch.randn(3, 4, 5, 12)
    out = together(x)
    out.square().sum().backward()
    for e, layer in enumerate(alone):
        y = layer(x[e])
        torch.testing.assert_close(out[e], y)
        y.square().sum().backward()
        for (name, one), many in zip(layer.named_parameters(), together.parameters()):
            assert many.shape == (3, *one.shape), name
            assert torch.equal(many[e], one)
            torch.testing.assert_close(many.grad[e], one.grad)
    assert [*together.state_dict()] == [*alone[0].state_dict()]
    assert "n_models=3" in repr(together)
    torch.testing.assert_close(copy.deepcopy(together)(x), out)


@pytest.mark.parametrize("make", MANY)
def test_stacked_and_unstacked_layers_are_the_same(make):
    layers = [make().eval() for _ in range(2)]
    next(layers[0].parameters()).requires_grad_(False)
    next(layers[1].parameters()).requires_grad_(False)
    stacked = type(layers[0]).stack(layers)
    assert not stacked.training
    assert [p.requires_grad for p in stacked.parameters()] == [p.requires_grad for p in layers[0].parameters()]
    for layer, again in zip(layers, stacked.unstack()):
        assert again.extra_repr() == layer.extra_repr()
        assert again.n_models is None
        pairs = zip(layer.state_dict().items(), again.state_dict().items())
        assert all(a == b and torch.equal(s, t) and s is not t for (a, s), (b, t) in pairs)
    other = type(layers[0]).stack(make() for _ in range(2))
    other.load_state_dict(stacked.state_dict())
    x = torch.randn(2, 5, 12)
    assert torch.equal(other(x), stacked(x))


@pytest.mark.parametrize("make", MANY)
def test_kernels_train_many_models(make):
    pytest.importorskip("triton")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layer, x = make(n_models=2).to(device), torch.randn(2, 4, 5, 12).to(device)
    grads = []
    for name in ("triton", "reference"):
        layer.backend = name
        grads.append(torch.autograd.grad(layer(x).square().sum(), list(layer.parameters())))
    for got, expected in zip(*grads):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: MLP(3, 4, n_models=0), ValueError, "n_models must be at least 1, got 0"),
        (lambda: Attention(12, 3, n_models=1.5), TypeError, "n_models must be an integer, got 1.5"),
        (lambda: MLP.stack([]), ValueError, "layers must name at least one"),
        (lambda: MLP.stack([MLP(3, 4), nn.Linear(3, 4)]), TypeError, r"layers\[1\] must be a MLP, got Linear"),
        (lambda: MLP.stack([MLP(3, 4), MLP(3, 5)]), ValueError, r"layers\[1\] must have the settings and shapes of"),
        (lambda: MLP.stack([MLP(3, 4), MLP(3, 4, "gelu")]), ValueError, r"layers\[1\] must have the settings"),
        (
            lambda: MLP.stack([MLP(3, 4, n_models=2)]),
            ValueError,
            r"layers\[0\] must be of one model, got .* n_models=2",
        ),
        (lambda: MLP(3, 4).unstack(), ValueError, "unstack needs a layer with n_models"),
        (lambda: MLP(3, 4, n_models=2).to_linear(), ValueError, r"has n_models=2: unstack\(\) first"),
        (lambda: Attention(12, 3, n_models=2).to_multihead(), ValueError, r"has n_models=2: unstack\(\) first"),
        (lambda: MLP(3, 4, n_models=2)(torch.zeros(5, 3)), ValueError, r"x must be \[2, \.\.\., 3\]"),
        (
            lambda: Attention(12, 3, n_models=2)(torch.zeros(3, 5, 12)),
            ValueError,
            r"x must be \[2, ..., T, 12\], got \(3, 5, 12\)",
        ),
        (lambda: MLP(0, 3), ValueError, "d_model must be at least 1, got 0"),
        (lambda: MLP(3, 4.0), TypeError, "d_hidden must be an integer, got 4.0"),
        (lambda: MLP(3, 4, "reul"), ValueError, r"activation must be one of .* \(did you mean 'relu'\?\)"),
        (lambda: MLP(3, 4, precision="fp8"), ValueError, "precision must be one of"),
        (lambda: MLP.from_linear(nn.Linear(3, 4)), TypeError, "stack must be an nn.Sequential, got Linear"),
        (lambda: MLP.from_linear(nn.Sequential(nn.Linear(3, 4))), ValueError, "stack must be nn.Linear, nn.ReLU or"),
        (
            lambda: MLP.from_linear(nn.Sequential(nn.Linear(3, 4), nn.GELU("tanh"), nn.Linear(4, 3))),
            ValueError,
            r"nn\.GELU \(with erf\)",
        ),
        (
            lambda: MLP.from_linear(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(5, 3))),
            ValueError,
            "stack must be layers that fit one another",
        ),
        (lambda: Attention(12, 5), ValueError, "d_model must be a multiple of n_heads, got 12 and 5"),
        (lambda: Attention(12, 3, causal=1), TypeError, "causal must be True or False, got 1"),
        (lambda: Attention(12, 3)(torch.zeros(2, 5, 8)), ValueError, r"x must be \[..., T, 12\], got \(2, 5, 8\)"),
        (lambda: Attention.from_multihead(nn.Linear(3, 3)), TypeError, "layer must be an nn.MultiheadAttention"),
        (
            lambda: Attention.from_multihead(nn.MultiheadAttention(12, 3, dropout=0.1)),
            ValueError,
            "layer must have no dropout",
        ),
    ],
)
def test_bad_input_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
