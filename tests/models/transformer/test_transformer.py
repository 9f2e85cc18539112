import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from grokfast.models.transformer import model as transformer
from grokfast.models.transformer.model import GrokTransformer, TransformerConfig, sinusoids
from grokfast.seeds import generator

SMALL = TransformerConfig(n_layers=2, d_model=12, n_heads=3, d_mlp=20)
LEE = TransformerConfig(
    n_layers=2, activation="gelu", norm="replace", n_positions=5, attention_bias=True, outputs="tokens", init="torch"
)


class Oracle(nn.Module):
    """The same decoder out of torch.nn's own modules, one model, fp64."""

    def __init__(self, config, n_tokens, n_outputs, n_positions):
        super().__init__()
        c, d = config, config.d_model
        self.config = config
        self.embedding = nn.Embedding(n_tokens, d)
        self.positions = nn.Embedding(n_positions, d)
        self.attention = nn.ModuleList(
            nn.MultiheadAttention(d, c.n_heads, bias=c.attention_bias, batch_first=True) for _ in range(c.n_layers)
        )
        self.w_in = nn.ModuleList(nn.Linear(d, c.d_mlp, bias=c.mlp_bias) for _ in range(c.n_layers))
        self.w_out = nn.ModuleList(nn.Linear(c.d_mlp, d, bias=c.mlp_bias) for _ in range(c.n_layers))
        self.ln1 = nn.ModuleList(nn.LayerNorm(d) for _ in range(c.n_layers))
        self.ln2 = nn.ModuleList(nn.LayerNorm(d) for _ in range(c.n_layers))
        self.final = nn.LayerNorm(d)
        self.head = nn.Linear(d, n_outputs, bias=False)
        self.double()

    def forward(self, tokens):
        c, seq_len = self.config, tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(seq_len, dtype=torch.float64) if c.causal else None
        x = self.embedding(tokens) + self.positions(torch.arange(seq_len))
        for attention, w_in, w_out, ln1, ln2 in zip(self.attention, self.w_in, self.w_out, self.ln1, self.ln2):

            def attend(x, attention=attention):
                return attention(x, x, x, attn_mask=mask)[0]

            def think(x, w_in=w_in, w_out=w_out):
                return w_out(torch.relu(w_in(x)) if c.activation == "relu" else nn.GELU()(w_in(x)))

            skip = 1 if c.residual else 0
            if c.norm == "none":
                x = skip * x + attend(x)
                x = skip * x + think(x)
            elif c.norm == "pre":
                x = skip * x + attend(ln1(x))
                x = skip * x + think(ln2(x))
            elif c.norm == "post":
                x = ln1(skip * x + attend(x))
                x = ln2(skip * x + think(x))
            else:
                x = ln1(x)
                x = skip * x + attend(x)
                x = skip * x + think(ln2(x))
        if c.norm in ("pre", "replace"):
            x = self.final(x)
        weight = self.embedding.weight[: self.head.out_features] if c.tied else self.head.weight
        return x[:, -1] @ weight.T

    def named_as(self, name):
        """The oracle's parameter for a parameter of GrokTransformer."""
        whole = {
            "embedding": "embedding.weight",
            "positions": "positions.weight",
            "unembedding": "head.weight",
            "final_norm.weight": "final.weight",
            "final_norm.bias": "final.bias",
        }
        if name in whole:
            return self.get_parameter(whole[name])
        _, i, part = name.split(".", 2)
        return self.get_parameter(
            {
                "w_qkv": f"attention.{i}.in_proj_weight",
                "b_qkv": f"attention.{i}.in_proj_bias",
                "w_o": f"attention.{i}.out_proj.weight",
                "b_o": f"attention.{i}.out_proj.bias",
                "w_in": f"w_in.{i}.weight",
                "b_in": f"w_in.{i}.bias",
                "w_out": f"w_out.{i}.weight",
                "b_out": f"w_out.{i}.bias",
                "ln1.weight": f"ln1.{i}.weight",
                "ln1.bias": f"ln1.{i}.bias",
                "ln2.weight": f"ln2.{i}.weight",
                "ln2.bias": f"ln2.{i}.bias",
            }[part]
        )


def build(config, seq_len=4, seeds=(0,), dtype=torch.float32, n_tokens=9, n_answers=7):
    return GrokTransformer(config, n_tokens=n_tokens, n_answers=n_answers, seq_len=seq_len, seeds=seeds, dtype=dtype)


def some_tokens(*shape, below=9):
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(1))


def gradients(model, tokens, generators=None):
    """Logits, and the gradient of every parameter under a cross entropy summed over models."""
    logits = model(tokens, generators)
    targets = torch.arange(logits.shape[1]) % logits.shape[2]
    loss = torch.stack([F.cross_entropy(of_model, targets) for of_model in logits.unbind()]).sum()
    return logits, dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, list(model.parameters()))))


VARIANTS = [
    *[
        {"norm": norm, "residual": residual}
        for norm in ("none", "pre", "post", "replace")
        for residual in (True, False)
    ],
    *[{"norm": norm, "causal": False} for norm in ("none", "replace")],
    {"positions": "sinusoidal", "norm": "post", "mlp_bias": False},
    {"positions": "sinusoidal", "attention_bias": True, "activation": "gelu", "n_positions": 6},
    {"tied": True, "norm": "pre"},
    {"tied": True, "outputs": "tokens", "attention_bias": True},
    {"outputs": "tokens", "n_positions": 5, "norm": "replace", "activation": "gelu", "attention_bias": True},
    {"n_layers": 1, "n_heads": 1, "d_model": 5, "d_mlp": 3, "norm": "pre"},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("seq_len", [1, 4])
def test_matches_a_model_of_torch_modules(variant, seq_len):
    model = build(replace(SMALL, **variant), seq_len, seeds=(0, 1), dtype=torch.float64)
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():  # biases and LayerNorms must matter
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=g, dtype=torch.float64)
    tokens = some_tokens(2, 6, seq_len)
    logits = model(tokens)
    slope = torch.randn(logits.shape, generator=g, dtype=torch.float64)
    (logits * slope).sum().backward()

    for e in range(2):
        oracle = Oracle(model.config, 9, model.n_outputs, model.positions.shape[1])
        with torch.no_grad():
            oracle.positions.weight.copy_(model.positions[0])  # sinusoids: shared by the models
            for name, parameter in model.named_parameters():
                oracle.named_as(name).copy_(parameter[e])
        expected = oracle(tokens[e])
        (expected * slope[e]).sum().backward()
        torch.testing.assert_close(logits[e], expected, rtol=1e-10, atol=1e-10)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad[e], oracle.named_as(name).grad, rtol=1e-10, atol=1e-10, msg=name)


def test_sinusoids_are_those_of_vaswani():
    table = sinusoids(5, 6, torch.float64)[0]
    for t in range(5):
        for i in range(3):
            angle = t / 10000 ** (2 * i / 6)
            assert table[t, 2 * i : 2 * i + 2].tolist() == pytest.approx([math.sin(angle), math.cos(angle)], abs=1e-15)


@pytest.mark.parametrize(
    ("config", "sizes", "n_parameters"),
    [
        (TransformerConfig(), {"n_tokens": 114, "n_answers": 113, "seq_len": 3}, 226_688),  # Nanda et al.
        (LEE, {"n_tokens": 99, "n_answers": 97, "seq_len": 4}, 422_784),  # Lee et al.
        (TransformerConfig(tied=True), {"n_tokens": 114, "n_answers": 113, "seq_len": 3}, 226_688 - 113 * 128),
        (
            TransformerConfig(positions="sinusoidal"),
            {"n_tokens": 114, "n_answers": 113, "seq_len": 3},
            226_688 - 3 * 128,
        ),
    ],
)
def test_parameter_counts(config, sizes, n_parameters):
    assert GrokTransformer(config, **sizes, seeds=(0, 1)).n_parameters == n_parameters


def test_nanda_initialisation():
    model = build(TransformerConfig(norm="pre", attention_bias=True), seq_len=40, n_tokens=500, n_answers=300)
    for name, p in model.named_parameters():
        if "bias" in name or ".b_" in name:
            assert (p == 0).all()
        elif "norm" in name or "ln" in name:
            assert (p == 1).all()
        else:
            std = 500**-0.5 if name == "unembedding" else 128**-0.5
            assert p.std().item() == pytest.approx(std, rel=0.03), name
            assert p.mean().item() == pytest.approx(0, abs=0.1 * std), name


def test_torch_initialisation_has_the_defaults_of_torch():
    config = replace(LEE, d_mlp=300)
    model, torchs = build(config, seq_len=5, n_tokens=400), Oracle(config, 400, 400, 5)
    for name, p in model.named_parameters():
        theirs = torchs.named_as(name).detach()
        if name in ("embedding", "positions"):
            assert p.std().item() == pytest.approx(1, rel=0.08)
        else:
            for statistic in (torch.std, lambda x: x.abs().max()):
                assert statistic(p).item() == pytest.approx(statistic(theirs).item(), rel=0.15, abs=1e-12), name


@pytest.mark.parametrize("init", ["nanda", "torch"])
def test_init_scale_multiplies_matrices_only(init):
    config = replace(SMALL, init=init, norm="pre", attention_bias=True)
    one, three = build(config), build(replace(config, init_scale=3.0))
    for (name, p), q in zip(one.named_parameters(), three.parameters()):
        factor = 1 if any(part in name for part in ("b_", "bias", "ln", "norm")) else 3
        torch.testing.assert_close(q, factor * p, msg=name)


def test_initialisation_is_that_of_the_seed_whatever_the_dtype():
    single, double = build(SMALL), build(SMALL, dtype=torch.float64)
    for p, q in zip(single.parameters(), double.parameters()):
        assert torch.equal(p.double(), q)
    assert not torch.equal(build(SMALL, seeds=(1,)).embedding, single.embedding)


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("norm", ["none", "pre", "post", "replace"])
@pytest.mark.parametrize("sizes", [(12, 3, 20, 65), (128, 4, 512, 130), (36, 3, 50, 1)])
def test_an_ensemble_has_each_models_bits(sizes, norm, rate):
    d_model, n_heads, d_mlp, n_rows = sizes
    config = TransformerConfig(
        n_layers=2, d_model=d_model, n_heads=n_heads, d_mlp=d_mlp, norm=norm, dropout=rate, attention_bias=True
    )
    seeds, tokens = (3, 4, 8), some_tokens(3, n_rows, 4)
    logits, together = gradients(build(config, seeds=seeds), tokens, [generator(seed, "dropout") for seed in seeds])
    for e, seed in enumerate(seeds):
        logits_alone, alone = gradients(build(config, seeds=(seed,)), tokens[e], [generator(seed, "dropout")])
        assert torch.equal(logits_alone[0], logits[e])
        for name, gradient in alone.items():
            assert torch.equal(gradient[0], together[name][e]), name


def test_parameters_may_be_views_of_one_flat_buffer():
    model, tokens = build(replace(SMALL, norm="pre"), seeds=(0, 1)), some_tokens(5, 4)
    names, parameters = zip(*model.named_parameters())
    flat = torch.cat([p.detach().flatten(1) for p in parameters], dim=1)  # [E, P]
    views = [v.view_as(p) for v, p in zip(flat.split([p[0].numel() for p in parameters], dim=1), parameters)]
    assert not views[2].is_contiguous()
    assert torch.equal(torch.func.functional_call(model, dict(zip(names, views)), tokens), model(tokens))


def test_shared_tokens_are_each_models_tokens():
    model, tokens = build(SMALL, seeds=(0, 1, 2)), some_tokens(5, 4)
    logits, shared = gradients(model, tokens)
    logits_each, each = gradients(model, tokens.expand(3, 5, 4).contiguous())
    assert logits.shape == (3, 5, 7)
    assert torch.equal(logits, logits_each)
    assert all(torch.equal(shared[name], each[name]) for name in shared)


def test_dropout_follows_its_generators_and_stops_in_eval():
    model, tokens = build(replace(SMALL, dropout=0.4), seeds=(0, 1)), some_tokens(5, 4)

    def masked_by(*seeds):
        return model(tokens, [torch.Generator().manual_seed(seed) for seed in seeds])

    assert torch.equal(masked_by(1, 2), masked_by(1, 2))
    assert torch.equal(masked_by(1, 2)[0], masked_by(1, 3)[0])
    assert not torch.equal(masked_by(1, 2)[1], masked_by(1, 3)[1])
    assert not torch.equal(model(tokens), model(tokens))
    torch.manual_seed(0)
    first = model(tokens)
    torch.manual_seed(0)
    assert torch.equal(model(tokens), first)

    plain = build(SMALL, seeds=(0, 1))
    assert torch.equal(model.eval()(tokens), plain(tokens))
    assert torch.equal(masked_by(1, 2), plain(tokens))


def test_dropout_acts_where_it_is_said_to(monkeypatch):
    model, shapes = build(replace(SMALL, dropout=0.4), seeds=(0, 1)), []

    def recorded(x, p, training, generators):
        assert (p, training) == (0.4, True)
        shapes.append(tuple(x.shape))
        return x

    monkeypatch.setattr(transformer, "dropout", recorded)
    model(some_tokens(5, 4))
    stream, attention = (2, 5, 4, 12), (2, 5, 3, 4, 4)
    assert shapes == [stream] + 2 * [attention, stream, stream]


@pytest.mark.parametrize("norm", ["none", "replace"])
def test_causal_positions_do_not_see_later_tokens(norm):
    tokens = some_tokens(5, 4)
    later = tokens.clone()
    later[:, 2:] = (later[:, 2:] + 1) % 9
    for causal in (True, False):
        model = build(replace(SMALL, norm=norm, causal=causal), dtype=torch.float64)
        early, early_of_later = model.hidden(tokens)[:, :, :2], model.hidden(later)[:, :, :2]
        assert torch.equal(early, early_of_later) == causal
    model = build(replace(SMALL, norm=norm), dtype=torch.float64)
    torch.testing.assert_close(model.hidden(tokens[:, :2]), model.hidden(tokens)[:, :, :2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm", ["none", "pre", "post", "replace"])
def test_gradcheck(norm):
    config = TransformerConfig(
        d_model=4, n_heads=2, d_mlp=3, norm=norm, activation="gelu", attention_bias=True, init="torch"
    )
    model, tokens = (
        build(config, seq_len=3, seeds=(0, 1), dtype=torch.float64, n_tokens=4, n_answers=2),
        some_tokens(2, 3, below=4),
    )
    names, parameters = zip(*model.named_parameters())

    def logits(*parameters):
        return torch.func.functional_call(model, dict(zip(names, parameters)), tokens)

    assert torch.autograd.gradcheck(logits, parameters)


def test_state_dict_restores_the_model():
    model, other = (build(replace(SMALL, norm="pre", positions="sinusoidal"), seeds=(seed,)) for seed in (0, 1))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(some_tokens(5, 4)), other(some_tokens(5, 4)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n_layers": 0}, ValueError, "n_layers must be between 1 and 1000"),
        ({"d_model": 128.0}, TypeError, "d_model must be an integer"),
        ({"d_model": 126}, ValueError, "d_model must be a multiple of n_heads=4, got 126"),
        ({"d_model": 7, "n_heads": 7, "positions": "sinusoidal"}, ValueError, "d_model must be even"),
        ({"d_mlp": -1}, ValueError, "d_mlp"),
        ({"activation": "rely"}, ValueError, "activation.*did you mean 'relu'"),
        ({"norm": None}, ValueError, "norm must be one of 'none', 'pre', 'post', 'replace', got None"),
        ({"positions": "rotary"}, ValueError, "positions"),
        ({"n_positions": 0}, ValueError, "n_positions"),
        ({"tied": 1}, TypeError, "tied must be True or False"),
        ({"dropout": 1.0}, ValueError, "dropout"),
        ({"dropout": -0.1}, ValueError, "dropout"),
        ({"outputs": "all"}, ValueError, "outputs"),
        ({"init": "kaiming"}, ValueError, "init"),
        ({"init_scale": 0}, ValueError, "init_scale"),
        ({"init_scale": float("inf")}, ValueError, "init_scale"),
    ],
)
def test_bad_configs_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        TransformerConfig(**arguments)


@pytest.mark.parametrize(
    ("config", "arguments", "error", "message"),
    [
        ({"n_layers": 2}, {}, TypeError, "config must be a TransformerConfig"),
        (SMALL, {"n_tokens": 0}, ValueError, "n_tokens must be at least 1"),
        (SMALL, {"n_answers": 1.5}, TypeError, "n_answers must be an integer"),
        (SMALL, {"seq_len": 0}, ValueError, "seq_len must be at least 1"),
        (replace(SMALL, n_positions=3), {}, ValueError, "n_positions must be at least seq_len=4, got 3"),
        (replace(SMALL, tied=True), {"n_answers": 10}, ValueError, "n_answers must be at most n_tokens=9 where tied"),
        (SMALL, {"dtype": torch.int64}, TypeError, "dtype must be a floating-point"),
        (SMALL, {"seeds": []}, ValueError, "seeds must name at least one model"),
    ],
)
def test_bad_construction_is_refused(config, arguments, error, message):
    with pytest.raises(error, match=message):
        build(config, **arguments)


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        (torch.zeros(5, 4), TypeError, "tokens must be an int64 tensor, got torch.float32"),
        (torch.zeros(5, 4, dtype=torch.int32), TypeError, "tokens must be an int64 tensor, got torch.int32"),
        ([[0, 1]], TypeError, "tokens must be an int64 tensor, got list"),
        (torch.zeros(4, dtype=torch.int64), ValueError, r"tokens must be \[N, T\].*got \[4\]"),
        (torch.zeros(5, 5, dtype=torch.int64), ValueError, "T from 1 to 4"),
        (torch.zeros(5, 0, dtype=torch.int64), ValueError, "T from 1 to 4"),
        (torch.zeros(3, 5, 4, dtype=torch.int64), ValueError, r"with E=2.*got \[3, 5, 4\]"),
        (torch.zeros(1, 5, 4, dtype=torch.int64), ValueError, "with E=2"),
        (torch.full((5, 4), 9), IndexError, "index out of range"),
    ],
)
def test_bad_tokens_are_refused(tokens, error, message):
    with pytest.raises(error, match=message):
        build(SMALL, seeds=(0, 1))(tokens)


def test_generators_are_one_per_model():
    with pytest.raises(ValueError, match="masks must be one per model, 2, got 1"):
        build(SMALL, seeds=(0, 1))(some_tokens(5, 4), [torch.Generator()])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_attention_rate_mixes_in_attention_that_is_alike(rate, causal):
    config = TransformerConfig(d_model=12, n_heads=3, d_mlp=8, attention_rate=rate, causal=causal)
    model = GrokTransformer(config, n_tokens=5, n_answers=5, seq_len=4, dtype=torch.float64)
    block, x = model.blocks[0], torch.randn(1, 6, 4, 12, dtype=torch.float64)
    q, k, v = (x[0] @ block.w_qkv[0].T).view(6, 4, 3, 3, 4).permute(2, 0, 3, 1, 4)  # [N, H, T, d_head]
    allowed = torch.ones(4, 4).tril() if causal else torch.ones(4, 4)
    scores = (q @ k.mT / 2).masked_fill(allowed == 0, -torch.inf)
    heads = (rate * scores.softmax(-1) + (1 - rate) * allowed) @ v
    expected = heads.transpose(1, 2).flatten(2) @ block.w_o[0].T
    torch.testing.assert_close(block.attention(x, None)[0], expected)


def test_attention_rate_is_a_share():
    with pytest.raises(ValueError, match=r"attention_rate must be in \[0, 1\], got 1.5"):
        TransformerConfig(attention_rate=1.5)
