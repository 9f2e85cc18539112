"""A held weight norm against its equation."""

import pytest
import torch

from grokfast import EMA, Chain, GrokFast, NormClamp
from tests.transforms.trajectory import OPTIMIZERS, Loop, cases, in_ensemble


class ByHand(Loop):
    def after(self, weights, step):
        length = sum(float((w * w).sum()) for w in weights.values()) ** 0.5
        scale = self.transform.norm / length
        scale = scale if self.transform.hold else min(1.0, scale)
        return {name: w * scale for name, w in weights.items()}


test_a_held_norm_is_its_equation = cases([NormClamp(5.0), NormClamp(8.0), NormClamp(20.0)], ByHand)
BOUNDED = [NormClamp(norm, hold=False) for norm in (5.0, 8.0, 9.5)]
test_a_bounded_norm_is_its_equation = cases(BOUNDED, ByHand)


@pytest.mark.parametrize("hold", [True, False])
def test_a_norm_is_held_or_bounded(hold):
    norms = (3.0, 9.0, 1000.0)
    found = in_ensemble([NormClamp(norm, hold=hold) for norm in norms], OPTIMIZERS["sgd"]).norm(dim=1)
    torch.testing.assert_close(found[:2], torch.tensor(norms[:2]).double())
    assert (float(found[2]) == pytest.approx(1000)) == hold


def test_only_what_is_named_is_counted_and_scaled():
    model = torch.nn.Linear(3, 2)
    bias = model.bias.detach().clone()
    optimizer = GrokFast(torch.optim.SGD(model.named_parameters(), lr=0.0), NormClamp(7.0, parameters="weight"))
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    assert float(model.weight.detach().norm()) == pytest.approx(7)
    assert torch.equal(model.bias, bias)


def test_a_script_takes_all_its_groups_and_precisions_as_one():
    a, b, off = (
        torch.nn.Parameter(torch.full((4,), 2.0, dtype=dtype))
        for dtype in (torch.float32, torch.bfloat16, torch.float32)
    )
    groups = [{"params": [a]}, {"params": [b]}, {"params": [off], "grokfast_enabled": False}]
    optimizer = GrokFast(torch.optim.SGD(groups, lr=0.0, weight_decay=1.0), Chain(EMA(), NormClamp(2.0**0.5)))
    for p in (a, b, off):
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert [p.tolist() for p in (a, b, off)] == [[0.5] * 4, [0.5] * 4, [2.0] * 4]


def test_zeros_stay():
    flat = torch.nn.Parameter(torch.zeros(3))
    optimizer = GrokFast(torch.optim.SGD([flat], lr=0.0), NormClamp())
    flat.grad = torch.ones(3)
    optimizer.step()
    assert not flat.any()
