"""Runs whose transforms start after memorising, or at steps of their own: in both engines, resumed, and in a grid."""

import signal

import pytest
import torch

from grokfast import EMA, MA, RunStore, backend, train
from grokfast.sweeps.grid import expand
from grokfast.training import Interrupted, Observer, resume
from grokfast.transforms import Chain
from tests.schedules.test_training import QUICK, eager, replayed
from tests.transforms.own import Clamp, Orthogonal

LATE = {
    "ema": EMA(0.9, 1.0, start="memorizing"),
    "ma": MA(3, 1.0, start="memorizing"),
    "chain": Chain(Orthogonal(0.5, start="memorizing"), EMA(0.9, 1.0), Clamp(5.0, start=9, stop=33)),
}


def run_of(filter, **options):
    return QUICK.override({"filter": filter, **options})


@pytest.mark.parametrize("filter", LATE)
def test_both_engines_start_it_at_the_step_that_the_evaluations_established(filter):
    experiments = [run_of(LATE[filter], seed=seed) for seed in range(2)]
    with backend.using("reference"):
        _, ensemble, outcomes = eager(experiments)
        _, theirs, _ = replayed(experiments)
    torch.testing.assert_close(ensemble.flat, theirs.flat, rtol=1e-4, atol=1e-6)
    assert all(0 < outcome.memorizing.established < 36 for outcome in outcomes)
    assert theirs.optimizer.reached[0].tolist() == [outcome.memorizing.established for outcome in outcomes]


@pytest.mark.parametrize("filter", ["ema", "ma"])
def test_a_moment_is_the_step_at_which_it_came(filter):
    _, ensemble, (outcome,) = eager([run_of(LATE[filter])])
    at = outcome.memorizing.established
    _, fixed, _ = eager([run_of(LATE[filter]).override({"filter.start": at})])
    _, other, _ = eager([run_of(LATE[filter]).override({"filter.start": at + 1})])
    assert torch.equal(ensemble.flat, fixed.flat)
    assert not torch.equal(ensemble.flat, other.flat)


class StopAt(Observer):
    def __init__(self, steps):
        self.steps = steps

    def stepped(self, steps):
        if steps == self.steps:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("filter", LATE)
@pytest.mark.parametrize("at", [3, 17, 35])
def test_a_run_goes_on_to_the_same_bits(tmp_path, filter, at):
    whole = train(run_of(LATE[filter]))
    with RunStore(tmp_path) as store:
        with pytest.raises(Interrupted) as stopped:
            train(run_of(LATE[filter]), store=store, observers=[StopAt(at)])
        result = resume(stopped.value.run_ids[0], store)
    assert all(torch.equal(result.weights[name], weight) for name, weight in whole.weights.items())


def test_start_is_an_axis_and_an_ensemble_holds_all_of_them():
    grid = expand(run_of("ema"), {"filter.start": [0, 5, "memorizing"], "filter.stop": [None, 30]})
    experiments = [cell.experiment for cell in grid]
    assert [e.filter.start for e in experiments] == [0, 0, 5, 5, "memorizing", "memorizing"]
    together = train(experiments)
    for experiment, result in zip(experiments, together):
        alone = train(experiment)
        assert all(torch.equal(result.weights[name], weight) for name, weight in alone.weights.items())
    assert len({tuple(r.weights["out.weight"].flatten().tolist()) for r in together}) == len(together)
