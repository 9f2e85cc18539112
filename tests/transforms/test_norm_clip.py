"""Row-norm clip against its equation."""

import pytest
import torch

from grokfast import GrokFast, NormClip
from tests.transforms.trajectory import LAYOUT, OPTIMIZERS, Loop, cases, in_ensemble, rows


class ByHand(Loop):
    def after(self, weights, step):
        hidden = [name for name in weights if name.startswith("layers.")]
        for name in hidden:
            for row in weights[name]:
                row.mul_(min(1.0, self.transform.norm / float(row.norm())))
        return weights


test_it_is_its_equation = cases([NormClip(0.5), NormClip(1.0), NormClip(1.7)], ByHand)


def test_no_row_is_longer_and_the_short_ones_stay():
    found = in_ensemble([NormClip(1.0, "matrices")] * 3, OPTIMIZERS["sgd"])
    for name, w in LAYOUT.views(found).items():
        if w.ndim > 2:
            assert (w.norm(dim=2) <= 1 + 1e-12).all(), name
    flat = rows(0)
    NormClip().apply(flat, flat, {}, {"norm": torch.full((3, 1), 1e9)}, LAYOUT, torch.zeros(1, 1))
    assert torch.equal(flat, rows(0))


def test_a_row_of_zeros_stays():
    flat = torch.zeros(3, LAYOUT.size)
    NormClip().apply(flat, flat, {}, {"norm": torch.ones(3, 1)}, LAYOUT, torch.zeros(1, 1))
    assert not flat.any()


def test_without_names_a_script_has_groups():
    embedding, hidden = (torch.nn.Parameter(torch.full((2, 9), 1.0)) for _ in range(2))
    inner = torch.optim.SGD([{"params": embedding, "grokfast_enabled": False}, {"params": hidden}], lr=0.1)
    optimizer = GrokFast(inner, NormClip(1.0))
    embedding.grad, hidden.grad = torch.zeros(2, 9), torch.zeros(2, 9)
    optimizer.step()
    assert embedding.norm(dim=1).tolist() == [3, 3]
    torch.testing.assert_close(hidden.norm(dim=1), torch.ones(2))


def test_a_norm_is_above_zero():
    with pytest.raises(ValueError, match=r"^norm must be in \(0, inf\), got 0"):
        NormClip(0)
