"""What a step needs beside gradients, kept on the device: by plain PyTorch and by the kernel."""

import pytest
import torch

from grokfast import EMA, backend
from grokfast.transforms import sizes
from grokfast.transforms.clock import Clock
from grokfast.transforms.flat import FlatOptimizer
from grokfast.transforms.optimizers import AdamW
from grokfast.transforms.sizes import ROW_BLOCK as BLOCK
from grokfast.transforms.sizes import ROW_CHUNK as CHUNK

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CONFIGS = [AdamW(lr=0.3), AdamW(lr=0.1, warmup=3), AdamW(lr=1e-2, warmup=7)]


def clock_of(configs):
    return Clock(configs, [None] * len(configs), DEVICE)


def nothing(models, size=5):
    """A gradient and a loss that are finite, and who has diverged: none."""
    grad, loss = torch.zeros(models, size, device=DEVICE), torch.zeros(models, device=DEVICE)
    return grad, loss, torch.full((models,), -1, device=DEVICE)


def test_rates_follow_each_models_warm_up(engine):
    clock = clock_of(CONFIGS)
    for step in range(9):
        clock.tick(*nothing(3))
        expected = [c.lr * (min(1.0, step / c.warmup) if c.warmup else 1.0) for c in CONFIGS]
        assert clock.hyper[:, 0].tolist() == expected
        assert clock.steps.tolist() == [step + 1] * 3
        assert clock.at == step + 1


def test_it_goes_on_from_any_step(engine):
    clock = clock_of(CONFIGS)
    clock.seek(5)
    clock.tick(*nothing(3))
    assert clock.hyper[2, 0] == CONFIGS[2].lr * 5 / 7
    assert clock.steps.tolist() == [6, 6, 6]
    assert clock.counts.tolist() == [5, 5, 5]  # the update's to count


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("size", [1, BLOCK + 1, CHUNK + 3])
def test_the_first_step_that_is_not_finite_is_noted(engine, bad, size):
    clock = clock_of(CONFIGS)
    grad, loss, diverged_at = nothing(3, size)
    clock.seek(4)
    clock.tick(grad, loss, diverged_at)
    assert diverged_at.tolist() == [-1, -1, -1]
    grad[1, -1], loss[2] = bad, bad
    clock.tick(grad, loss, diverged_at)
    grad[:], loss[:] = bad, bad
    clock.tick(grad, loss, diverged_at)
    assert diverged_at.tolist() == [6, 5, 5]


@pytest.mark.parametrize("size", [1, BLOCK + 1, CHUNK + 3])
def test_partial_gradients_are_added_in_their_order(engine, size):
    clock = clock_of(CONFIGS)
    _, loss, diverged_at = nothing(3)
    parts = torch.randn(4, 3, size, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    expected = ((parts[0] + parts[1]) + parts[2]) + parts[3]
    grad = clock.tick(parts, loss, diverged_at)
    assert torch.equal(grad, expected)
    assert grad.data_ptr() == parts.data_ptr()  # the optimizer finds it there at every step
    assert diverged_at.tolist() == [-1, -1, -1]
    parts[2, 1, -1] = float("nan")
    clock.tick(parts, loss, diverged_at)
    assert diverged_at.tolist() == [-1, 1, -1]


@pytest.mark.parametrize("many", [1, 1 << 20])
def test_how_programs_share_a_gradient_changes_nothing(many, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(sizes, "MANY", many)
    clock, (grad, loss, diverged_at) = clock_of(CONFIGS), nothing(3, CHUNK + BLOCK + 3)
    grad[0, -1] = grad[1, CHUNK - 1] = float("inf")
    with backend.using("triton"):
        clock.tick(grad, loss, diverged_at)
    assert diverged_at.tolist() == [0, 0, -1]
    assert clock.steps.tolist() == [1, 1, 1]


def test_hyper_parameters_of_another_number_of_models_are_refused():
    flat = torch.zeros(3, 16)
    with pytest.raises(ValueError, match="configs must be one per model, 3, got 2"):
        FlatOptimizer(flat, CONFIGS[:2], [None] * 3)
    with pytest.raises(ValueError, match="filters must be one per model, 3, got 4"):
        FlatOptimizer(flat, CONFIGS, [EMA()] * 4)
    with pytest.raises(ValueError, match="filters must be one per model, 3, got 1"):
        Clock(CONFIGS, [None], DEVICE)
