"""Dropout's masks: shares, independence, the same alone as in company, and nothing of the host."""

import pytest
import torch

from grokfast.nn.masks import Counted, Generated, dropout
from grokfast.seeds import generator

KEYS = torch.tensor([3, 4, 2**31 + 5])


def counted(keys=KEYS, step=7, rate=None):
    return Counted(keys, torch.full((len(keys),), step), rate)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_shares_are_right_and_the_mean_is_kept(p):
    x = torch.ones(3, 400, 500)
    out = dropout(x, p, True, counted())
    n, sd = 200_000, (p * (1 - p) / 200_000) ** 0.5
    for e in range(3):
        assert abs((out[e] == 0).double().mean().item() - p) < 5 * sd, n
    assert set(out.unique().tolist()) == {0.0, (torch.ones(()) / (1 - p)).item()}


def test_models_steps_and_draws_are_independent():
    """Correlations of 200,000 masks of 1/2 are within five standard deviations of 0; so are those of neighbours."""
    x, found = torch.ones(3, 400, 500), []
    for step in (0, 1, 2, 2**40):
        masks = counted(step=step)
        found += [masks.keep(x, 0.5).double().flatten(1) for _ in range(3)]
    signs = 2 * torch.cat(found) - 1  # [36, n]
    n = signs.shape[1]
    correlation = signs @ signs.T / n
    correlation.fill_diagonal_(0)
    assert correlation.abs().max() < 5 / n**0.5
    for lag in (1, 2, 500):
        assert (signs[:, lag:] * signs[:, :-lag]).mean(1).abs().max() < 5 / n**0.5


def test_a_model_draws_the_same_alone_and_in_any_row_of_a_longer_batch():
    x = torch.rand(3, 20, 4, 5)
    together = counted().keep(x, 0.3)
    for e in range(3):
        assert torch.equal(counted(KEYS[e : e + 1]).keep(x[e : e + 1], 0.3)[0], together[e])
    longer = counted().keep(torch.rand(3, 30, 4, 5), 0.3)
    assert torch.equal(longer[:, :20], together)


@pytest.mark.parametrize("make", [counted, lambda rate=None: Generated([generator(i, "x") for i in range(3)], rate)])
def test_rates_of_models_are_their_own(make):
    rates = torch.tensor([0.0, 0.25, 0.9], dtype=torch.float64)
    x = torch.rand(3, 50, 40)
    out = dropout(x, 0.5, True, make(rate=rates))
    assert torch.equal(out[0], x[0])
    for e, p in ((1, 0.25), (2, 0.9)):
        assert (out[e] == 0).double().mean().item() == pytest.approx(p, abs=0.05)
        same = dropout(x, p, True, make())[e]
        torch.testing.assert_close(out[e], same, rtol=1e-6, atol=0)
    assert torch.equal(dropout(x, 0.5, False, make(rate=rates)), x)


def test_gradients_are_those_of_the_kept():
    x = torch.rand(2, 6, 5, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(dropout(x, 0.25, True, counted(KEYS[:2])).sum(), x)
    assert torch.equal(grad, counted(KEYS[:2]).keep(x, 0.25) / 0.75)


def test_on_meta_nothing_is_asked():
    x = torch.rand(3, 5, device="meta")
    dropout(x, 0.5, True, Counted(KEYS.to("meta"), KEYS.to("meta"), KEYS.double().to("meta")))
