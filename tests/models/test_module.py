"""Anybody's nn.Module as a model."""

import dataclasses

import pytest
import torch
from torch import nn

from grokfast import Experiment, train
from grokfast.analysis.subject import subject
from grokfast.models import Module
from grokfast.models.module import Separate
from grokfast.store import RunStore
from grokfast.tasks import Data, Split, Task
from grokfast.training.ensemble import Ensemble

SMALL = Experiment.preset("quick").override(
    {"task.p": 7, "schedule.steps": 12, "schedule.eval_every": 4, "schedule.stop_after": None}
)


class Net(nn.Module):
    def __init__(self, data, dropout=0.0):
        super().__init__()
        self.embedding = nn.Embedding(data.n_tokens, 5)
        self.body = nn.Sequential(nn.Linear(10, 9), nn.ReLU(), nn.Dropout(dropout))
        self.scale = nn.Parameter(torch.ones(()))
        self.out = nn.Linear(9, data.n_answers)

    def forward(self, tokens):
        return self.out(self.body(self.embedding(tokens).flatten(1))) * self.scale


def random(data):
    return Net(data, dropout=0.3)


def of(factory, **changes):
    return SMALL.override({"model": Module(factory=factory), **changes})


@pytest.mark.parametrize("factory", [Net, random])
@pytest.mark.parametrize("change", [{}, {"schedule.batch_size": 6}, {"precision": "float64"}])
def test_runs_together_are_each_alone_bit_for_bit(factory, change):
    experiments = [of(factory, seed=seed, **change) for seed in range(3)]
    for result, experiment in zip(train(experiments), experiments):
        alone = train(experiment)
        assert all(torch.equal(w, alone.weights[name]) for name, w in result.weights.items())
        assert {n: c.tolist() for n, c in result.curves.items()} == {n: c.tolist() for n, c in alone.curves.items()}


def test_it_is_an_eager_loop_over_the_module():
    experiment = of(Net, precision="float64")
    data, ensemble = experiment.task.build(seed=0), Ensemble([experiment])
    module = Net(data).double()
    module.load_state_dict(ensemble.weights(0))
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=1.0, betas=(0.9, 0.98))
    for _ in range(10):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(data.train.inputs), data.train.targets)
        loss.backward()
        optimizer.step()
        ensemble.step()
    for name, w in ensemble.weights(0).items():
        torch.testing.assert_close(w, module.state_dict()[name], rtol=1e-9, atol=1e-11)


def test_inputs_may_be_common_to_all_models():
    runs = train([of(Net, seed=s) for s in (0, 1)])
    data = SMALL.task.build(seed=0)
    found = subject(runs).module(data.test.inputs)
    for e, run in enumerate(runs):
        torch.testing.assert_close(found[e], subject(run).module(data.test.inputs)[0])
        torch.testing.assert_close(found[e], run.to_torch()(data.test.inputs))


def test_seeds_differ_and_repeat():
    data = SMALL.task.build()
    one, two = (Module(factory=Net).build(data, seeds=seeds) for seeds in ((0, 1, 0), (1,)))
    p, q = one.embedding.weight, two.embedding.weight
    assert torch.equal(p[0], p[2])
    assert torch.equal(p[1], q[0])
    assert not torch.equal(p[0], p[1])


def test_a_factory_is_kept_by_name_where_it_can_be_imported():
    assert Module(factory=nn.Linear).factory == "torch.nn.modules.linear:Linear"
    kept = Experiment.from_dict(of("math:sqrt").to_dict())
    assert kept.model == Module(factory="math:sqrt")


def test_a_function_that_cannot_be_stored_trains_but_is_not_stored(tmp_path):
    result = train(SMALL, model=lambda data: Net(data))
    assert result.steps == 12
    with RunStore(tmp_path) as store:
        with pytest.raises(TypeError, match="cannot be stored: it must be importable"):
            train(SMALL, model=lambda data: Net(data), store=store)
        assert not store.list()


@dataclasses.dataclass(frozen=True)
class Numbers(Task):
    """y = x @ w, with or without several outputs; or two answers a row."""

    kind: str = "real"

    def build(self, *, seed=0):
        g = torch.Generator().manual_seed(seed)
        x, w = torch.randn(40, 3, generator=g), torch.randn(3, 2, generator=g)
        y = x @ w if self.kind == "real" else (x @ w > 0).long()
        return Data(splits={"train": Split(x[:20], y[:20]), "test": Split(x[20:], y[20:])}, n_tokens=0, n_answers=2)


class Line(nn.Module):
    def __init__(self, data):
        super().__init__()
        self.n = data.n_positions or 1
        self.line = nn.Linear(3, data.n_answers * self.n)

    def forward(self, x):
        y = self.line(x)
        return y.unflatten(1, (self.n, -1)) if self.n > 1 else y


@pytest.mark.parametrize(("kind", "loss"), [("real", "mse"), ("two", "cross_entropy")])
def test_real_targets_and_several_answers(kind, loss):
    changes = {"loss": loss, "optimizer.weight_decay": 0.0, "optimizer.lr": 0.1, "schedule.steps": 300}
    result = train(SMALL.override({"task": Numbers(kind), **changes}), model=Line)
    assert result.final["train_accuracy"] > 0.95


def frozen(data):
    net = Net(data)
    net.out.weight.requires_grad = False
    return net


def normed(data):
    net = Net(data)
    net.body.append(nn.BatchNorm1d(9))
    return net


def wide(data):
    net = Net(data)
    net.out = nn.Linear(9, data.n_answers + 1)
    return net


def shifting(data):
    net = Net(data)
    net.extra = nn.Linear(int(torch.randint(1, 1000, ())), 1)
    return net


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (frozen, r"parameter 'out.weight' is frozen"),
        (normed, r"buffer 'body.3.running_mean' changes in training"),
        (wide, r"Net must return \[2, 7\] of inputs \[2, 2\].*got \[2, 8\]"),
        (shifting, r"parameter 'extra.weight' must have one shape for every seed"),
        (lambda data: nn.LazyLinear(3), r"parameter 'weight' is not initialised yet"),
        (lambda data: nn.Identity(), r"Identity must have parameters"),
        (lambda data: nn.Linear(4, 7), r"Linear does not take inputs \[2, 2\] in torch.int64"),
        ("grokfast.nothing:Net", r"model.factory 'grokfast.nothing:Net' is not there"),
    ],
)
def test_what_a_module_must_not_do_is_named_before_anything_is_stored(factory, message, tmp_path):
    with RunStore(tmp_path) as store:
        with pytest.raises(ValueError, match=message):
            train([of(factory, seed=seed) for seed in range(2)])
        assert not store.list()


def test_its_step_says_what_it_is():
    choice = Ensemble([of(Net)]).choice
    assert choice.step is Separate
    assert str(choice).startswith("plain PyTorch (a module of one's own, and autograd)")
    assert "asked for" not in str(choice)
