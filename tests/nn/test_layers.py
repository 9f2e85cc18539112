"""nn.MLP and nn.Attention against the torch layers whose places they take."""

import copy
import math

import pytest
import torch
from torch import nn

from grokfast.nn import MLP, Attention
from grokfast.ops import dispatch
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


class Conv1D(nn.Module):
    """The linear layer of transformers' GPT-2: its weight is [in, out]."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.randn(nf))

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.nf)


class NewGELUActivation(nn.Module):
    def forward(self, x):
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


def gpt2s(d, h, dropout=0.0):
    """MLP of GPT-2's layers, and these."""
    stack = nn.Sequential(Conv1D(h, d), NewGELUActivation(), Conv1D(d, h), nn.Dropout(dropout))
    return MLP.from_linear(stack), stack


def outputs(layer, x, train, call=None):
    """What comes out, and the gradients of x and the parameters, with the same random numbers every time."""
    layer.train(train)
    layer.zero_grad()
    torch.manual_seed(3)
    x = x.clone().requires_grad_()
    out = layer(x) if call is None else call(x)
    out.square().sum().backward()
    return [out.detach(), x.grad, *(p.grad for p in layer.parameters())]


@pytest.fixture(params=[0, 1 << 25])
def rule(request, monkeypatch):
    """By torch's own layers, and by ops.mlp."""
    monkeypatch.setitem(dispatch.TORCHS_OWN, "mlp", request.param)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("act", [nn.ReLU, nn.GELU, lambda: nn.GELU("tanh"), nn.SiLU])
def test_mlp_with_dropout_draws_as_torch_does(act, residual, train, rule):
    stack = nn.Sequential(nn.Linear(12, 20), act(), nn.Linear(20, 12), nn.Dropout(0.4))
    layer, x = MLP.from_linear(stack, residual=residual), torch.randn(3, 5, 12)
    expected = outputs(stack, x, train, lambda x: x + stack(x) if residual else stack(x))
    for got, theirs in zip(outputs(layer, x, train), expected):
        torch.testing.assert_close(got, theirs)
    again = MLP.from_linear(layer.to_linear())
    assert (again.dropout, again.training, again.activation) == (0.4, train, layer.activation)
    assert MLP.from_linear(stack.eval()).training is False
    assert "dropout=0.4" in repr(layer)


@pytest.mark.parametrize("train", [True, False])
def test_mlp_of_gpt2s_layers_keeps_their_layout(train, rule):
    layer, stack = gpt2s(12, 20, 0.3)
    assert [*map(id, layer.parameters())] == [*map(id, stack.parameters())]
    assert layer.linear1.weight.shape == (12, 20)
    x = torch.randn(3, 5, 12)
    for got, theirs in zip(outputs(layer, x, train), outputs(stack, x, train)):
        torch.testing.assert_close(got, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())
    torch.testing.assert_close(MLP.from_linear(layer.to_linear()).eval()(x), stack.eval()(x))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("mask", ["none", "causal", "both", "mask", "of heads", "blind"])
def test_attention_with_dropout_and_masks_is_torchs(mask, train, batch_first):
    theirs = nn.MultiheadAttention(12, 3, dropout=0.3, batch_first=batch_first)
    ours = Attention.from_multihead(theirs, causal=mask in ("causal", "both"))
    assert (ours.dropout, ours.batch_first) == (0.3, batch_first)
    x = torch.randn(4, 5, 12) if batch_first else torch.randn(5, 4, 12)
    hidden = torch.rand(4, 3, 5, 5) < 0.3
    hidden[..., 0] = False
    if mask == "blind":
        hidden = torch.zeros(5, 5, dtype=torch.bool)
        hidden[2] = True
    elif mask != "of heads":
        hidden = hidden[0, 0]
    given = None if mask in ("none", "causal") else hidden
    theirs_mask = causal_mask(5) if mask == "causal" else hidden | causal_mask(5) if mask == "both" else given
    if mask == "of heads":
        theirs_mask = theirs_mask.flatten(0, 1)
    call = lambda x: theirs(x, x, x, attn_mask=theirs_mask, need_weights=False)[0]  # noqa: E731
    expected, found = outputs(theirs, x, train, call), outputs(ours, x, train, lambda x: ours(x, given))
    for got, right in zip(found, expected):
        assert got.isfinite().all()
        torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-6)
    plain = Attention.from_multihead(theirs, causal=ours.causal, backend="reference")
    for got, right in zip(outputs(plain, x, train, lambda x: plain(x, given)), expected):
        torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-6)


def test_attention_is_seq_first_where_torchs_is():
    theirs = nn.MultiheadAttention(12, 3).eval()
    ours = Attention.from_multihead(theirs, causal=False)
    assert not ours.training
    for x in (torch.randn(5, 4, 12), torch.randn(5, 12)):  # 5 positions
        torch.testing.assert_close(ours(x), theirs(x, x, x, need_weights=False)[0])
    assert ours.to_multihead().batch_first is False
    assert "batch_first=False" in repr(ours)
    many = Attention.stack([ours, ours])
    torch.testing.assert_close(many(x.expand(2, 4, 5, 12).transpose(1, 2))[0], ours(x.expand(4, 5, 12).transpose(0, 1)))


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
    x = torch.randn(5, 4, 12)  # sequence first, as theirs is
    torch.testing.assert_close(ours(x), theirs(x, x, x)[0])
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
        (
            lambda: MLP.from_linear(nn.Sequential(nn.Linear(3, 4))),
            ValueError,
            "stack must be nn.Linear, nn.ReLU, nn.GELU",
        ),
        (
            lambda: MLP.from_linear(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))),
            ValueError,
            r"stack must be .* got Linear\(.*\), Tanh\(\), Linear",
        ),
        (
            lambda: MLP.from_linear(nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.ReLU(), nn.Linear(4, 3))),
            ValueError,
            "and nn.Dropout or nothing, got",
        ),
        (lambda: MLP(3, 4, dropout=1.5), ValueError, r"dropout must be in \[0, 1\], got 1.5"),
        (lambda: MLP(3, 4)([1.0]), TypeError, "x must be a tensor, got"),
        (lambda: MLP(3, 4)(torch.zeros(2, 4)), ValueError, r"w_in must be \[h, 4\], got \(4, 3\)"),
        (lambda: Attention(12, 3, dropout=1), ValueError, r"dropout must be in \[0, 1\), got 1"),
        (lambda: Attention(12, 3, batch_first=1), TypeError, "batch_first must be True or False, got 1"),
        (
            lambda: Attention(12, 3)(torch.zeros(2, 5, 12), torch.zeros(5, 5)),
            TypeError,
            "attn_mask must be a bool tensor, got torch.float32",
        ),
        (
            lambda: Attention(12, 3)(torch.zeros(2, 5, 12), torch.zeros(5, 4, dtype=torch.bool)),
            ValueError,
            r"attn_mask must be \(2, 3, 5, 5\), or broadcast to it, got \(5, 4\)",
        ),
        (lambda: MLP.stack([gpt2s(3, 4)[0]]), ValueError, r"layers\[0\] must keep its parameters in nn.Linear"),
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
            lambda: Attention.from_multihead(nn.MultiheadAttention(12, 3, kdim=5)),
            ValueError,
            "layer must have no kdim",
        ),
    ],
)
def test_bad_input_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
