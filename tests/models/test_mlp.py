"""An MLP on features against torch's own layers, its options, and what it does not take."""

import pytest
import torch
from torch import nn

from grokfast import Experiment, train
from grokfast.losses import MSE, Hinge
from grokfast.models import MLPConfig
from grokfast.tasks import ParityTask, Tensors
from tests.training.common import same_result

SMALL = Experiment(
    name="small",
    task=ParityTask(n=8, k=2, n_train=60, n_test=40),
    model=MLPConfig(width=12),
    loss=Hinge(),
    device="cpu",
).override({"schedule.steps": 20, "schedule.eval_every": 5, "schedule.batch_size": 16})
CLASSES = Tensors(torch.randn(30, 5), torch.arange(30) % 3, train_fraction=0.5, split_seed=0)


def by_torch(model, e):
    """The same network of torch's layers."""
    layers = []
    for i, layer in enumerate(model.layers):
        own = nn.Linear(layer.weight.shape[2], layer.weight.shape[1], bias=layer.bias is not None, dtype=torch.float64)
        own.weight.data = layer.weight.data[e]
        if layer.bias is not None:
            own.bias.data = layer.bias.data[e]
        layers += [own] if i == len(model.layers) - 1 else [own, nn.ReLU()]
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    "options", [{}, {"depth": 3}, {"depth": 0}, {"bias": False, "init": "normal"}, {"init_scale": 3.0}]
)
def test_it_is_torchs_network(options):
    data = CLASSES.build()
    model = MLPConfig(width=7, **options).build(data, seeds=(0, 5), dtype=torch.float64)
    x = data.train.inputs.double()
    out = model(x)
    assert out.shape == (2, 15, 3)
    for e in range(2):
        torch.testing.assert_close(out[e], by_torch(model, e)(x))


def test_initial_sizes():
    data = CLASSES.build()
    torches = MLPConfig(width=4000).build(data).layers[1].weight
    assert torches.abs().max().item() == pytest.approx(4000**-0.5, rel=0.01)
    normal = MLPConfig(width=4000, init="normal", init_scale=2.0).build(data).layers[1].weight
    assert normal.std().item() == pytest.approx(2 * 4000**-0.5, rel=0.05)
    scaled, plain = (MLPConfig(width=9, init_scale=s).build(data, seeds=(3,)) for s in (8.0, 1.0))
    for one, other in zip(scaled.parameters(), plain.parameters()):
        torch.testing.assert_close(one, 8 * other)


def test_residual_layers_add_their_input():
    data = CLASSES.build()
    plain, residual = (MLPConfig(width=6, depth=2, residual=r).build(data) for r in (False, True))
    x = data.train.inputs
    first = plain.layers[0](x[None]).relu()
    second = plain.layers[1](first).relu()
    torch.testing.assert_close(plain(x), plain.layers[2](second))
    torch.testing.assert_close(residual(x), residual.layers[2](first + second))


@pytest.mark.parametrize(
    "changes", [{}, {"model.dropout": 0.2, "model.depth": 2}, {"precision": "float64"}, {"model.depth": 0}]
)
def test_runs_in_company_have_the_bits_that_they_have_alone(how, changes):
    experiments = [SMALL.override({**changes, "seed": seed, "optimizer.lr": lr}) for seed, lr in ((0, 0.1), (1, 0.05))]
    for together, experiment in zip(train(experiments), experiments):
        same_result(together, train(experiment))


def test_losses_and_targets_that_fit():
    real = Tensors(torch.randn(20, 4), torch.randn(20, 2), train_fraction=0.5)
    assert train(SMALL.override({"task": real, "loss": MSE()})).final["train_loss"] > 0
    with pytest.raises(ValueError, match=r"loss hinge takes classes, or signs -1 and 1 \[N, 1\], not the real numbers"):
        train(SMALL.override({"task": real}))
    assert train(SMALL.override({"task": CLASSES})).final["train_loss"] > 0
    tokens = Tensors(torch.zeros(6, 2, dtype=torch.int64), torch.arange(6) % 2, train_fraction=0.5)
    with pytest.raises(ValueError, match=r"an MLP takes features \[N, D\] and targets of one class, or real numbers"):
        train(SMALL.override({"task": tokens}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 4097}, "width must be between 1 and 4096, got 4097"),
        ({"depth": 9}, "depth must be between 0 and 8, got 9"),
        ({"dropout": 1.0}, "dropout must be in"),
        ({"activation": "tanh"}, "activation must be one of"),
        ({"init_scale": 0}, "init_scale must be in"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MLPConfig(**options)
