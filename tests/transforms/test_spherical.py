"""Weights on spheres against their equation."""

import pytest
import torch

from grokfast import GrokFast, Spherical
from grokfast.transforms import selection
from tests.transforms.trajectory import LAYOUT, Loop, cases, rows


class ByHand(Loop):
    def after(self, weights, step):
        for w in weights.values():
            if self.transform.over == "tensors" and w.norm() > 0 and w.ndim > 1:
                w.mul_(self.transform.norm / w.norm())
            elif self.transform.over == "rows" and w.ndim > 1:
                for row in w:
                    row.mul_(self.transform.norm / row.norm())
        return weights


test_rows_are_their_equation = cases([Spherical(0.5), Spherical(1.0), Spherical(2.0)], ByHand)
TENSORS = [Spherical(norm, "tensors") for norm in (0.5, 1.0, 2.0)]
test_tensors_are_their_equation = cases(TENSORS, ByHand)


@pytest.mark.parametrize("over", ["rows", "tensors"])
def test_zeros_stay(over):
    flat = torch.zeros(3, LAYOUT.size)
    Spherical(1.0, over).apply(flat, flat, {}, {"norm": torch.ones(3, 1)}, LAYOUT, torch.zeros(1, 1))
    assert not flat.any()


def test_only_what_is_named_is_changed():
    flat = rows(0)
    Spherical(1.0, "tensors", "bias").apply(flat, flat, {}, {"norm": torch.ones(3, 1)}, LAYOUT, torch.zeros(1, 1))
    is_same = {n: torch.equal(w, LAYOUT.views(rows(0))[n]) for n, w in LAYOUT.views(flat).items()}
    assert [name for name, same in is_same.items() if not same] == ["bias"]


def test_vectors_have_no_rows_which_is_said_once():
    selection._say.cache_clear()
    vector = torch.nn.Parameter(torch.ones(3))
    optimizer = GrokFast(torch.optim.SGD([vector], lr=0.1), Spherical(parameters="all"))
    vector.grad = torch.ones(3)
    with pytest.warns(UserWarning, match="Spherical is for matrices: it leaves biases"):
        optimizer.step()
    torch.testing.assert_close(vector.detach(), torch.full((3,), 0.9))
