"""Several averages at once against their equation."""

import pytest
import torch

from grokfast import EMA, MultiEMA
from tests.transforms.trajectory import LAYOUT, OPTIMIZERS, Loop, cases, in_ensemble


class ByHand(Loop):
    def __init__(self, transform):
        super().__init__(transform)
        self.averages = {}

    def before(self, weights, grads, step):
        found = {}
        for name, g in grads.items():
            found[name] = g.clone()
            for k, (alpha, lamb) in enumerate(zip(self.transform.alphas, self.transform.lambs)):
                e = self.averages.get((name, k), g)
                self.averages[name, k] = alpha * e + (1 - alpha) * g
                found[name] += lamb * self.averages[name, k]
        return found


STRENGTHS = [MultiEMA((0.5, 0.9), (1.0, 0.5)), MultiEMA((0.98, 0.8), (2.0, 0.1)), MultiEMA((0.0, 1.0), (0.3, 0.7))]
test_it_is_its_equation = cases(STRENGTHS, ByHand)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_scale_is_ema(optimizer):
    alone = in_ensemble([EMA(0.9, 2.0)] * 3, OPTIMIZERS[optimizer])
    torch.testing.assert_close(in_ensemble([MultiEMA((0.9,), (2.0,))] * 3, OPTIMIZERS[optimizer]), alone)


def test_scales_are_numbers_and_as_many_as_strengths():
    assert MultiEMA([0.5], [1]) == MultiEMA((0.5,), (1.0,))
    for alphas, lambs, error, message in (
        ((0.5, 0.9), (1.0,), ValueError, "lambs must be one for each of the 2 alphas, got 1"),
        ((), (), TypeError, r"alphas must be numbers, at least one, got \(\)"),
        (0.5, (1.0,), TypeError, "alphas must be numbers, at least one, got 0.5"),
        ((0.5, 1.5), (1.0, 1.0), ValueError, r"alphas\[1\] must be in \[0.0, 1.0\], got 1.5"),
        ((0.5,), ("x",), TypeError, r"lambs\[0\] must be a number, got 'x'"),
    ):
        with pytest.raises(error, match=message):
            MultiEMA(alphas, lambs)


def test_runs_that_train_together_have_equally_many():
    several = [MultiEMA(), MultiEMA((0.5,), (1.0,)), MultiEMA()]
    with pytest.raises(ValueError, match=r"multi_ema.alphas must be equally many numbers for all models, got"):
        in_ensemble(several, OPTIMIZERS["sgd"])
    assert MultiEMA().state(LAYOUT) == {"ema": (2, LAYOUT.size)}
