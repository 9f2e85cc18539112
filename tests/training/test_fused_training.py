"""Whole runs on the fused step, in Triton's interpreter where there is no GPU: the reference's results."""

import numpy as np
import pytest
import torch

from grokfast import EMA, Experiment, backend, train
from grokfast.ops.pair_step import plan
from grokfast.store import RunStore
from grokfast.training import Interrupted, resume
from grokfast.training.ensemble import Ensemble
from grokfast.training.outcome import Outcome
from grokfast.training.replay import Replay
from tests.training.common import StopAt, same_result
from tests.training.replays import OPTIONS, TINY, variants


def step_by_step(experiment, steps):
    with backend.using("reference"):
        made = Ensemble([experiment])
        for _ in range(steps):
            made.step()
    return made.weights(0)


@pytest.mark.parametrize("option", OPTIONS)
def test_twenty_fused_steps_follow_the_reference(kernels, option, judge):
    experiment = TINY.override(OPTIONS[option])
    exact = step_by_step(experiment.override({"precision": "float64"}), 20)
    by_torch = step_by_step(experiment, 20)
    result = train(experiment.override({"schedule.eval_every": 10}))
    assert result.steps == 20
    ours, torchs, right = (
        torch.cat([weights[name].flatten() for name in exact]) for weights in (result.weights, by_torch, exact)
    )
    judge(ours, torchs, right)


def test_the_curves_are_those_of_the_step_by_step_run(kernels):
    experiment = TINY.override({"schedule.steps": 7, "schedule.eval_every": 3, "schedule.batch_size": 4})
    result = train(experiment)
    with backend.using("reference"):
        expected = train(experiment.override({"device": "cpu"}))
    assert result.curves["step"].tolist() == [0, 3, 6, 7]
    for name, column in expected.curves.items():
        np.testing.assert_allclose(result.curves[name], column, rtol=1e-5)


@pytest.mark.parametrize("option", ["EMA", "MA, minibatch"])
def test_together_they_are_each_alone_and_twice_the_same(kernels, option):
    experiments = variants(TINY.override({**OPTIONS[option], "schedule.steps": 4}))[:2]
    together = train(experiments)
    for result, again, experiment in zip(together, train(experiments), experiments):
        same_result(result, again)
        same_result(result, train(experiment))


def test_a_run_that_diverges_in_the_kernels_leaves_its_neighbour_alone(kernels):
    tame = TINY.override({"schedule.steps": 4, "schedule.eval_every": 2})
    wild, neighbour = train([tame.override({"optimizer.lr": 1e30}), tame])
    assert wild.status == "diverged"
    assert wild.steps == 2
    with backend.using("reference"):
        assert wild.diverged_at == train(tame.override({"optimizer.lr": 1e30, "device": "cpu"})).diverged_at
    same_result(neighbour, train(tame))


def test_a_transformers_kernels_follow_the_reference(kernels):
    """The median of three seeds: on the few numbers of a bias either side may be exact by luck."""
    small = {"task.p": 5, "model.d_model": 16, "model.d_mlp": 16, "model.n_heads": 2, "schedule.steps": 2}
    experiment = Experiment.preset("nanda").override({**small, "optimizer.warmup": 1, "optimizer.eps": 1e-3})
    errors, yardsticks = {}, {}
    for seed in range(3):
        own = experiment.override({"seed": seed})
        exact = step_by_step(own.override({"precision": "float64"}), 2)
        by_torch = step_by_step(own, 2)
        result = train(own)
        assert result.curves["step"].tolist() == [0, 2]
        for name, right in exact.items():
            for found, of in ((errors, result.weights), (yardsticks, by_torch)):
                found.setdefault(name, []).append(float((of[name].double() - right).norm() / right.norm()))
    for name, error in errors.items():
        assert np.median(error) <= 2 * np.median(yardsticks[name]) + torch.finfo(torch.float32).eps / 2, name


def test_partial_gradients_are_summed_on_the_way_to_the_update(kernels, monkeypatch):
    """Of a model that does not fill a GPU; more models need none, and have the same bits."""
    experiment = TINY.override({"task.p": 17, "task.train_fraction": 0.95, "schedule.steps": 2, "filter": EMA()})
    weights = []
    for splits in (3, 1):
        if splits == 1:
            monkeypatch.setattr(plan, "n_splits", lambda *sizes: 1)
        made = Ensemble([experiment, experiment.override({"seed": 1})])
        replay = Replay(made, [Outcome(experiment.criteria)] * 2)
        assert replay.step.splits == splits
        assert replay.grad.shape == ((splits,) * (splits > 1)) + made.flat.shape
        replay.launch()
        weights.append(made.flat)
    assert torch.equal(*weights)


@pytest.mark.parametrize("option", ["nesterov", "EMA, minibatch, noise"])
def test_stopped_and_resumed_is_uninterrupted(kernels, tmp_path, option):
    experiment = TINY.override({**OPTIONS[option], "schedule.steps": 6, "schedule.eval_every": 2})
    with RunStore(tmp_path) as store:
        with pytest.raises(Interrupted) as stopped:
            train(experiment, store=store, observers=[StopAt(2)])
        (run_id,) = stopped.value.run_ids
        assert 2 <= store.load_checkpoint(run_id)[1]["steps"] < 6
        resumed = resume(run_id, store)
        same_result(resumed, train(experiment))
        np.testing.assert_array_equal(store.curves(run_id)["step"], resumed.curves["step"])
