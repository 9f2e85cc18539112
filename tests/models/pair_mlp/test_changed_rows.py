"""Rows that are changed before they are shown: a PairMLP's fused step on a CPU takes them as they are at that step."""

from dataclasses import dataclass

import pytest
import torch

from grokfast import Experiment, backend, train
from grokfast.models.base import FUSED, OPERATIONS
from grokfast.schedules import Change, SwapOperands
from grokfast.training.ensemble import Ensemble
from tests.schedules.common import changed

QUICK = Experiment.preset("quick").override({
    "task.p": 13, "task.augment": "swap", "model.width": 24, "schedule.steps": 40, "schedule.eval_every": 4,
    "schedule.stop_after": None, "device": "cpu",
})  # fmt: skip


@dataclass(frozen=True)
class Turned(Change):
    """The last row comes first, and every answer is one more at every step: tensors of any strides."""

    def augment(self, inputs, targets, step, seeds):
        return inputs.flip(1), (targets.flip(1) + step[:, None])[:, :, None].repeat(1, 1, 2)[..., 0] % 13


@pytest.fixture
def fused(compiled, set_threads):
    """The extension, on any processor."""
    set_threads(1)


def gradients(experiments, precision, name, step):
    with backend.using(name):
        ensemble = Ensemble([e.override({"precision": precision}) for e in experiments])
        for _ in range(step):
            ensemble.step()
        return ensemble, ensemble.gradient(ensemble.orders.batch(step))


@pytest.mark.parametrize("changes", [(SwapOperands(),), (SwapOperands(share=0.2),), (SwapOperands(), Turned())])
@pytest.mark.parametrize("batch_size", [None, 20])
@pytest.mark.parametrize("embed", [None, 10])
def test_the_fused_step_is_as_good_as_autograd(fused, judge, changes, batch_size, embed):
    options = {"schedule.batch_size": batch_size, "model.embed": embed}
    experiments = [changed(QUICK.override({**options, "seed": seed}), changes) for seed in (0, 1)]
    ours, (loss, accuracy, grad) = gradients(experiments, "float32", "auto", 0)
    assert ours.choice.name == FUSED
    _, by_torch = gradients(experiments, "float32", "reference", 0)
    _, exact = gradients(experiments, "float64", "reference", 0)
    as_they_are = [changed(one, [SwapOperands(share=0.0)]) for one in experiments]
    assert not torch.allclose(gradients(as_they_are, "float64", "reference", 0)[1][2], exact[2])
    judge(loss, by_torch[0], exact[0])
    assert torch.equal(accuracy, exact[1].float())
    for name, own in ours.runs.layout.views(grad).items():
        judge(own, ours.runs.layout.views(by_torch[2])[name], ours.runs.layout.views(exact[2])[name])


def test_each_step_has_its_own_rows_the_same_alone_as_in_company(fused):
    experiments = [changed(QUICK.override({"seed": seed}), [SwapOperands()]) for seed in range(3)]
    together, found = gradients(experiments, "float32", "auto", 5)
    alone, expected = gradients(experiments[1:2], "float32", "auto", 5)
    assert torch.equal(together.flat[1], alone.flat[0])
    assert all(torch.equal(own[1], of_one[0]) for own, of_one in zip(found, expected))
    batch = alone.orders.batch(5)
    shown = [alone.runs.augment(*alone.runs.chosen("train", batch)[:2], slice(None))[0]]
    alone.step()
    shown.append(alone.runs.augment(*alone.runs.chosen("train", batch)[:2], slice(None))[0])
    assert not torch.equal(*shown)


def test_the_curve_is_that_of_plain_pytorch(fused):
    experiment = changed(QUICK, [SwapOperands()])
    ours = train(experiment)
    with backend.using("reference"):
        theirs = train(experiment)
    for column in ("train_loss", "test_loss", "weight_norm"):
        own, their = (torch.as_tensor(result.curves[column]).double() for result in (ours, theirs))
        torch.testing.assert_close(own, their, rtol=1e-4, atol=1e-6)


def test_rows_out_of_range_are_refused(fused):
    @dataclass(frozen=True)
    class Beyond(Change):
        def augment(self, inputs, targets, step, seeds):
            return inputs + 100, targets

    ensemble = Ensemble([changed(QUICK, [Beyond()])])
    with pytest.raises(IndexError, match=r"pairs\[\.\.\., 0\] must be in \[0, 13\), got 1"):
        ensemble.step()


def test_dropout_leaves_it_to_autograd(fused):
    experiment = changed(QUICK.override({"model.dropout": 0.1}), [SwapOperands()])
    assert Ensemble([experiment]).choice.name == OPERATIONS
