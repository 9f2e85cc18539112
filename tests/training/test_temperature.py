"""Runs whose losses have other temperatures, in one ensemble."""

import pytest
import torch
import torch.nn.functional as F

from grokfast.training.ensemble import Ensemble
from tests.training.own_updates import BASE, STEPS, Network, check

TEMPERATURES = (1.0, 4.0, 0.5)
RUNS = [BASE.override({"optimizer": "sgd", "optimizer.lr": 1.0, "loss.temperature": t}) for t in TEMPERATURES]


def by_hand(experiment):
    temperature = experiment.loss.temperature
    network = Network(experiment, lambda logits, answers: F.cross_entropy(logits / temperature, answers))
    weights = {name: w.clone() for name, w in network.start.items()}
    for _ in range(STEPS):
        for name, g in network.gradients(weights).items():
            weights[name] -= g + experiment.optimizer.weight_decay * weights[name]
    return weights


@pytest.mark.parametrize("decay", [0.0, 1e-3])
def test_fifty_steps_are_those_of_divided_logits(decay):
    check([one.override({"optimizer.weight_decay": decay}) for one in RUNS], by_hand)


def test_runs_that_stay_keep_their_temperatures():
    three, two = Ensemble(RUNS), Ensemble(RUNS[1:])
    three.keep([1, 2])
    one = Ensemble(RUNS)
    one.keep([2])
    assert three.evaluate() == two.evaluate()
    assert one.evaluate() == two.evaluate()[1:]


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_a_schedule_may_change_the_temperature(precision):
    cold, warm = (one.override({"precision": precision}) for one in RUNS[:2])
    run = warm.override({"schedule.changes": "switch(of=temperature,to=1,at=3)"})
    ensemble, plain = Ensemble([run]), Ensemble([warm, cold])
    first = [plain.evaluate()[0], ensemble.evaluate()[0]]
    assert first[0] == first[1]
    for _ in range(3):
        ensemble.step()
    plain.flat.copy_(ensemble.flat.expand(2, -1))
    torch.testing.assert_close(ensemble.evaluate()[0]["train_loss"], plain.evaluate()[1]["train_loss"])


def test_the_step_that_takes_a_temperature_has_it():
    runs = [one.override({"precision": "float32"}) for one in RUNS]
    ours, plain = Ensemble(runs), Ensemble([one.override({"engine": "reference"}) for one in runs])
    assert "only where a unit is active" not in str(ours.choice)  # which knows of none
    for _ in range(5):
        ours.step()
        plain.step()
    torch.testing.assert_close(ours.flat, plain.flat, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(ours.flat[0], ours.flat[1], rtol=1e-2, atol=1e-3)
