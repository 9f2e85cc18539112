"""FlatOptimizer against torch.optim and the filter functions, model by model."""

import pytest
import torch

from grokfast import EMA, MA, backend, gradfilter_ema
from grokfast.optim import Lion
from grokfast.optim.reference import filter_gradient
from grokfast.parts import find
from grokfast.transforms import sizes
from grokfast.transforms.base import Layout
from grokfast.transforms.flat import FlatOptimizer
from grokfast.transforms.optimizers import AdamW

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
P, STEPS = 1003, 25
CONFIGS = {
    "adamw": [
        {"lr": 1e-2, "weight_decay": 1.0, "betas": (0.9, 0.98)},
        {"lr": 3e-3, "weight_decay": 0.1},
        {"warmup": 4},
    ],
    "adam": [{"lr": 1e-2, "weight_decay": 0.01}, {"lr": 1e-3, "betas": (0.5, 0.7), "eps": 1e-6}, {"warmup": 3}],
    "sgd": [{"lr": 0.1, "weight_decay": 0.1}, {"lr": 0.01}, {"warmup": 2}],
}
MOMENTUM = [{"momentum": 0.9, "nesterov": True, **c} for c in CONFIGS["sgd"]]
FILTERS = {
    "none": [None] * 3,
    "ema": [EMA(0.98, 2.0), EMA(0.5, 0.1), EMA(0.0, 5.0)],
    "ma": [MA(5, 5.0), MA(5, 1.0), MA(5, 0.5)],
    "ma-sum": [MA(3, 0.5, "sum", False)] * 3,
}
CONFIGS["lion"] = [{"weight_decay": 1.0}, {"lr": 1e-2}, {"warmup": 2}]
CONFIGS["lion"] = [{"betas": (0.9, 0.97), **c} for c in CONFIGS["lion"]]
FILTERS["ma-bf16"] = [MA(5, 5.0, ring="bfloat16")] * 3
CLASSES = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD, "lion": Lion}


def gradients(dtype):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, P, generator=generator).to(DEVICE, dtype) for _ in range(STEPS)]


def by_torch(name, settings, filter, start, grads, model):
    """One model, by torch's optimizer and the functions of Lee et al."""
    settings = dict(settings)
    warmup = settings.pop("warmup", 0)
    holder = torch.nn.Module()
    holder.w = torch.nn.Parameter(start[model].clone())
    settings.setdefault("lr", 1e-3)
    settings.setdefault("weight_decay", 0.0)
    optimizer = CLASSES[name](holder.parameters(), **settings)
    history: dict = {}
    for step, grad in enumerate(grads):
        holder.w.grad = grad[model].clone()
        if isinstance(filter, EMA):
            history = gradfilter_ema(holder, history, filter.alpha, filter.lamb)
        elif isinstance(filter, MA):
            holder.w.grad = filter_gradient(filter, holder.w.grad, history)
        optimizer.param_groups[0]["lr"] = settings["lr"] * (min(1, step / warmup) if warmup else 1)
        optimizer.step()
    return holder.w.detach()


def by_flat(name, settings, filters, start, grads):
    flat = start.clone()
    optimizer = FlatOptimizer(flat, [find("optimizer", name)(**s) for s in settings], filters)
    for grad in grads:
        optimizer.step(flat, grad)
    return flat


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("case", ["adamw", "adam", "sgd", "momentum", "lion"])
@pytest.mark.parametrize("engine", ["auto", "reference", "triton"])
def test_every_model_follows_torch(case, filter, engine):
    name = "sgd" if case == "momentum" else case
    settings = MOMENTUM if case == "momentum" else CONFIGS[case]
    start = torch.randn(3, P, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    with backend.using(engine):
        ours = by_flat(name, settings, FILTERS[filter], start, gradients(torch.float32))
    for model in range(3):
        args = name, settings[model], FILTERS[filter][model]
        exact = by_torch(*args, start.double(), gradients(torch.float64), model)
        torchs = by_torch(*args, start, gradients(torch.float32), model)
        allowed = 2 * (torchs - exact).abs().max() + torch.finfo(torch.float32).eps * exact.abs().max()
        assert (ours[model] - exact).abs().max() <= allowed


LAYOUT = Layout.of({"table": (7, 50), "bias": (203,), "out": (9, 50)})


@pytest.mark.parametrize("filter", ["none", "ema", "ma"])
@pytest.mark.parametrize("case", ["adamw", "adam", "sgd", "momentum", "lion"])
@pytest.mark.parametrize("engine", ["auto", "reference", "triton"])
@pytest.mark.parametrize("decayed", ["matrices", "bias", "ta*, out"])
def test_weight_decay_is_that_of_the_parameters_it_is_said_of(case, filter, engine, decayed):
    name = "sgd" if case == "momentum" else case
    settings = [{"weight_decay": 0.3, **s} for s in (MOMENTUM if case == "momentum" else CONFIGS[case])]
    start = torch.randn(3, P, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    flat, configs = start.clone(), [find("optimizer", name)(decayed=decayed, **s) for s in settings]
    with backend.using(engine):
        optimizer = FlatOptimizer(flat, configs, FILTERS[filter], LAYOUT)
        for grad in gradients(torch.float32):
            optimizer.step(flat, grad)
    is_bias = (torch.arange(P, device=DEVICE) >= 350) & (torch.arange(P, device=DEVICE) < 553)
    own = is_bias if decayed == "bias" else ~is_bias
    for model in range(3):
        with_it, without = settings[model], {**settings[model], "weight_decay": 0.0}

        def exactly(dtype, model=model, with_it=with_it, without=without):
            both = (
                by_torch(name, s, FILTERS[filter][model], start.to(dtype), gradients(dtype), model)
                for s in (with_it, without)
            )
            return torch.where(own, *both)

        exact, torchs = exactly(torch.float64), exactly(torch.float32)
        allowed = 2 * (torchs - exact).abs().max() + torch.finfo(torch.float32).eps * exact.abs().max()
        assert (flat[model] - exact).abs().max() <= allowed


def test_weight_decay_of_no_parameter_is_refused():
    with pytest.raises(ValueError, match="'table', 'bias', 'out', got 'head'"):
        FlatOptimizer(torch.zeros(1, P), [AdamW(decayed="head")], [None], LAYOUT)


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("case", ["adamw", "sgd"])
def test_in_float64_it_is_torch_to_rounding(case, filter):
    start = torch.randn(3, P, generator=torch.Generator().manual_seed(1)).to(DEVICE).double()
    grads = gradients(torch.float64)
    ours = by_flat(case, CONFIGS[case], FILTERS[filter], start, grads)
    for model in range(3):
        theirs = by_torch(case, CONFIGS[case][model], FILTERS[filter][model], start, grads, model)
        torch.testing.assert_close(ours[model], theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("filter", FILTERS)
def test_a_model_is_the_same_bits_alone_and_after_others_have_left(filter, engine):
    start = torch.randn(3, P, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    configs = [AdamW(**s) for s in CONFIGS["adamw"]]
    grads = gradients(torch.float32)
    with backend.using(engine):
        alone = by_flat("adamw", CONFIGS["adamw"][1:2], FILTERS[filter][1:2], start[1:2], [g[1:2] for g in grads])
        flat = start.clone()
        optimizer = FlatOptimizer(flat, configs, FILTERS[filter])
        for step, grad in enumerate(grads):
            if step == 10:
                flat = flat[[1, 2]]
                optimizer.keep(torch.tensor([1, 2], device=DEVICE))
            optimizer.step(flat, grad[:3] if step < 10 else grad[[1, 2]])
    assert torch.equal(alone[0], flat[0])


def test_when_a_running_sum_is_made_anew_does_not_depend_on_the_other_models(monkeypatch):
    """A launch over many elements has larger chunks."""
    pytest.importorskip("triton")
    monkeypatch.setattr(sizes, "chunk_size", lambda total: sizes.BLOCK if total == P else 8 * sizes.BLOCK)
    start = torch.randn(3, P, generator=torch.Generator().manual_seed(1))
    grads = [g * 10**-i for i, g in enumerate(gradients(torch.float32))]  # so that it matters
    filters = [MA(2, 5.0)] * 3
    with backend.using("triton"):
        together = by_flat("adamw", CONFIGS["adamw"], filters, start, grads)
        alone = by_flat("adamw", CONFIGS["adamw"][1:2], filters[1:2], start[1:2], [g[1:2] for g in grads])
    assert torch.equal(together[1], alone[0])


@pytest.mark.parametrize("engine", ["auto", "reference", "triton"])
def test_partial_gradients_are_as_good_as_their_sum(engine):
    start = torch.randn(3, P, generator=torch.Generator().manual_seed(1))
    grads = gradients(torch.float32)[:6]
    parts = [torch.stack([g, 2 * g, -g]) for g in grads]
    with backend.using(engine):
        expected = by_flat("adamw", CONFIGS["adamw"], FILTERS["ema"], start, [(p[0] + p[1]) + p[2] for p in parts])
        assert torch.equal(by_flat("adamw", CONFIGS["adamw"], FILTERS["ema"], start, parts), expected)
