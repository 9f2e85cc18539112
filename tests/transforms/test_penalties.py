"""Penalties against the gradients of what they add to the loss."""

import pytest
import torch

from grokfast import L1, Compression, Experiment, GrokFast, Nuclear, train
from tests.transforms.trajectory import LAYOUT, Loop, cases, rows, tensors


class ByHand(Loop):
    """With the gradient that autograd finds of the penalty."""

    def penalty(self, w):
        raise NotImplementedError

    def before(self, weights, grads, step):
        with torch.enable_grad():
            for name, w in weights.items():
                if w.ndim > 1:
                    own = w.clone().requires_grad_()
                    (added,) = torch.autograd.grad(self.transform.strength * self.penalty(own), own)
                    grads[name] = grads[name] + added
        return grads


class OfL1(ByHand):
    def penalty(self, w):
        return w.abs().sum()


class OfNuclear(ByHand):
    def penalty(self, w):
        return torch.linalg.matrix_norm(w, "nuc")


class OfCompression(ByHand):
    def penalty(self, w):
        return w.square().sum()


STRENGTHS = (0.1, 0.5, 2.0)
test_l1_is_its_equation = cases(list(map(L1, STRENGTHS)), OfL1)
test_nuclear_is_its_equation = cases(list(map(Nuclear, STRENGTHS)), OfNuclear, takes_graphs=False)
test_compression_is_its_equation = cases(list(map(Compression, STRENGTHS)), OfCompression)


@pytest.mark.parametrize("kind", [L1, Nuclear, Compression])
def test_one_of_no_strength_changes_nothing(kind):
    grad, hyper = rows(1), {"strength": torch.zeros(3, 1).double()}
    kind(0.0).apply(grad, rows(0), {}, hyper, LAYOUT, torch.zeros(1, 1))
    assert torch.equal(grad, rows(1))


def test_all_parameters_can_be_meant():
    grad = torch.zeros_like(rows(0))
    L1(parameters="all").apply(grad, rows(0), {}, {"strength": torch.ones(3, 1).double()}, LAYOUT, torch.zeros(1, 1))
    assert torch.equal(grad, rows(0).sign())
    assert float(tensors(grad, 0)["gain"]) in (-1, 1)


@pytest.mark.parametrize("kind", [L1, Nuclear, Compression])
def test_integer_parameters_are_refused(kind):
    whole = torch.nn.Parameter(torch.ones(3, 3, dtype=torch.int64), requires_grad=False)
    whole.grad = torch.ones(3, 3, dtype=torch.int64)
    with pytest.raises(TypeError, match=rf"must be floating-point for {kind.__name__}.*, got torch.int64"):
        GrokFast(torch.optim.SGD([whole], lr=1), kind()).step()


def test_a_strength_is_at_least_zero():
    with pytest.raises(ValueError, match=r"^strength must be in \[0, inf\), got -1"):
        Compression(-1)


WAITING = [
    {"filter": "compression(strength=0.5,start=memorizing)"},
    {"filter": "compression(strength=0)", "schedule.changes": "switch(of=strength,to=0.5,after=memorizing)"},
]


@pytest.mark.parametrize("said", WAITING)
def test_compression_can_wait_until_a_run_has_memorised(said):
    base = Experiment.preset("quick").override({"schedule.steps": 200, "schedule.eval_every": 20, "device": "cpu"})
    plain, delayed = train(base), train(base.override(said))
    norms = [result.curves["weight_norm"] for result in (plain, delayed)]
    first = list(plain.curves["step"]).index(plain.t_memorize)
    assert list(norms[0][: first + 1]) == list(norms[1][: first + 1])
    assert norms[1][-1] < norms[0][-1]
