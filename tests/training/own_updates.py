"""Training written out by hand in fp64: a network's gradients by autograd, and an update that a test writes from its
equation; and the same in an ensemble of three, alone, and taken up in the middle."""

import torch
import torch.nn.functional as F

from grokfast import Experiment
from grokfast.training.ensemble import Ensemble

STEPS = 50
BASE = Experiment.preset("quick").override({"task.p": 7, "model.width": 10, "precision": "float64", "device": "cpu"})


class Network:
    """The experiment's network as {name: tensor}, and its loss and gradients there."""

    def __init__(self, experiment, loss=F.cross_entropy):
        self.data, self.loss = experiment.task.build(seed=experiment.seed), loss
        self.module = experiment.model.initial(self.data, seeds=(experiment.seed,), dtype=torch.float64)
        self.start = {name: p.detach()[0].clone() for name, p in self.module.named_parameters()}

    def gradients(self, weights):
        given = {name: w[None].clone().requires_grad_() for name, w in weights.items()}
        logits = torch.func.functional_call(self.module, given, (self.data.train.inputs[None],))
        loss = self.loss(logits[0], self.data.train.targets)
        return dict(zip(given, (g[0] for g in torch.autograd.grad(loss, list(given.values())))))


def trained(experiments, steps=STEPS, resumed_at=None):
    """An ensemble after some steps; all of it saved, made anew and restored after `resumed_at` of them."""
    ensemble = Ensemble(experiments)
    for _ in range(resumed_at or steps):
        ensemble.step()
    if resumed_at is not None:
        saved = [{n: t.clone() for n, t in ensemble.checkpoint(i).items()} for i in range(len(experiments))]
        ensemble = Ensemble(experiments)
        for i, tensors in enumerate(saved):
            ensemble.restore(i, tensors, resumed_at)
        for _ in range(steps - resumed_at):
            ensemble.step()
    return ensemble


def check(experiments, by_hand, tolerance=1e-9):
    """The trajectories end as `by_hand(experiment)`, {name: tensor}, says: in company, alone, and resumed, which is to
    the same bits."""
    together = trained(experiments)
    resumed = trained(experiments, resumed_at=STEPS // 2)
    assert torch.equal(together.flat, resumed.flat)
    for i, experiment in enumerate(experiments):
        alone = trained([experiment])
        expected = by_hand(experiment)
        for name, own in together.weights(i).items():
            size = expected[name].norm() + 1e-30
            assert (own - expected[name]).norm() <= tolerance * size, name
            assert (alone.weights(0)[name] - expected[name]).norm() <= tolerance * size, name
        moved = sum((own - start).norm() for own, start in zip(expected.values(), Network(experiment).start.values()))
        assert moved > 1e-2  # it has gone somewhere
