"""Spectra: closed forms of cosines, square waves and constants."""

import math

import pytest
import torch

from grokfast.measures.spectra import (
    dominant_frequency,
    gini,
    inverse_participation_ratio,
    periodicity,
    phase,
    phase_sum,
    spectrum,
    squareness,
)

P = 97
J = torch.arange(P, dtype=torch.float64)


def cosine(k, phi=0.0, p=P):
    return torch.cos(2 * math.pi * k * torch.arange(p, dtype=torch.float64) / p - phi)


def test_a_cosine_is_one_frequency_with_its_amplitude_and_phase():
    waves = torch.stack([3 * cosine(5, 0.7), 0.5 * cosine(48, -2.9)]) + 1.5  # the mean is no frequency
    heights = spectrum(waves)
    assert heights.shape == (2, 48)
    expected = torch.zeros(2, 48, dtype=torch.float64)
    expected[0, 4], expected[1, 47] = 3 * P / 2, 0.5 * P / 2
    assert torch.allclose(heights, expected, atol=1e-10)
    assert dominant_frequency(waves).tolist() == [5, 48]
    assert phase(waves, torch.tensor([5, 48])).tolist() == pytest.approx([0.7, -2.9])
    assert phase(waves, 5)[0].item() == pytest.approx(0.7)


def test_the_spectrum_is_that_of_the_sums_it_is_defined_by():
    w = torch.randn(3, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    angles = 2 * math.pi * torch.outer(torch.arange(1, 6), torch.arange(11)) / 11
    sums = torch.hypot(w @ angles.cos().T.double(), w @ angles.sin().T.double())
    assert torch.allclose(spectrum(w), sums)


def test_periodicity_of_a_cosine_and_of_its_sign():
    assert periodicity(cosine(7, 0.3)).item() == pytest.approx(48)
    assert periodicity(cosine(7, 0.3).sign()).item() == pytest.approx(15.8, abs=0.1)
    assert periodicity(torch.eye(P)[0]).item() == pytest.approx(1)  # all frequencies alike


def test_participation_goes_from_all_frequencies_to_one():
    assert inverse_participation_ratio(cosine(3)).item() == pytest.approx(1)
    assert inverse_participation_ratio(torch.eye(P)[0]).item() == pytest.approx(1 / 48)
    assert inverse_participation_ratio(cosine(3) + cosine(8, 1.0)).item() == pytest.approx(1 / 2)


def test_gini_of_equal_and_of_single_values():
    assert gini(torch.full((2, 8), 3.0)).tolist() == pytest.approx([0, 0])
    assert gini(torch.tensor([0.0, 0, -5, 0])).item() == pytest.approx(3 / 4)
    x = torch.rand(9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    apart = (x[:, None] - x).abs().sum() / (2 * len(x) * x.sum())  # mean absolute difference over twice the mean
    assert gini(x).item() == pytest.approx(apart.item())


@pytest.mark.parametrize("k", [1, 5, 48])
def test_squareness_tells_a_square_wave_from_a_cosine(k):
    square = 2 * cosine(k, 0.4).sign()
    assert squareness(square).item() == 1
    assert squareness(cosine(k, 0.4)).item() < 0.35
    turned = (k * torch.arange(P) / P - 0.4 / (2 * math.pi)) % 1  # a quarter: the sign changes
    inside, edge = (turned - 0.45).abs().argmin(), (turned - 0.25).abs().argmin()
    for at, scores in ((inside, 1 - 1 / P), (edge, 1)):
        bent = square.clone()
        bent[at] *= 0.3
        assert squareness(bent).item() == pytest.approx(scores)
    noise = torch.randn(200, P, generator=torch.Generator().manual_seed(4))
    assert squareness(noise).mean() < 0.35


def test_phases_that_add_up_correlate_and_others_do_not():
    g = torch.Generator().manual_seed(2)
    n = 200
    a, b, free = (torch.rand(3, n, dtype=torch.float64, generator=g) * 2 * math.pi).unbind(0)
    k = torch.arange(n) % 48 + 1
    angles = 2 * math.pi * k.double()[:, None] * J / P

    def waves(phi):
        return torch.cos(angles - phi[:, None])

    found = phase_sum(waves(a), waves(b), waves(a + b + 0.25))
    assert found.r.item() == pytest.approx(1)
    assert found.structured.all()
    assert torch.equal(found.frequency, k)
    assert found.differences.tolist() == pytest.approx([0.25] * n)
    assert abs(phase_sum(waves(a), waves(b), waves(free)).r.item()) < 0.25
    assert phase_sum(waves(a), waves(b), waves(-a - b)).r.item() == pytest.approx(-1)


def test_only_structured_neurons_count():
    g = torch.Generator().manual_seed(3)
    a, b = torch.rand(2, 20, generator=g).double() * 6
    angles = 2 * math.pi * (torch.arange(20) % 48 + 1).double()[:, None] * J / P
    w_a, w_b, w_out = (torch.cos(angles - phi[:, None]) for phi in (a, b, a + b))
    w_b[3], w_out[4] = cosine(40), torch.randn(P, generator=g).double()
    found = phase_sum(*(torch.stack([w, w]) for w in (w_a, w_b, w_out)))  # batched over leading axes
    assert (~found.structured).nonzero().tolist() == [[0, 3], [0, 4], [1, 3], [1, 4]]
    assert torch.equal(found.differences.isnan(), ~found.structured)
    assert found.r.tolist() == pytest.approx([1, 1])


def test_half_precisions_and_even_moduli():
    assert dominant_frequency(cosine(3).bfloat16()).item() == 3
    assert spectrum(cosine(2, p=8)).shape == (3,)
    assert periodicity(cosine(2, p=8)).item() == pytest.approx(3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: spectrum([1.0]), TypeError, "w must be a tensor of floating-point numbers, got list"),
        (lambda: spectrum(torch.arange(5)), TypeError, "w must be a tensor of floating-point numbers, got torch.int64"),
        (lambda: periodicity(torch.ones(4, 2)), ValueError, r"w must have a last axis of at least 3, got \[4, 2\]"),
        (lambda: phase(torch.ones(7), 4), ValueError, "k must be between 1 and 3, got 4"),
        (lambda: phase(torch.ones(2, 7), torch.tensor([1])), ValueError, r"k must be int64 \[2\], one for each w"),
        (lambda: gini(torch.tensor(1.0)), ValueError, r"x must have a last axis of at least 1, got \[\]"),
        (lambda: squareness(torch.ones(7), tolerance=-1), ValueError, r"tolerance must be in \[0, inf\), got -1"),
        (
            lambda: phase_sum(torch.ones(2, 7), torch.ones(2, 7), torch.ones(3, 7)),
            ValueError,
            r"w_out must be \[..., N, p\] as w_a is, got \[3, 7\] and \[2, 7\]",
        ),
    ],
)
def test_bad_input_is_told(call, error, message):
    with pytest.raises(error, match=message):
        call()
