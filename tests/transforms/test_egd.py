"""Egalitarian gradient descent against its equation."""

import pytest
import torch

from grokfast import EGD, GrokFast
from grokfast.transforms import selection
from grokfast.transforms.spectra import unitary
from tests.transforms.trajectory import Loop, cases


class ByHand(Loop):
    def before(self, weights, grads, step):
        for name, g in grads.items():
            if g.ndim > 1:
                u, s, v = torch.linalg.svd(g, full_matrices=False)
                grads[name] = u @ torch.diag(s / s.clamp(min=self.transform.eps)) @ v
        return grads


# an eps within the singular values has one that is kept and one that is not
test_it_is_its_equation = cases([EGD(), EGD(0.5), EGD(2.0)], ByHand, takes_graphs=False)


@pytest.mark.parametrize("shape", [(30, 7), (7, 30), (1, 5), (6, 6)])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_small_singular_values_are_made_one_as_large_ones_are(shape, dtype, close):
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(2, 3, *shape, dtype=torch.float64), full_matrices=False)
    s = torch.logspace(0, -3, min(shape), dtype=torch.float64)
    found = unitary((u * s @ v).to(dtype), torch.full((1, 1, 1, 1), 1e-6, dtype=dtype))
    torch.testing.assert_close(
        torch.linalg.svdvals(found.double()), torch.ones(2, 3, min(shape)).double(), rtol=0, atol=close
    )


def test_a_gradient_of_zeros_stays():
    assert not unitary(torch.zeros(1, 1, 3, 4), torch.full((1, 1, 1, 1), 1e-6)).any()


def test_vectors_are_passed_by_which_is_said_once():
    selection._say.cache_clear()
    model = torch.nn.Linear(3, 2)
    optimizer = GrokFast(torch.optim.SGD(model.parameters(), lr=1.0), EGD())
    before = model.bias.detach().clone()

    def train():
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(3)).sum().backward()
            optimizer.step()

    with pytest.warns(UserWarning, match="EGD is for matrices: it leaves biases and other vectors as they are") as said:
        train()
    assert len(said) == 1
    torch.testing.assert_close(model.bias.detach(), before - 3)


def test_its_steps_are_not_captured():
    inner = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2, 2))], capturable=True)
    with pytest.raises(ValueError, match=r"EGD.* needs the host, which a captured step does without"):
        GrokFast(inner, EGD())


def test_the_floor_is_above_zero():
    with pytest.raises(ValueError, match=r"^eps must be in \(0, inf\), got 0"):
        EGD(0)
