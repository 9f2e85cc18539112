"""Dropout and skip connections of a PairMLP: the function, its masks, and which Step computes them."""

import pytest
import torch

from grokfast import Experiment, train
from grokfast.models import PairMLPConfig
from grokfast.models.base import OPERATIONS, PLAIN
from grokfast.tasks import ModularTask
from grokfast.training.ensemble import Ensemble
from tests.training.common import same_result

SMALL = Experiment.preset("quick").override(
    {"task.p": 11, "model.width": 16, "schedule.steps": 12, "schedule.eval_every": 4, "device": "cpu"}
)


def test_hidden_layers_but_the_first_add_their_input():
    data = ModularTask(p=7).build()
    plain, residual = (PairMLPConfig(width=6, depth=3, residual=r).build(data) for r in (False, True))
    pairs = data.train.inputs
    first = (plain.w_a[:, pairs[:, 0]] + plain.w_b[:, pairs[:, 1]] + plain.b_in[:, None]).relu()
    second = plain.hidden[0](first).relu()
    torch.testing.assert_close(plain(pairs), plain.out(plain.hidden[1](second).relu()))
    second = first + second
    torch.testing.assert_close(residual(pairs), residual.out(second + residual.hidden[1](second).relu()))


def test_units_are_dropped_in_training_only():
    data = ModularTask(p=7).build()
    model = PairMLPConfig(width=4000, dropout=0.25, bias=False).build(data)
    model.out.weight.data.fill_(1.0)
    hidden = model.eval()(data.train.inputs)
    torch.manual_seed(0)
    dropped = model.train()(data.train.inputs)
    assert not torch.equal(dropped, hidden)
    torch.testing.assert_close(dropped, hidden, rtol=0.15, atol=0)  # the mean stays
    assert torch.equal(model.eval()(data.train.inputs), hidden)


@pytest.mark.parametrize(
    "changes",
    [
        {"model.dropout": 0.3},
        {"model.dropout": 0.3, "model.depth": 2, "model.residual": True, "schedule.batch_size": 20},
        {"schedule.changes": "switch(of='dropout',to=0.5,at=5)"},
    ],
)
def test_runs_in_company_have_the_bits_that_they_have_alone(how, changes):
    experiments = [SMALL.override({**changes, "seed": seed}) for seed in (0, 1)]
    for together, experiment in zip(train(experiments), experiments):
        same_result(together, train(experiment))


@pytest.mark.parametrize("changes", [{"model.dropout": 0.3}, {"model.depth": 2, "model.residual": True}])
def test_no_fused_step_takes_them(changes):
    assert Ensemble([SMALL.override(changes)]).choice.name in (OPERATIONS, PLAIN)


@pytest.mark.parametrize("options", [{"dropout": 1.0}, {"dropout": -0.1}, {"residual": 1}])
def test_bad_options_are_refused(options):
    with pytest.raises((TypeError, ValueError), match=next(iter(options))):
        PairMLPConfig(**options)
