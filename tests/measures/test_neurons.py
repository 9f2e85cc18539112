"""Frequencies of neurons: of written-down activations, and of the definition by sines and cosines."""

import math

import pytest
import torch

from grokfast.measures.neurons import frequency_of_neurons

P = 11
A, B = torch.meshgrid(torch.arange(P), torch.arange(P), indexing="ij")
W = 2 * math.pi / P


def test_a_block_is_what_depends_on_one_frequency_of_a_and_of_b():
    activations = torch.stack(
        [
            torch.cos(W * 3 * A) + 2 + 0.5 * torch.sin(W * 3 * (A + B)),
            torch.cos(W * 2 * A) * torch.sin(W * 2 * B),
            torch.cos(W * A) + torch.cos(W * 4 * B),  # half of each
            torch.relu(torch.cos(W * 4 * A - 1) + torch.cos(W * 4 * B)),
            torch.full((P, P), 0.3),
        ],
        -1,
    )
    frequency, share = frequency_of_neurons(torch.stack([activations, activations.flip(-1)]))
    assert frequency[0, [0, 1, 3]].tolist() == [3, 2, 4]
    assert share[0, :3].tolist() == pytest.approx([1, 1, 0.5])
    assert 0.9 < share[0, 3] < 1
    assert share[0, 4].isnan()  # constant
    assert torch.equal(frequency[1, [4, 3, 1]], frequency[0, [0, 1, 3]])


def test_shares_are_projections_on_products_of_sines_and_cosines():
    x = torch.randn(P, P, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    frequency, share = frequency_of_neurons(x)
    flat = (x - x.mean((0, 1))).flatten(0, 1)
    shares = []
    for k in range(1, (P + 1) // 2):
        waves = [torch.ones(P).double(), *(f(W * k * torch.arange(P).double()) for f in (torch.cos, torch.sin))]
        basis = torch.stack([torch.kron(u / u.norm(), v / v.norm()) for u in waves for v in waves][1:])
        shares.append((basis @ flat).square().sum(0) / flat.square().sum(0))
    largest, which = torch.stack(shares).max(0)
    assert share.tolist() == pytest.approx(largest.tolist())
    assert torch.equal(frequency, which + 1)


@pytest.mark.parametrize("value", [torch.ones(3, 4, 2), torch.ones(2, 2, 1), torch.ones(5, 5)])
def test_bad_shapes_are_told(value):
    with pytest.raises(ValueError, match=r"activations must be \[..., p, p, N\]"):
        frequency_of_neurons(value)
    with pytest.raises(TypeError, match="activations must be a floating-point tensor"):
        frequency_of_neurons([1])
