"""What an analysis looks at."""

import pytest
import torch

from grokfast import Experiment, RunStore, train
from grokfast.analysis.subject import subject

TINY = Experiment.preset("quick").override(
    {"task.p": 7, "model.width": 8, "schedule.steps": 10, "schedule.eval_every": 5, "device": "cpu"}
)


def test_runs_become_an_ensemble_with_their_own_data(tmp_path):
    with RunStore(tmp_path) as store:
        runs = train([TINY.override({"seed": s, "schedule.snapshots": "0"}) for s in (0, 1)], store=store)
    found = subject(runs)
    assert found.weights["w_a"].shape == (2, 7, 8)
    for e, run in enumerate(runs):
        data = TINY.task.build(seed=e)
        assert torch.equal(found.data[e].train.inputs, data.train.inputs)
        right = found.module(data.test.inputs)[e].argmax(-1) == data.test.targets
        assert right.float().mean() == pytest.approx(run.final["test_accuracy"])
    before = subject(runs[1].at(0))
    assert not torch.equal(before.weights["w_a"][0], found.weights["w_a"][1])


def test_a_live_model_needs_a_task():
    data = TINY.task.build(seed=3)
    module = TINY.model.build(data, seeds=(3, 4))
    found = subject(module, TINY.task)
    assert [torch.equal(d.train.inputs, TINY.task.build(seed=s).train.inputs) for d, s in zip(found.data, (3, 4))]
    assert subject(module, data).data == (data, data)
    with pytest.raises(ValueError, match="task must say what the model learns"):
        subject(module)
    with pytest.raises(TypeError, match="model must be a run's result, several of them, or a grokfast model"):
        subject(torch.nn.Linear(2, 2), data)
    with pytest.raises(TypeError, match="task must be a Task or its Data, got 'add'"):
        subject(module, "add")
