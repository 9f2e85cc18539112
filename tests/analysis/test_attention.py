"""Attention maps by hand, and clock or pizza on networks whose logits are known."""

import math

import pytest
import torch

from grokfast import Experiment, train
from grokfast.analysis import (
    attention_maps,
    attention_pictures,
    circularity,
    distance_irrelevance,
    gradient_symmetricity,
)
from grokfast.models import PairMLPConfig, TransformerConfig
from grokfast.nn.ensemble import EnsembleModule
from grokfast.tasks import ModularTask, ParityTask

P = 11
TASK = ModularTask(p=P)
SMALL = {"d_model": 8, "n_heads": 2, "d_mlp": 6, "n_layers": 2}


@pytest.mark.parametrize("norm", ["none", "pre", "post", "replace"])
@pytest.mark.parametrize("rate", [1.0, 0.25])
def test_maps_are_softmaxes_of_queries_and_keys(norm, rate):
    task = ModularTask(p=P, layout="equals")
    config = TransformerConfig(norm=norm, attention_rate=rate, **SMALL)
    model = config.build(task.build(), seeds=(0, 1), dtype=torch.float64)
    tokens = task.build().test.inputs
    maps = attention_maps(model, tokens)
    assert [*maps.shape] == [2, 2, len(tokens), 2, 3, 3]
    assert maps.triu(1).abs().max() == 0
    if rate == 1:
        torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:-1], dtype=maps.dtype))
    # The first layer of model 1, head 1, by hand.
    x = model.embedding[1, tokens] + model.positions[1, :3]
    block = model.blocks[0]
    if norm in ("pre", "replace"):
        x = torch.nn.functional.layer_norm(x, (8,))
    q, k = (x @ block.w_qkv[1, at : at + 4].T for at in (4, 8 + 4))
    scores = (q @ k.mT / 2).masked_fill(torch.ones(3, 3, dtype=torch.bool).triu(1), -math.inf)
    expected = (rate * scores.softmax(-1) + 1 - rate).tril()
    torch.testing.assert_close(maps[1, 0, :, 1], expected)


def test_maps_are_what_the_model_uses():
    """Values of a layer's second model, weighed by the map, are what its attention gives."""
    config = TransformerConfig(norm="pre", causal=False, **SMALL)
    model = config.build(TASK.build(), seeds=(0, 1), dtype=torch.float64)
    tokens = TASK.build().test.inputs
    stream = []
    model.blocks[1].register_forward_pre_hook(lambda _, inputs: stream.append(inputs[0]))
    maps = attention_maps(model, tokens)[:, 1]
    block, x = model.blocks[1], model.blocks[1].ln1(stream[0])
    v = torch.einsum("entd,eod->ento", x, block.w_qkv[:, 16:]).unflatten(-1, (2, 4))
    mixed = torch.einsum("enhij,enjhk->enihk", maps, v).flatten(-2)
    torch.testing.assert_close(torch.einsum("entd,eod->ento", mixed, block.w_o), block.attention(x, None))


def test_pictures_have_a_and_b_as_axes():
    for layout, n_b in (("pair", 11), ("operator", 11), ("equals", 4)):
        task = ModularTask(p=P, layout=layout, p_b=None if n_b == P else n_b)
        model = TransformerConfig(**SMALL).build(task.build(), seeds=(3,))
        pictures = attention_pictures(model, task)
        assert [*pictures.shape] == [1, 2, 2, P, P]
        row = {"pair": [7, 2], "operator": [7, P + 1, 2, P], "equals": [7, 2, P]}[layout]
        expected = attention_maps(model, torch.tensor([row]))[:, :, 0, :, -1, 0]
        torch.testing.assert_close(pictures[..., 7, 2], expected)
        assert pictures[..., n_b:].isnan().all()
        assert not pictures[..., :n_b].isnan().any()


class Logits(EnsembleModule):
    """Two models of given logits of rows of a table, as functions of one-hot vectors."""

    def __init__(self, tables):
        super().__init__((0, 1))
        self.tables = torch.nn.Parameter(tables)  # [2, p, p, p]

    def embedded(self, inputs):
        return torch.nn.functional.one_hot(inputs.expand(2, *inputs.shape[-2:]), P).double()

    def from_embedded(self, x, preactivations=None):
        return torch.einsum("eabc,ena,enb->enc", self.tables, x[:, :, 0], x[:, :, 1])

    def forward(self, inputs, masks=None):
        return self.from_embedded(self.embedded(inputs))


def tables():
    a, b, c = torch.meshgrid(*[torch.arange(P, dtype=torch.float64)] * 3, indexing="ij")
    w = 2 * math.pi / P
    clock = (w * (a + b - c)).cos() + 0 * a
    return a, b, c, w, clock


def test_irrelevance_is_of_the_correct_logit():
    """Correct logits f(s) + g(d): std over s at fixed d is that of f, the whole one √(var f + var g)."""
    a, b, c, w, _ = tables()
    right = (a + b - c) % P == 0
    f, g = (w * (a + b)).cos(), 3 * (w * (a - b)).cos()
    of_both = torch.stack([torch.where(right, f + g, 100 * torch.randn(P, P, P)), torch.where(right, f, 7)])
    found = distance_irrelevance(Logits(of_both), TASK)
    assert found.tolist() == pytest.approx([1 / math.sqrt(10), 1])


def test_symmetric_logits_have_symmetric_gradients():
    """Of logits T[a, b, c] the gradients are T[:, b, c] and T[a, :, c]."""
    draws = torch.Generator().manual_seed(0)
    t = torch.randn(P, P, P, generator=draws, dtype=torch.float64)
    alike = t[:, :1].expand(P, P, P)
    alike = alike * alike.transpose(0, 1)  # v_a v_b: both gradients are multiples of v
    found = gradient_symmetricity(Logits(torch.stack([alike, t])), TASK)
    same_sign = gradient_symmetricity(Logits(torch.stack([alike.abs(), t])), TASK)
    assert same_sign[0].item() == pytest.approx(1)
    assert abs(found[0].item()) < 0.5
    assert abs(found[1].item()) < 0.2
    assert torch.equal(found, gradient_symmetricity(Logits(torch.stack([alike, t])), TASK))
    # One triple, by hand.
    one = gradient_symmetricity(Logits(torch.stack([alike, t])), TASK, n_triples=1)[1].item()
    cosines = torch.cosine_similarity(t[:, None].expand(P, P, P, P), t[None].expand(P, P, P, P), dim=1)
    assert cosines.numel() == P**3
    by_hand = torch.cosine_similarity(t.permute(1, 2, 0)[None], t.transpose(1, 2)[:, None], dim=-1)  # [a, b, c]
    assert (by_hand - one).abs().min() < 1e-12


def test_circles_are_circular():
    j = torch.arange(P, dtype=torch.float64)[:, None] * 2 * math.pi / P
    one = torch.cat([j.cos(), j.sin()], 1)
    two = torch.cat([3 * one, (2 * j).cos(), (2 * j).sin()], 1)
    turned = two @ torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).double()).Q
    assert circularity(torch.stack([two, turned + 5])).tolist() == pytest.approx([1, 1])
    assert circularity(one.float()).item() == pytest.approx(1)
    # A component that is half one frequency, half another, in two dimensions that go together.
    mixed = torch.cat([j.cos() + (2 * j).cos(), j.sin() + (2 * j).sin()], 1)
    assert circularity(mixed).item() == pytest.approx(0.5)
    alternating = torch.tensor([1.0, -1.0]).repeat(4)[:, None]
    assert circularity(alternating).item() == pytest.approx(1)
    assert circularity(torch.randn(59, 128, generator=torch.Generator().manual_seed(0))).item() < 0.3
    assert circularity(torch.ones(5, 2)).isnan()


def test_of_runs_that_average_their_operands():
    """Without a mask and with weights alike, and no positions to tell them apart, the operands are interchangeable."""
    experiment = Experiment.preset("pizza").override(
        {"task.p": P, "model.d_model": 16, "model.d_mlp": 8, "schedule.steps": 3, "schedule.eval_every": 3,
         "model.init_scales": "positions=0", "schedule.stop_after": None, "optimizer.lr": 1e-9, "device": "cpu"}
    )  # fmt: skip
    runs = train([experiment.override({"seed": s}) for s in (0, 1)])
    assert attention_maps(runs, torch.tensor([[1, 2]])).unique().tolist() == [1]
    assert distance_irrelevance(runs).shape == (2,)
    # The stream adds b's embedding to itself: what is alike is the heads' part.
    assert (gradient_symmetricity(runs) > 0).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: attention_maps(m, torch.tensor([[1, 2]])), TypeError, "model must be a transformer"),
        (lambda m: attention_pictures(m, ParityTask()), TypeError, "task must be a table"),
        (lambda m: attention_pictures(m, ModularTask(p=P, n_operands=3)), ValueError, "on two operands"),
        (lambda m: attention_pictures(m, TASK, key=2), ValueError, "key must be between -2 and 1, got 2"),
        (lambda m: gradient_symmetricity(m), ValueError, "task must say what the model learns"),
        (lambda m: gradient_symmetricity(m, TASK, n_triples=0), ValueError, "n_triples must be at least 1"),
        (lambda m: distance_irrelevance(m, ModularTask(p=P, operation="mul")), ValueError, r"task must be a \+ b"),
        (lambda m: circularity(torch.ones(2, 2)), ValueError, "embeddings must be"),
        (lambda m: circularity([1]), TypeError, "embeddings must be"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call(PairMLPConfig(width=4).build(TASK.build()))
