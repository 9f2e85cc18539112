"""Transforms that start later, or stop, in an ensemble: each model at its own time."""

import dataclasses

import pytest
import torch

from grokfast import EMA, MA, backend
from grokfast.transforms import Chain, Layout
from grokfast.transforms.chain import elements
from grokfast.transforms.flat import FlatOptimizer
from grokfast.transforms.optimizers import SGD, AdamW
from tests.transforms.own import Clamp, Orthogonal

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LAYOUT = Layout.of({"w": (7, 5), "b": (7,)})
STEPS, MEMORIZED = 50, (11, 20, -1)  # after which steps each model was found to have memorised
SPANS = ({"start": 3, "stop": 30}, {"start": "memorizing", "stop": 41}, {"start": 7})
EDGES = ((3, 30), (20, 41), (7, STEPS))
ADAM = [AdamW(lr=1e-2, weight_decay=0.5), AdamW(lr=3e-2), AdamW(lr=1e-2, warmup=4)]
MOMENTUM = [SGD(lr=0.1, momentum=0.9)] * 3


def spanned(transform):
    return [dataclasses.replace(transform, **span) for span in SPANS]


FILTERS = {
    "ema": spanned(EMA(0.9, 2.0)),
    "ma": spanned(MA(4, 2.0)),
    "ma-sum": spanned(MA(3, 0.5, "sum", False)),
    "before": spanned(Orthogonal(0.7)),
    "after": spanned(Clamp(1.2)),
    "chain": [Chain(a, EMA(0.8, 1.0), b) for a, b in zip(spanned(Orthogonal(0.7)), spanned(Clamp(1.2))[::-1])],
    "chain-of-two": [Chain(MA(3, 1.0, start=5 + i), EMA(0.8, 1.0, stop=20 - i)) for i in range(3)],
}


def rows(seed, dtype):
    return torch.randn(3, LAYOUT.size, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def made(flat, configs, filters, steps=0, state=None):
    optimizer = FlatOptimizer(flat, configs, filters, LAYOUT)
    for name, t in (state or {}).items():
        optimizer.state[name].copy_(t)
    optimizer.steps = steps
    return optimizer


def trained(filters, configs=ADAM, dtype=torch.float64, resumed_at=None):
    """Weights and optimizer after all steps; begun anew from what was kept after `resumed_at` of them."""
    flat = rows(0, dtype)
    optimizer = made(flat, configs, filters)
    for step in range(STEPS):
        if step == resumed_at:
            flat = flat.clone()
            optimizer = made(flat, configs, filters, step, optimizer.state)
        reached = [at if 0 <= at <= step else -1 for at in MEMORIZED]
        optimizer.reached[0] = torch.tensor(reached, device=DEVICE)
        optimizer.step(flat, rows(1 + step, dtype))
    return flat, optimizer


class ByHand:
    """One transform of one model, from its equation, in float64; on from `start` on and before `stop`."""

    def __init__(self, transform, memorized):
        def step_of(edge, otherwise):
            return otherwise if edge is None else memorized if edge == "memorizing" else edge

        self.transform = transform
        self.start, self.stop = step_of(transform.start, 0), step_of(transform.stop, STEPS)
        self.slow, self.window = None, []

    def __call__(self, grad, weights, step):
        t = self.transform
        if not self.start <= step < self.stop:
            return
        if isinstance(t, EMA):
            self.slow = grad.clone() if self.slow is None else t.alpha * self.slow + (1 - t.alpha) * grad
            grad += t.lamb * self.slow
        elif isinstance(t, MA):
            self.window = [*self.window, grad.clone()][-t.window_size :]
            if not t.warmup or len(self.window) == t.window_size:
                grad += t.lamb * sum(self.window) / (len(self.window) if t.filter_type == "mean" else 1)
        elif isinstance(t, Orthogonal):
            for part in (slice(0, 35), slice(35, 42)):
                g, w = grad[part], weights[part]
                g -= t.share * (w @ g) / (w @ w + 1e-30) * w
        else:
            w = weights[:35].view(7, 5)
            w *= (t.most / w.norm(dim=1, keepdim=True)).clamp(max=1)


def by_hand(filters, configs):
    found = []
    for model, (filter, config) in enumerate(zip(filters, configs)):
        weights = rows(0, torch.float64)[model].requires_grad_()
        options = {"lr": config.lr, "weight_decay": config.weight_decay}
        if config.rule == "sgd":
            torchs = torch.optim.SGD([weights], momentum=config.momentum, **options)
        else:
            torchs = torch.optim.AdamW([weights], betas=config.betas, **options)
        own = [ByHand(one, MEMORIZED[model]) for one in elements(filter)]
        for step in range(STEPS):
            weights.grad = rows(1 + step, torch.float64)[model]
            for when in ("before", "after"):
                for one in own:
                    if one.transform.when == when:
                        one(weights.grad, weights.detach(), step)
                if when == "before":
                    torchs.param_groups[0]["lr"] = config.lr * (min(1, step / config.warmup) if config.warmup else 1)
                    torchs.step()
        found.append(weights.detach())
    return torch.stack(found)


@pytest.mark.parametrize("configs", [ADAM, MOMENTUM], ids=["adamw", "sgd"])
@pytest.mark.parametrize("filter", FILTERS)
def test_each_model_has_its_transforms_while_they_are_on(filter, configs):
    expected = by_hand(FILTERS[filter], configs)
    exact, _ = trained(FILTERS[filter], configs, resumed_at=25)
    torch.testing.assert_close(exact, expected, rtol=1e-10, atol=1e-12)
    always = [Chain(*(dataclasses.replace(one, start=0, stop=None) for one in elements(f))) for f in FILTERS[filter]]
    assert not torch.allclose(trained(always, configs)[0], expected, rtol=1e-3)


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("engine", ["auto", "reference", "triton"])
def test_every_engine_follows_and_resumes_to_the_same_bits(engine, filter):
    if engine == "triton":
        pytest.importorskip("triton")
    with backend.using(engine):
        flat, _ = trained(FILTERS[filter], dtype=torch.float32)
        torch.testing.assert_close(flat.double(), by_hand(FILTERS[filter], ADAM), rtol=1e-3, atol=1e-4)
        for at in (2, 15, 35):
            assert torch.equal(flat, trained(FILTERS[filter], dtype=torch.float32, resumed_at=at)[0])


@pytest.mark.parametrize("filter", ["ema", "ma", "before", "after"])
@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_what_is_off_changes_nothing(engine, filter):
    never = [dataclasses.replace(one, start="generalizing", stop=None) for one in FILTERS[filter]]
    with backend.using(engine):
        flat, optimizer = trained(never, dtype=torch.float32)
        assert torch.equal(flat, trained([None] * 3, dtype=torch.float32)[0])
    assert not any(t.any() for name, t in optimizer.state.items() if not name.startswith("exp_avg"))


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("filter", FILTERS)
def test_a_model_goes_on_as_before_when_others_leave(engine, filter):
    with backend.using(engine):
        flat = rows(0, torch.float32)
        optimizer = made(flat, ADAM, FILTERS[filter])
        optimizer.reached[0] = torch.tensor([11, 5, -1], device=DEVICE)
        expected = flat.clone()
        other = made(expected, ADAM, FILTERS[filter])
        other.reached.copy_(optimizer.reached)
        for step in range(20):
            other.step(expected, rows(1 + step, torch.float32))
            if step == 8:
                optimizer.keep(torch.tensor([1, 2], device=DEVICE))
                flat = flat[1:].clone()
            optimizer.step(flat, rows(1 + step, torch.float32)[-len(flat) :])
    assert torch.equal(flat, expected[1:])


def test_what_waits_for_a_moment_is_known():
    assert made(rows(0, torch.float32), ADAM, FILTERS["ema"]).waits
    assert made(rows(0, torch.float32), ADAM, FILTERS["before"]).waits
    assert not made(rows(0, torch.float32), ADAM, FILTERS["chain-of-two"]).waits


@pytest.mark.parametrize(
    ("span", "why"),
    [
        ({"start": -1}, "start must be at least 0, got -1"),
        ({"start": 5, "stop": 5}, "stop must be above start, 5, got 5"),
        ({"start": "memorise"}, "start must be one of 'memorizing', 'generalizing', got 'memorise'"),
        ({"stop": 1.5}, "stop must be an integer, got 1.5"),
        ({"start": None}, "start must be an integer, got None"),
    ],
)
@pytest.mark.parametrize("kind", [EMA, Clamp])
def test_what_is_no_step_or_moment_is_refused(kind, span, why):
    with pytest.raises((TypeError, ValueError), match=why):
        kind(**span)


def test_they_are_written_as_other_fields_are():
    assert repr(EMA(0.9, start=3)) == "EMA(alpha=0.9, lamb=2.0, start=3)"
    assert repr(Clamp(stop="generalizing")) == "Clamp(most=1.0, stop='generalizing')"
    assert repr(EMA()) == "EMA(alpha=0.98, lamb=2.0)"
