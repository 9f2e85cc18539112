"""GrokAdamW's filter against its equation, and what it hears of evaluations."""

import math

import pytest
import torch

from grokfast import EMA, Experiment, GrokAdamW, GrokFast
from grokfast.training.ensemble import Ensemble
from grokfast.training.replay import Replay
from tests.transforms.trajectory import OPTIMIZERS, Loop, cases, in_ensemble


class ByHand(Loop):
    def __init__(self, transform):
        super().__init__(transform)
        self.averages, self.gap = {}, 0.0

    def observe(self, train_loss, test_loss):
        self.gap = max(0.0, test_loss - train_loss) / max(test_loss, train_loss)

    def before(self, weights, grads, step):
        alpha = self.transform.alpha * math.exp(-self.transform.kappa * self.gap)
        for name, g in grads.items():
            self.averages[name] = alpha * self.averages.get(name, g) + (1 - alpha) * g
        return {name: g + self.transform.lamb * self.averages[name] for name, g in grads.items()}


test_it_is_its_equation = cases([GrokAdamW(0.9, 2.0, 0.5), GrokAdamW(0.98, 0.5, 2.0), GrokAdamW(0.8, 1.0, 1.0)], ByHand)


def test_without_decay_it_is_ema():
    own, ema = (in_ensemble([one] * 3, OPTIMIZERS["adamw"]) for one in (GrokAdamW(kappa=0.0), EMA()))
    torch.testing.assert_close(own, ema)


@pytest.mark.parametrize(
    ("train", "test", "gap"),
    [(1.0, 4.0, 0.75), (2.0, 1.0, 0.0), (0.0, 0.0, 0.0), (1.0, math.inf, 1.0), (1.0, math.nan, 0.0), (-2.0, -1.0, 0.0)],
)
def test_the_gap_is_a_share(train, test, gap):
    state = {"gap": torch.full((1, 1), 9.0)}
    GrokAdamW().observe(state, torch.tensor([[train]]), torch.tensor([[test]]))
    assert float(state["gap"]) == gap


@pytest.mark.parametrize("engine", ["eager", "replay"])
def test_evaluations_of_runs_tell_it(engine):
    base = Experiment.preset("quick").override({"task.p": 7, "model.width": 8, "device": "cpu", "filter": "grokadamw"})
    ensemble = Ensemble([base.override({"seed": seed}) for seed in range(2)])
    for _ in range(20):
        ensemble.step()
    if engine == "eager":
        records = ensemble.evaluate(goes_on=True)
    else:
        records = [report.record for report in Replay(ensemble, _outcomes(ensemble)).evaluate().read()]
    gaps = [max(0, r["test_loss"] - r["train_loss"]) / max(r["test_loss"], r["train_loss"]) for r in records]
    assert 0.1 < gaps[0] < gaps[1] or 0.1 < gaps[1] < gaps[0]
    torch.testing.assert_close(ensemble.optimizer.state["0.gap"][:, 0], torch.tensor(gaps), rtol=1e-5, atol=1e-6)
    assert "0.gap" in ensemble.checkpoint(0)


def _outcomes(ensemble):
    from grokfast.training.outcome import Outcome

    return [Outcome(experiment.criteria) for experiment in ensemble.experiments]


def test_a_script_tells_it_before_its_first_step_or_later():
    model = torch.nn.Linear(3, 2)
    optimizer = GrokFast(torch.optim.SGD(model.parameters(), lr=0.1), GrokAdamW())
    for losses in ((1.0, 2.0), (torch.tensor(1.0), torch.tensor(4.0))):
        optimizer.observe(*losses)
        gap = 1 - float(losses[0] / losses[1])
        assert [float(optimizer.state[p]["grokfast_0.gap"]) for p in model.parameters()] == [gap] * 2
        model(torch.ones(3)).sum().backward()
        optimizer.step()
    further = GrokFast(torch.optim.SGD(model.parameters(), lr=0.1), GrokAdamW())
    further.load_state_dict(optimizer.state_dict())
    assert float(further.state[model.weight]["grokfast_0.gap"]) == 0.75
    GrokFast(torch.optim.SGD(model.parameters(), lr=0.1), EMA()).observe(1.0, 2.0)  # which goes by no losses
