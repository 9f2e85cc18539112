"""⊥Grad against its equation."""

import pytest
import torch

from grokfast import OrthoGrad
from tests.transforms.trajectory import LAYOUT, Loop, cases, rows, tensors


class ByHand(Loop):
    def before(self, weights, grads, step):
        found = {}
        for name, g in grads.items():
            w = weights[name]
            rest = g - self.transform.share * (w * g).sum() / ((w * w).sum() + 1e-30) * w
            found[name] = g if g.numel() == 1 else rest * g.norm() / (rest.norm() + 1e-30)
        return found


test_it_is_its_equation = cases([OrthoGrad(0.2), OrthoGrad(0.7), OrthoGrad(1.0)], ByHand)


def applied(transform, grad, weights):
    hyper = {"share": torch.full((len(grad), 1), transform.share, dtype=grad.dtype)}
    transform.apply(grad, weights, {}, hyper, LAYOUT, torch.zeros(1, 1, dtype=torch.int64))
    return grad


def test_nothing_is_left_along_the_weights_and_the_length_stays():
    weights, grad = rows(0), rows(1)
    found = LAYOUT.views(applied(OrthoGrad(), grad.clone(), weights))
    for model in range(3):
        raw, w = tensors(grad, model), tensors(weights, model)
        for name in ("embedding", "layers.0.weight", "bias"):
            g = found[name][model]
            assert float((g * w[name]).sum().abs()) < 1e-12
            torch.testing.assert_close(g.norm(), raw[name].norm())


def test_zeros_do_no_harm():
    grad = rows(1)
    assert torch.equal(applied(OrthoGrad(), grad.clone(), torch.zeros_like(grad)), grad)  # of a tensor not yet drawn
    assert not applied(OrthoGrad(), torch.zeros_like(grad), rows(0)).any()


def test_only_what_is_named_is_changed():
    grad, found = rows(1), applied(OrthoGrad(parameters="layers.*"), rows(1), rows(0))
    is_same = {name: torch.equal(g, LAYOUT.views(grad)[name]) for name, g in LAYOUT.views(found).items()}
    assert [name for name, same in is_same.items() if not same] == [f"layers.{i}.weight" for i in range(3)]


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_between_none_and_all(share):
    with pytest.raises(ValueError, match=r"^share must be in \[0, 1\], got"):
        OrthoGrad(share)
