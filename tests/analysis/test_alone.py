"""One model of an ensemble alone: the same outputs, losses and accuracies, for every kind of model."""

import pytest
import torch

from grokfast import Experiment, train
from grokfast.analysis.alone import alone
from grokfast.losses import MSE, CrossEntropy
from grokfast.models import Module, PairMLPConfig, TransformerConfig
from grokfast.tasks import ModularTask

TASK = ModularTask(p=5)


class Table(torch.nn.Module):
    def __init__(self, data):
        super().__init__()
        self.rows = torch.nn.Embedding(data.n_tokens, data.n_answers)

    def forward(self, tokens):
        return self.rows(tokens).sum(1)


@pytest.mark.parametrize(
    "config",
    [
        PairMLPConfig(width=4),
        TransformerConfig(d_model=4, n_heads=2, d_mlp=4, tied=True, positions="sinusoidal", norm="pre"),
        Module(factory=Table),
    ],
)
def test_each_model_is_itself_and_the_ensemble_is_left_alone(config):
    model = config.build(TASK.build(), seeds=(3, 4, 5))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    found = alone(model, TASK, split="test")
    assert [one.seed for one in found] == [3, 4, 5]
    for e, one in enumerate(found):
        data = TASK.build(seed=3 + e)
        x = data.test.inputs.expand(3, *data.test.inputs.shape)
        logits = model(x)[e : e + 1]
        torch.testing.assert_close(one.outputs(), logits)
        torch.testing.assert_close(one.outputs(rows=torch.tensor([2, 0])), logits[:, [2, 0]])
        loss, accuracy = one.measure()
        expected = torch.nn.functional.cross_entropy(logits[0], data.test.targets)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        assert accuracy.item() == pytest.approx((logits[0].argmax(-1) == data.test.targets).float().mean().item())
        torch.testing.assert_close(one.times(2).outputs(), logits.expand(2, -1, -1))
        assert one.double().outputs().dtype is torch.float64
        with torch.no_grad():
            for p in one.module.parameters():
                p.zero_()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_run_has_its_own_loss():
    run = train(
        Experiment.preset("quick").override(
            {"task.p": 5, "model.width": 4, "loss": "mse", "schedule.steps": 4, "schedule.eval_every": 2,
             "device": "cpu"}
        )
    )  # fmt: skip
    (one,) = alone(run)
    assert one.loss == MSE()
    assert one.measure()[0].item() == pytest.approx(run.final["train_loss"], rel=1e-5)
    assert one.of("test").measure()[0].item() == pytest.approx(run.final["test_loss"], rel=1e-5)
    assert alone(run, loss=CrossEntropy())[0].loss == CrossEntropy()
    with pytest.raises(ValueError, match="split must be one of 'train', 'test'"):
        one.of("tset")
