"""Whole runs: the fast path groks when plain PyTorch does, within the spread over seeds."""

import pytest
import torch

from grokfast import Experiment, train

SMALL = Experiment.preset("quick").override(
    {"task.train_fraction": 0.8, "schedule.eval_every": 10, "schedule.stop_after": 30}
)


def moments(experiment, seeds, engine):
    results = train([experiment.override({"seed": seed, "engine": engine}) for seed in range(seeds)])
    assert {result.status for result in results} == {"finished"}
    return [(result.t_memorize, result.t_generalize) for result in results]


def check_moments(experiment, seeds):
    fast, plain = moments(experiment, seeds, "auto"), moments(experiment, seeds, "reference")
    for ours, expected in zip(zip(*fast), zip(*plain)):
        assert None not in (*ours, *expected)
        spread = max(max(expected) - min(expected), experiment.schedule.eval_every)
        assert all(abs(a - b) <= spread for a, b in zip(ours, expected)), (ours, expected)


@pytest.mark.parametrize(
    "change",
    [{"task.p": 29, "model.width": 128}, {"task.p": 17, "model.width": 64, "model.activation": "square"}],
    ids=["relu", "square"],
)
def test_small_runs_grok_when_plain_pytorch_does(change):
    check_moments(SMALL.override(change), seeds=3)


@pytest.mark.gpu
@pytest.mark.parametrize("products", ["ieee", "tf32x3", "tf32"])
def test_quick_groks_when_plain_pytorch_does(products):
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    check_moments(Experiment.preset("quick").override({"products": products}), seeds=8)
