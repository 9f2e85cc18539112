"""Mixed precision: the filter sees unscaled gradients, and a skipped step leaves everything untouched."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from grokfast import EMA, MA, GrokFast
from tests.optim.by_hand import histories

INNER = {
    "adamw": torch.optim.AdamW,
    "adamw fused": lambda params: torch.optim.AdamW(params, fused=True),
    "adamw foreach": lambda params: torch.optim.AdamW(params, foreach=True),
    "sgd fused": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, fused=True),
    "rmsprop": torch.optim.RMSprop,
}


def train(inner, filter, *, scaled, clip, overflow_at=(), steps=9):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(10, 20), torch.nn.ReLU(), torch.nn.Linear(20, 3))
    x, y = torch.randn(32, 10), torch.randint(0, 3, (32,))
    optimizer = GrokFast(INNER[inner](model.parameters()), filter)
    # A power of two that stays: scaling and unscaling are exact, so the bits can be compared.
    scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=1024.0, growth_interval=10**6, backoff_factor=0.5)
    for step in range(steps):
        optimizer.zero_grad()
        scaler.scale(cross_entropy(model(x), y)).backward()
        if step in overflow_at:
            if not scaled:
                continue
            model[0].weight.grad[0, 0] = float("inf")
            before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        if clip:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
        if step in overflow_at:
            torch.testing.assert_close((model.state_dict(), optimizer.state_dict()), before, rtol=0, atol=0)
    return model.state_dict(), optimizer.state_dict()["state"]


@pytest.mark.parametrize("filter", [EMA(), MA(3, 1.0)])
@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("overflow_at", [(), (0, 4, 5)])
def test_scaling_changes_nothing(inner, filter, clip, overflow_at):
    options = {"clip": clip, "overflow_at": overflow_at}
    torch.testing.assert_close(
        train(inner, filter, scaled=True, **options), train(inner, filter, scaled=False, **options), rtol=0, atol=0
    )


def test_autocast_and_bf16_parameters_keep_a_float32_history():
    torch.manual_seed(0)
    model = torch.nn.Linear(10, 3, dtype=torch.bfloat16)
    optimizer = GrokFast(torch.optim.AdamW(model.parameters()), EMA())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.randn(4, 10)).square().mean().backward()
    optimizer.step()
    assert {t.dtype for history in histories(optimizer).values() for t in history.values()} == {torch.float32}
