"""A decoder's weights under HookedTransformer's names: its own forward pass, and one written out, give our logits."""

import math

import pytest
import torch
import torch.nn.functional as F

from grokfast import Experiment, train

SIZES = {
    "task.p": 11, "model.d_model": 8, "model.n_heads": 2, "model.d_mlp": 12, "schedule.steps": 3,
    "schedule.eval_every": 1, "device": "cpu",
}  # fmt: skip
NANDA, GROKFAST, POWER = (Experiment.preset(name).override(SIZES) for name in ("nanda", "grokfast", "power"))
LENSED = {
    "none": NANDA,
    "pre, biases, longer": NANDA.override({
        "model.norm": "pre", "model.n_layers": 2, "model.attention_bias": True, "model.activation": "gelu",
        "model.n_positions": 5, "model.init": "torch",
    }),
    "tied, no mask, sinusoids": NANDA.override({
        "model.tied": True, "model.causal": False, "model.positions": "sinusoidal", "model.mlp_bias": False,
    }),
}  # fmt: skip
RUNS = LENSED | {
    "replace": GROKFAST, "post": POWER, "attention alike": NANDA.override({"model.attention_rate": 0.25}),
    "every position": Experiment.preset("sort").override({k: v for k, v in SIZES.items() if k != "task.p"}),
}  # fmt: skip


def logits(config, w, tokens, n_answered):
    """The decoder that TransformerConfig describes, from HookedTransformer's names alone."""
    act = F.relu if config.activation == "relu" else F.gelu

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.w"], w[f"{name}.b"]) if f"{name}.w" in w else x

    def attention(x, at):
        q, k, v = (
            torch.einsum("btd,hde->bhte", x, w[f"{at}.W_{n}"]) + w[f"{at}.b_{n}"][:, None] for n in ("Q", "K", "V")
        )
        scores = torch.einsum("bhte,bhse->bhts", q, k) / math.sqrt(q.shape[-1])
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool)
        seen = seen.tril() if config.causal else seen
        pattern = scores.masked_fill(~seen, -math.inf).softmax(-1)
        pattern = (config.attention_rate * pattern + 1 - config.attention_rate) * seen
        return torch.einsum("bhts,bhse,hed->btd", pattern, v, w[f"{at}.W_O"]) + w[f"{at}.b_O"]

    def mlp(x, at):
        return act(x @ w[f"{at}.W_in"] + w[f"{at}.b_in"]) @ w[f"{at}.W_out"] + w[f"{at}.b_out"]

    x = w["embed.W_E"][tokens] + w["pos_embed.W_pos"][: tokens.shape[1]]
    for i in range(config.n_layers):
        one, two = f"blocks.{i}.ln1", f"blocks.{i}.ln2"
        if config.norm == "post":
            x = norm(x + attention(x, f"blocks.{i}.attn"), one)
            x = norm(x + mlp(x, f"blocks.{i}.mlp"), two)
            continue
        x = norm(x, one) if config.norm == "replace" else x
        x = x + attention(x if config.norm == "replace" else norm(x, one), f"blocks.{i}.attn")
        x = x + mlp(norm(x, two), f"blocks.{i}.mlp")
    x = norm(x, "ln_final")
    found = x @ w["unembed.W_U"] + w["unembed.b_U"]
    return found[:, -1] if n_answered is None else found[:, -n_answered:]


def judged(run):
    """Inputs, our logits in fp32 and in fp64."""
    inputs = run.experiment.task.build(seed=run.experiment.seed).test.inputs
    model = run.to_torch()
    with torch.no_grad():
        return inputs, model(inputs), model.double()(inputs)


@pytest.mark.parametrize("name", RUNS)
def test_a_forward_pass_of_the_names_alone_gives_the_logits(name):
    run = train(RUNS[name])
    inputs, ours, exact = judged(run)
    weights = run.weights_as("hooked_transformer")
    data = run.experiment.task.build(seed=run.experiment.seed)
    found = logits(run.experiment.model, weights, inputs, data.n_positions)
    assert found.shape == ours.shape
    assert (found - exact).abs().max() <= 2 * (ours - exact).abs().max()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", LENSED)
def test_hooked_transformer_itself_gives_the_logits(name):
    lens = pytest.importorskip("transformer_lens.HookedTransformer", exc_type=ImportError)  # gone in its 4.0
    run = train(LENSED[name])
    config, weights = run.experiment.model, run.weights_as("hooked_transformer")
    (n_tokens, d), n_positions = weights["embed.W_E"].shape, len(weights["pos_embed.W_pos"])
    hooked = lens.HookedTransformer(
        {
            "n_layers": config.n_layers, "d_model": d, "n_heads": config.n_heads, "d_head": d // config.n_heads,
            "d_mlp": config.d_mlp, "n_ctx": n_positions, "d_vocab": n_tokens,
            "d_vocab_out": weights["unembed.W_U"].shape[1], "act_fn": config.activation, "device": "cpu",
            "normalization_type": "LN" if config.norm == "pre" else None,
            "attention_dir": "causal" if config.causal else "bidirectional",
        }
    )  # fmt: skip
    lacking = hooked.load_state_dict(weights, strict=False)
    assert not lacking.unexpected_keys
    assert all(key.endswith(("mask", "IGNORE")) for key in lacking.missing_keys)
    inputs, ours, exact = judged(run)
    with torch.no_grad():
        found = hooked(inputs)[:, -1]
    assert (found - exact).abs().max() <= 2 * (ours - exact).abs().max()


def test_shapes_are_those_of_the_names():
    run = train(LENSED["pre, biases, longer"])
    shapes = {name: [*t.shape] for name, t in run.weights_as("hooked_transformer").items() if "blocks.1" not in name}
    d, tokens, outputs = 8, 12, 11
    assert shapes == {
        "embed.W_E": [tokens, d], "pos_embed.W_pos": [5, d], "unembed.W_U": [d, outputs], "unembed.b_U": [outputs],
        **{f"blocks.0.attn.W_{n}": [2, d, 4] for n in "QKV"}, **{f"blocks.0.attn.b_{n}": [2, 4] for n in "QKV"},
        "blocks.0.attn.W_O": [2, 4, d], "blocks.0.attn.b_O": [d],
        "blocks.0.mlp.W_in": [d, 12], "blocks.0.mlp.b_in": [12], "blocks.0.mlp.W_out": [12, d],
        "blocks.0.mlp.b_out": [d],
        **{f"{at}.{n}": [d] for at in ("blocks.0.ln1", "blocks.0.ln2", "ln_final") for n in "wb"},
    }  # fmt: skip


def test_weights_are_copies_that_share_nothing():
    run = train(LENSED["tied, no mask, sinusoids"])
    before = run.weights["embedding"].clone()
    weights = run.weights_as("hooked_transformer")
    assert len({t.untyped_storage().data_ptr() for t in weights.values()}) == len(weights)
    assert all(t.is_contiguous() and not t.requires_grad for t in weights.values())
    weights["embed.W_E"].zero_()
    assert torch.equal(run.weights["embedding"], before)


def test_other_names_and_models_are_refused():
    run = train(NANDA)
    with pytest.raises(ValueError, match="names must be one of 'hooked_transformer', got 'transformer_lens'"):
        run.weights_as("transformer_lens")
    other = train(Experiment.preset("quick").override({"task.p": 7, "schedule.steps": 1, "device": "cpu"}))
    with pytest.raises(ValueError, match="of a transformer, got PairMLPConfig"):
        other.weights_as("hooked_transformer")
