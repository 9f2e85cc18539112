"""Projections on frequencies, against the vectors that they are defined by."""

import math

import pytest
import torch

from grokfast.measures.progress import (
    at_frequencies,
    frequency_energies,
    key_frequencies,
    order_by_product,
    product_means,
)

P, C = 7, 5
A, B = torch.cartesian_prod(torch.arange(P), torch.arange(P)).unbind(1)
LOGITS = torch.randn(P * P, C, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def measured(logits, products):
    return product_means(logits, order_by_product(products, P), P)


def projector(k, sign):
    """[p², p²], u uᵀ + v vᵀ of the orthonormal cosines and sines of a and of b."""
    angles = 2 * math.pi * k * torch.arange(P, dtype=torch.float64) / P
    c, s = (2 / P) ** 0.5 * angles.cos(), (2 / P) ** 0.5 * angles.sin()
    u = (torch.kron(c, c) - sign * torch.kron(s, s)) / 2**0.5
    v = (torch.kron(s, c) + sign * torch.kron(c, s)) / 2**0.5
    assert torch.stack([u, v]).square().sum(1).tolist() == pytest.approx([1, 1])
    return torch.outer(u, u) + torch.outer(v, v)


@pytest.mark.parametrize("sign", [1, -1])
def test_components_are_the_projections_on_u_and_v(sign):
    products = (A + sign * B) % P
    means, energy = measured(LOGITS, products)
    rows = LOGITS - LOGITS.mean(1, keepdim=True)
    energies = []
    for k in (1, 2, 3):
        projected = projector(k, sign) @ rows
        chosen = torch.arange(1, 4) == k
        assert torch.allclose(at_frequencies(means, chosen)[products], projected)
        energies.append(projected.square().sum().item())
    assert frequency_energies(means).tolist() == pytest.approx(energies)
    both = at_frequencies(means, torch.tensor([True, False, True]))[products]
    assert torch.allclose(both, (projector(1, sign) + projector(3, sign)) @ rows)
    assert energy.item() == pytest.approx((rows - rows.mean(0)).square().sum().item())


def test_batches_are_what_each_is_alone():
    stack = torch.stack([LOGITS, LOGITS.flip(0)]).float()
    products = torch.stack([(A + B) % P, (A - B) % P])
    means, energies = measured(stack, products)
    chosen = torch.tensor([[True, False, False], [False, True, True]])
    for e in range(2):
        alone, energy = measured(stack[e], products[e])
        assert torch.equal(alone, means[e])
        assert torch.equal(energy, energies[e])
        assert torch.allclose(at_frequencies(alone, chosen[e]), at_frequencies(means, chosen)[e])


def test_logits_of_one_frequency_have_all_energy_there():
    angle = 2 * math.pi * 2 * ((A + B)[:, None] - torch.arange(P)).double() / P
    logits = angle.cos()
    means, energy = measured(logits, (A + B) % P)
    shares = frequency_energies(means) / energy
    assert shares.tolist() == pytest.approx([0, 1, 0])
    assert key_frequencies(shares, 0.01).tolist() == [False, True, False]


def test_rows_that_do_not_count_change_nothing():
    products = (A + B) % P
    padded = torch.cat([torch.full((3, C), 9.0), LOGITS, torch.full((2, C), -1.0)])
    marked = torch.cat([torch.full((3,), P), products, torch.full((2,), P)])
    for found, expected in zip(measured(padded.double(), marked), measured(LOGITS, products)):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: product_means(torch.ones(8, 2), torch.arange(9), 3), r"logits must be .* n² = 9, got \[8, 2\]"),
        (lambda: product_means(torch.ones(9, 2), torch.arange(8), 3), r"order must be \[9\] or \[..., 9\]"),
        (lambda: key_frequencies(torch.ones(3), 1), r"threshold must be in \(0, 1\), got 1"),
    ],
)
def test_bad_input_is_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()
