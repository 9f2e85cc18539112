"""The moving average keeps a running sum. It must stay as close to the window's exact sum as rounding of its recent
values allows, however long the run, and also when gradients shrink by orders of magnitude."""

import math
from collections import deque

import pytest
import torch
from torch import nn

from grokfast import MA, GrokFast, backend
from grokfast.optim.history import RING_KEY, SUM_KEY
from grokfast.optim.reference import filter_gradient

FALL = 1e-8


class Path:
    """Runs the filter as its users do, on the extension or on plain PyTorch; returns the running sum."""

    def __init__(self, name, size, window):
        self.name, self.filter = name, MA(window, warmup=False)
        self.p = nn.Parameter(torch.zeros(size))
        self.opt = GrokFast(torch.optim.SGD([self.p], lr=0.0), self.filter)

    def push(self, grad):
        if self.name == "reference":
            filter_gradient(self.filter, grad, self.opt.state.setdefault(self.p, {}))
        else:
            self.p.grad = grad
            self.opt.step()
        return self.opt.state[self.p][SUM_KEY]


@pytest.fixture(params=["extension", "reference"])
def path(request):
    if request.param == "extension":
        request.getfixturevalue("compiled")
    with backend.using("auto"):
        yield lambda size, window: Path(request.param, size, window)


def rounding(window, largest):
    """What rounding may add up to: 5 windows of two operations each, on sums of at most window * largest."""
    return 5 * 2 * window * window * largest * torch.finfo(torch.float32).eps / 2


@pytest.mark.slow
def test_the_sum_does_not_drift_in_a_hundred_thousand_steps(path, set_threads):
    set_threads(1)
    size, window, steps = 67, 7, 100_000
    pool = torch.randn(211, size, generator=torch.Generator().manual_seed(0))
    small = pool * FALL
    kept, naive, past = path(size, window), torch.zeros(size), deque([torch.zeros(size)] * window)
    for step in range(steps):
        grad = (pool if step < steps // 2 else small)[step % len(pool)]
        past.append(grad)
        naive.sub_(past.popleft()).add_(grad)
        got = kept.push(grad)
        if step in (steps // 2 - 1, steps // 2 + 5 * window, steps - 1):
            exact = torch.tensor([math.fsum(values) for values in torch.stack([*past]).T.tolist()]).double()
            allowed = rounding(window, max(g.abs().max().item() for g in past))
            assert (got - exact).abs().max() <= allowed
    assert (naive - exact).abs().max() > 100 * allowed  # a plain running sum fails
    assert torch.equal(kept.opt.state[kept.p][RING_KEY].sort(0).values, torch.stack([*past]).sort(0).values)


@pytest.mark.parametrize("size", [1, 16, 17, 262_144, 300_001, 600_000])
@pytest.mark.parametrize("window", [1, 3])
def test_every_element_is_summed_anew_within_four_windows(path, size, window, set_threads):
    g = torch.Generator().manual_seed(0)
    for threads in (1, 2):
        set_threads(threads)
        kept, past, naive = path(size, window), [], torch.zeros(size)
        for step in range(10 * window):
            grad = torch.randn(size, generator=g) * (1 if step < 5 * window else FALL)
            past.append(grad)
            naive.add_(grad).sub_(past[-1 - window] if len(past) > window else 0)
            got = kept.push(grad)
        exact = torch.stack(past[-window:]).double().sum(0)
        allowed = rounding(window, max(g.abs().max().item() for g in past[-window:]))
        assert (got - exact).abs().max() <= allowed
        if window > 1:
            assert (naive - exact).abs().max() > 10 * allowed  # a plain running sum fails
