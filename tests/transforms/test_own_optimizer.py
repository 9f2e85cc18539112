"""Optimizers by hand for 50 steps: Lion, and one of a user's own, which is torch operations."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from grokfast import EMA, parts
from grokfast.training.ensemble import Ensemble
from grokfast.transforms.optimizers import Optimizer
from tests.training.own_updates import BASE, STEPS, Network, check


@dataclass(frozen=True, kw_only=True)
class Signs(Optimizer):
    """w ← w − lr·share·sign(g + m), m ← g + m / 2."""

    rule: ClassVar = ""
    varies: ClassVar = frozenset({"lr", "share"})
    share: float = 1.0

    def state(self, layout):
        return {"m": (layout.size,)}

    def update(self, grad, weights, state, hyper, layout, step):
        weights.sub_((hyper["lr"] * hyper["share"]).to(grad) * (grad + state["m"]).sign())
        state["m"].mul_(0.5).add_(grad)


def by_hand(experiment):
    o, network = experiment.optimizer, Network(experiment)
    weights, kept = {n: w.clone() for n, w in network.start.items()}, {}
    for _ in range(STEPS):
        for name, g in network.gradients(weights).items():
            w, m = weights[name], kept.get(name, torch.zeros_like(g))
            if isinstance(o, Signs):
                w -= o.lr * o.share * (g + m).sign()
                kept[name] = g + m / 2
            else:
                beta1, beta2 = o.betas
                w -= o.lr * (o.weight_decay * w + (beta1 * m + (1 - beta1) * g).sign())
                kept[name] = beta2 * m + (1 - beta2) * g
    return weights


def test_lion_is_its_equation():
    base = BASE.override({"optimizer": "lion", "optimizer.lr": 1e-3})
    changes = [{}, {"optimizer.betas": (0.8, 0.9), "optimizer.lr": 3e-3}, {"optimizer.weight_decay": 0.0, "seed": 1}]
    check([base.override(change) for change in changes], by_hand)


def test_an_optimizer_of_ones_own_is_its_equation():
    base = BASE.override({"optimizer": Signs(lr=1e-3)})
    assert parts.shown(base.optimizer) == f"{__name__}:Signs"
    check([base.override({"optimizer.share": share}) for share in (1.0, 0.5, 3.0)], by_hand)


def test_a_filter_before_it_is_an_operation():
    ensemble = Ensemble([BASE.override({"optimizer": Signs(lr=1e-3), "filter": EMA(), "precision": "float32"})])
    ensemble.step()
    assert {*ensemble.optimizer.state} == {"m", "0.ema"}
