"""An MLP on tokens against torch's own layers on one-hot vectors, its options, and what it does not take."""

import itertools

import pytest
import torch
from torch import nn

from grokfast import Experiment, train
from grokfast.models import PairMLPConfig, TokenMLPConfig
from grokfast.tasks import ModularTask, RecurrenceTask, SequenceTask, Tensors
from tests.training.common import same_result

TASK = RecurrenceTask(p=5, coefficients=(1, 2, 1))
DATA = TASK.build()
SMALL = Experiment(name="small", task=TASK, model=TokenMLPConfig(width=13), device="cpu").override(
    {"schedule.steps": 20, "schedule.eval_every": 5, "optimizer.lr": 0.01}
)
FIRST = [
    {"join": join, **embedded}
    for join in ("concat", "sum")
    for embedded in ({}, {"embed": 6}, {"embed": 6, "shared": True})
]


class ByTorch(nn.Module):
    """Model e as a network on one-hot vectors [N, T, n_tokens], with torch's layers alone."""

    def __init__(self, model, e):
        super().__init__()
        config, own = model.config, {name: p[e].detach().clone() for name, p in model.named_parameters()}
        self.config, positions = config, model.seq_len
        self.embed = None
        if config.embed:
            self.embed = [own["embed.0" if config.shared else f"embed.{t}"] for t in range(positions)]
        w_in = [own[f"w_in.{i}"] for i in range(1 if config.join == "sum" else positions)]
        w_in = torch.cat(w_in, 1) if config.embed else torch.cat(w_in, 0).T  # [width, fan_in]
        weights = [(w_in, own.get("b_in"))]
        weights += [(own[f"layers.{i}.weight"], own.get(f"layers.{i}.bias")) for i in range(config.depth)]
        self.layers = []
        for weight, bias in weights:
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
            layer.weight.data = weight
            if bias is not None:
                layer.bias.data = bias
            self.layers.append(layer)

    def forward(self, one_hot):
        vectors = one_hot
        if self.embed is not None:
            vectors = torch.stack([one_hot[:, t] @ table for t, table in enumerate(self.embed)], 1)
        x = vectors.sum(1) if self.config.join == "sum" else vectors.flatten(1)
        act = {"relu": nn.ReLU(), "square": torch.square, "gelu": nn.GELU(), "abs": torch.abs}[self.config.activation]
        x = act(self.layers[0](x))
        for layer in self.layers[1:-1]:
            y = act(layer(x))
            x = x + y if self.config.residual else y
        return self.layers[-1](x)


@pytest.mark.parametrize(
    "options",
    [
        *FIRST, {"depth": 3, "residual": True}, {"depth": 2, "activation": "gelu", "bias": False, "init": "normal"},
        {"activation": "abs", "init_scale": 3.0}, {"activation": "square"},
    ],
)  # fmt: skip
def test_it_is_torchs_network_on_one_hot_vectors(options):
    model = TokenMLPConfig(width=7, **options).build(DATA, seeds=(0, 5), dtype=torch.float64)
    tokens = DATA.train.inputs
    out = model(tokens)
    assert out.shape == (2, len(DATA.train), 5)
    one_hot = nn.functional.one_hot(tokens, 5).double()
    for e in range(2):
        torch.testing.assert_close(out[e], ByTorch(model, e)(one_hot))
    other = torch.stack([tokens, tokens.flip(0)])
    torch.testing.assert_close(model(other)[1], out[1].flip(0))


@pytest.mark.parametrize("options", FIRST)
def test_gradients(options):
    model = TokenMLPConfig(width=3, activation="gelu", **options).build(DATA, seeds=(0, 1), dtype=torch.float64)
    tokens, names = DATA.train.inputs[:6], [name for name, _ in model.named_parameters()]

    def logits(*parameters):
        return torch.func.functional_call(model, dict(zip(names, parameters)), (tokens,))

    assert torch.autograd.gradcheck(logits, tuple(model.parameters()))


def test_two_tokens_are_a_pair():
    """The same weights as a PairMLP's give the same logits."""
    data = ModularTask(p=7).build()
    for options in ({}, {"embed": 4}):
        pair = PairMLPConfig(width=6, depth=2, **options).build(data, seeds=(0, 1), dtype=torch.float64)
        model = TokenMLPConfig(width=6, depth=2, **options).build(data, seeds=(0, 1), dtype=torch.float64)
        names = {"b_in": "b_in", "layers.0": "hidden.0", "layers.1": "out"}
        names |= {f"embed.{t}": f"embed_{side}" for t, side in enumerate("ab")}
        names |= {f"w_in.{t}": f"{'in' if options else 'w'}_{side}" for t, side in enumerate("ab")}
        of_pair = dict(pair.named_parameters())
        for name, own in model.named_parameters():
            at = name.removesuffix(".weight").removesuffix(".bias")
            own.data.copy_(of_pair[name.replace(at, names[at])])
        torch.testing.assert_close(model(data.train.inputs), pair(data.train.inputs))


def test_what_is_shared_and_summed_forgets_the_order():
    tokens = DATA.train.inputs[:9]
    for options in ({"join": "sum"}, {"join": "sum", "embed": 4, "shared": True}):
        model = TokenMLPConfig(width=9, **options).build(DATA, dtype=torch.float64)
        torch.testing.assert_close(model(tokens), model(tokens.flip(1)))
    for options in ({}, {"join": "sum", "embed": 4}, {"embed": 4, "shared": True}):
        model = TokenMLPConfig(width=9, **options).build(DATA, dtype=torch.float64)
        assert not torch.allclose(model(tokens), model(tokens.flip(1)))


@pytest.mark.parametrize(
    ("options", "n"),
    [
        ({}, 3 * 5 * 8 + 8), ({"join": "sum"}, 5 * 8 + 8), ({"embed": 6}, 3 * 5 * 6 + 3 * 6 * 8 + 8),
        ({"embed": 6, "shared": True}, 5 * 6 + 3 * 6 * 8 + 8), ({"embed": 6, "join": "sum"}, 3 * 5 * 6 + 6 * 8 + 8),
        ({"embed": 6, "join": "sum", "shared": True}, 5 * 6 + 6 * 8 + 8), ({"bias": False}, 3 * 5 * 8 - 5),
    ],
)  # fmt: skip
def test_numbers_of_parameters(options, n):
    assert TokenMLPConfig(width=8, **options).build(DATA, seeds=(0, 1)).n_parameters == n + 8 * 5 + 5


def test_initial_sizes():
    for options, embed in itertools.product(({"init": "normal"}, {"init": "torch"}), (None, 50)):
        model = TokenMLPConfig(width=4000, init_scale=2.0, embed=embed, **options).build(DATA)
        fan_in, factor = 3 * (embed or 5), 2 * (1 if options["init"] == "normal" else 3**-0.5)
        assert model.w_in[2].std().item() == pytest.approx(factor * fan_in**-0.5, rel=0.05)
        assert model.layers[0].weight.std().item() == pytest.approx(factor * 4000**-0.5, rel=0.05)
        assert bool(model.b_in.any()) == (options["init"] == "torch")
        if embed:
            assert model.embed[0].std().item() == pytest.approx(2 * embed**-0.5, rel=0.15)


@pytest.mark.parametrize("options", [*FIRST, {"depth": 3, "dropout": 0.2, "residual": True}])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_runs_in_company_have_the_bits_that_they_have_alone(how, options, precision):
    experiment = SMALL.override({"model": TokenMLPConfig(width=13, **options), "precision": precision})
    experiments = [experiment.override({"seed": seed, "optimizer.lr": lr}) for seed, lr in ((0, 0.01), (1, 0.003))]
    for together, one in zip(train(experiments), experiments):
        same_result(together, train(one))


@pytest.mark.parametrize("options", FIRST)
def test_models_of_an_ensemble_have_the_bits_that_they_have_alone(options):
    config = TokenMLPConfig(width=13, depth=2, **options)
    both = config.build(DATA, seeds=(4, 2))
    out = both(DATA.train.inputs)
    gradients = torch.autograd.grad(out.square().sum(), list(both.parameters()))
    for e, seed in enumerate((4, 2)):
        alone = config.build(DATA, seeds=(seed,))
        own = alone(DATA.train.inputs)
        assert torch.equal(own[0], out[e])
        for one, other in zip(torch.autograd.grad(own.square().sum(), list(alone.parameters())), gradients):
            assert torch.equal(one[0], other[e])


def test_dropout_acts_in_training_alone():
    model = TokenMLPConfig(width=50, dropout=0.5).build(DATA)
    plain = TokenMLPConfig(width=50).build(DATA)
    tokens = DATA.train.inputs
    assert not torch.equal(model.train()(tokens), plain(tokens))
    assert torch.equal(model.eval()(tokens), plain(tokens))


def test_it_takes_all_sizes_up_to_its_limits():
    model = TokenMLPConfig(width=4096, depth=2).build(DATA)
    assert model(DATA.train.inputs[:2]).shape == (1, 2, 5)
    model = TokenMLPConfig(width=3, depth=8).build(DATA)
    assert len(model.layers) == 8


def test_data_that_it_does_not_take():
    for task, shapes in {
        SequenceTask(length=2, n_symbols=4, n_train=8, n_test=8): r"\[8, 4\] int64 and \[8, 2\] int64",
        Tensors(torch.randn(6, 2), torch.arange(6) % 2, train_fraction=0.5): r"\[3, 2\] float32 and \[3\] int64",
        Tensors(
            torch.zeros(6, 2, dtype=torch.int64), torch.rand(6), train_fraction=0.5
        ): r"\[3, 2\] int64 and \[3, 1\]",
    }.items():
        with pytest.raises(ValueError, match=rf"a TokenMLP takes inputs \[N, T\] of tokens and .* have {shapes}"):
            train(SMALL.override({"task": task}))
    with pytest.raises(ValueError, match=r"tokens must be \[N, 3\] or \[E, N, 3\], got \[4, 2\]"):
        TokenMLPConfig().build(DATA)(torch.zeros(4, 2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 4097}, "width must be between 1 and 4096, got 4097"),
        ({"depth": 0}, "depth must be between 1 and 8, got 0"),
        ({"depth": 9}, "depth must be between 1 and 8, got 9"),
        ({"embed": 0}, "embed must be at least 1, got 0"),
        ({"shared": True}, "shared must be False where embed is None"),
        ({"join": "mean"}, "join must be one of 'concat', 'sum', got 'mean'"),
        ({"dropout": 1.0}, "dropout must be in"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TokenMLPConfig(**options)


def test_counting_is_learned():
    """Where the order is forgotten, the count is a function of the sum."""
    task = SequenceTask(operation="count", length=6, n_symbols=3, n_train=200, n_test=200, split_seed=0)
    run = train(
        SMALL.override(
            {
                "task": task,
                "model": TokenMLPConfig(width=32, join="sum"),
                "schedule.steps": 300,
                "schedule.eval_every": 100,
            }
        )
    )
    assert run.final["train_accuracy"] > 0.99
    assert run.final["test_accuracy"] > 0.95
