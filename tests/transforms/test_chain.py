"""Chains, and transforms that no kernel knows, around the optimizer of an ensemble."""

import dataclasses
import math

import pytest
import torch

from grokfast import EMA, MA, backend
from grokfast.parts import may_vary
from grokfast.schedules import Cosine, Switch, Warmup
from grokfast.schedules.program import Program
from grokfast.transforms import Chain, Layout, hypers
from grokfast.transforms.chain import elements, named
from grokfast.transforms.flat import FlatOptimizer, state_slots, why_no_graph
from grokfast.transforms.optimizers import AdamW
from tests.transforms.own import Clamp, Empty, Fails, Host, Orthogonal, Rebinds, Reshapes, Returns, Retypes

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LAYOUT = Layout.of({"w": (7, 5), "b": (7,), "s": ()})  # 43 numbers, 48 in a row
WIDTH, STEPS = 48, 6
CONFIGS = [AdamW(lr=1e-2, weight_decay=1.0), AdamW(lr=3e-2), AdamW(warmup=4, lr=1e-2)]


def rows(seed, models=3, dtype=torch.float32):
    """[models, WIDTH], of which the last 5 are padding."""
    t = torch.randn(models, WIDTH, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)
    t[:, LAYOUT.size :] = 0
    return t


def chains(strengths=(0.2, 0.7, 0.0), inner=EMA(0.9, 2.0)):
    return [Chain(Orthogonal(share), inner, Clamp(0.5 + share)) for share in strengths]


def trained(filters, models=range(3), dtype=torch.float32, steps=STEPS):
    """Weights and optimizer after some steps of these models."""
    models = list(models)
    flat = rows(0, dtype=dtype)[models]
    optimizer = FlatOptimizer(flat, [CONFIGS[i] for i in models], [filters[i] for i in models], LAYOUT)
    for step in range(steps):
        optimizer.step(flat, rows(1 + step, dtype=dtype)[models])
    return flat, optimizer


def by_hand(filters, steps=STEPS):
    """The same in float64, a tensor at a time: each transform, torch's AdamW, and what comes after."""
    found = []
    for model, filter in enumerate(filters):
        before, inner, after = elements(filter)
        tensors = [t[0].clone() for t in LAYOUT.views(rows(0, dtype=torch.float64)[model : model + 1]).values()]
        config, slow = CONFIGS[model], {}
        torchs = torch.optim.AdamW(tensors, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
        for step in range(steps):
            grads = LAYOUT.views(rows(1 + step, dtype=torch.float64)[model : model + 1]).values()
            for i, (t, grad) in enumerate(zip(tensors, grads)):
                g = grad[0] - before.share * (grad[0] * t).sum() / ((t * t).sum() + 1e-30) * t
                slow[i] = inner.alpha * slow[i] + (1 - inner.alpha) * g if i in slow else g
                t.grad = g + inner.lamb * slow[i]
            torchs.param_groups[0]["lr"] = config.lr * (min(1.0, step / config.warmup) if config.warmup else 1.0)
            torchs.step()
            tensors[0].mul_((after.most / tensors[0].norm(dim=1, keepdim=True)).clamp(max=1))
        found.append(torch.cat([t.flatten() for t in tensors]))
    return torch.stack(found)


@pytest.mark.parametrize("engine", ["auto", "reference", "triton"])
def test_a_chain_is_its_elements_one_after_the_other(engine):
    if engine == "triton":
        pytest.importorskip("triton")
    with backend.using(engine):
        flat, optimizer = trained(chains())
        exact, _ = trained(chains(), dtype=torch.float64)
    expected = by_hand(chains())
    torch.testing.assert_close(exact[:, : LAYOUT.size], expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(flat[:, : LAYOUT.size].double(), expected, rtol=1e-5, atol=1e-6)
    assert not flat[:, LAYOUT.size :].any()  # padding stays
    assert {name: tuple(t.shape) for name, t in optimizer.state.items()} == {
        "exp_avg": (3, WIDTH), "exp_avg_sq": (3, WIDTH), "0.seen": (3,), "0.last": (3, LAYOUT.size), "ema": (3, WIDTH)
    }  # fmt: skip
    assert optimizer.state["0.seen"].tolist() == [STEPS] * 3


@pytest.mark.parametrize("inner", [EMA(0.9, 2.0), MA(3, 2.0), MA(2, 1.0, "sum", False)])
@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_a_filter_in_another_place_than_the_last_does_the_same(engine, inner):
    alone, after = [inner] * 3, [Chain(inner, Orthogonal(0.0))] * 3
    with backend.using(engine):
        torch.testing.assert_close(trained(alone)[0], trained(after)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("inner", [EMA(0.9, 2.0), MA(3, 2.0)])
@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_a_chain_of_one_filter_is_the_filter_to_the_bit(engine, inner):
    with backend.using(engine):
        assert torch.equal(trained([inner] * 3)[0], trained([Chain(inner)] * 3)[0])
        assert set(trained([Chain(inner)] * 3)[1].state) == set(trained([inner] * 3)[1].state)


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_a_model_is_the_same_bits_alone_and_after_others_have_left(engine):
    with backend.using(engine):
        together, _ = trained(chains())
        alone, _ = trained(chains(), models=[1])
        flat = rows(0)
        optimizer = FlatOptimizer(flat, CONFIGS, chains(), LAYOUT)
        for step in range(STEPS):
            if step == 2:
                flat = flat[[0, 1]].clone()
                optimizer.keep(torch.tensor([0, 1], device=DEVICE))
            optimizer.step(flat, rows(1 + step)[: len(flat)])
    assert torch.equal(together[1], alone[0])
    assert torch.equal(together[:2], flat)


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_it_goes_on_from_its_state(engine):
    with backend.using(engine):
        flat, optimizer = trained(chains(), steps=3)
        further = FlatOptimizer(flat, CONFIGS, chains(), LAYOUT)
        for name, t in optimizer.state.items():
            further.state[name].copy_(t)
        further.steps = 3
        for step in range(3, STEPS):
            further.step(flat, rows(1 + step))
        assert torch.equal(flat, trained(chains())[0])


def test_what_it_keeps_is_counted():
    slots = state_slots(CONFIGS[0], chains()[0], LAYOUT, WIDTH, torch.float32)
    assert sum(slot.bytes for slot in slots.values()) == 4 * (3 * WIDTH + 1 + LAYOUT.size)
    ring = state_slots(CONFIGS[0], Chain(MA(4, ring="bfloat16"), Clamp()), LAYOUT, WIDTH, torch.float32)
    assert ring["ring"].bytes == 2 * 4 * WIDTH


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (Returns(), "Returns.apply must change grad in place and return nothing, it returned 'Tensor'"),
        (Reshapes(), r"Reshapes.apply must leave grad \(\(1, 43\), .*it made it \(\(1, 1, 43\)"),
        (Retypes(), r"Retypes.apply must leave state\['kept'\] .*float16"),
        (Rebinds(), "Rebinds.apply failed on weights .1, 43.: 'mappingproxy' object does not support item assignment"),
        (Fails(), "Fails.apply failed on weights .1, 43.: "),
        (Empty(), "Empty.apply failed on weights .1, 43.: it has none"),
        (Chain(MA(4, ring="bfloat16"), Orthogonal()), "ring must be 'full' unless MA is the last transform before"),
    ],
)
def test_what_it_must_not_do_is_said_before_the_first_step(bad, why):
    flat = rows(0)
    with pytest.raises((TypeError, ValueError), match=why):
        FlatOptimizer(flat, CONFIGS, [bad] * 3, LAYOUT)
    assert torch.equal(flat, rows(0))


def test_all_models_need_the_same_kinds():
    with pytest.raises(ValueError, match=r"filters\[1\] must be of the same kinds as filters\[0\], .*got Clamp"):
        FlatOptimizer(rows(0), CONFIGS, [Orthogonal(), Clamp(), Orthogonal()], LAYOUT)


def test_a_chain_checks_and_names_its_elements():
    chain = Chain(EMA(), Chain(Orthogonal(), EMA(0.5)), Clamp())
    assert elements(chain) == (EMA(), Orthogonal(), EMA(0.5), Clamp())
    assert list(named(chain)) == ["ema", "Orthogonal", "ema_2", "Clamp"]
    expected = {"ema.alpha", "ema.lamb", "Orthogonal.share", "ema_2.alpha", "ema_2.lamb", "Clamp.most"}
    expected |= {f"{name}.{edge}" for name in named(chain) for edge in ("start", "stop")}
    assert {*may_vary("filter", chain)} == {f"filter.{name}" for name in expected}
    assert eval(repr(chain)) == chain == Chain(transforms=chain.transforms)
    assert hash(chain) == hash(Chain(*chain.transforms))
    with pytest.raises(TypeError, match=r"transforms\[1\] must be a transform.*got 3"):
        Chain(EMA(), 3)
    with pytest.raises(ValueError, match="transforms must be at least one, got none"):
        Chain()
    with pytest.raises(ValueError, match=r"the order in which they act: EMA.*, before the update, cannot follow Clamp"):
        Chain(Orthogonal(), Clamp(), EMA())
    assert elements(None) == ()
    assert elements(EMA()) == (EMA(),)


def test_what_needs_the_host_is_never_captured():
    assert why_no_graph(CONFIGS[0], Chain(Host(), EMA()), DEVICE, torch.float32) == "Host needs the host"
    assert FlatOptimizer(rows(0), CONFIGS, [Host()] * 3, LAYOUT).why_no_graph() == "Host needs the host"
    assert why_no_graph(CONFIGS[0], chains()[0], DEVICE, torch.float32) == ""


CHANGES = (
    Warmup(steps=3),
    Switch(of="weight_decay", to=0.0, at=2),
    Switch(of="share", to=0.1, at=4),
    Cosine(of="lamb"),
)


def followed(changes, filters, models=range(3), steps=STEPS, begun=()):
    """Weights after steps whose hyper-parameters change; `begun`: at which step which moments of run 0 have begun."""
    models = list(models)
    configs, own = [CONFIGS[i] for i in models], [filters[i] for i in models]
    flat = rows(0)[models]
    optimizer = FlatOptimizer(flat, configs, own, LAYOUT)
    current = [hypers.current(config, filter) for config, filter in zip(configs, own)]
    optimizer.follow(Program([changes] * len(own), current, steps, hypers.same(own[0])), most_steps=4)
    for step in range(steps):
        for at, moment in begun:
            if at == step:
                optimizer.reached[moment, 0] = step
        optimizer.step(flat, rows(1 + step)[models])
    return flat


def by_settings(filters, settings, models=range(3)):
    """The same, of fields that were set to their values before each step."""
    models = list(models)
    configs, own = [CONFIGS[i] for i in models], [filters[i] for i in models]
    flat = rows(0)[models]
    state = {}
    for step in range(STEPS):
        now = [dataclasses.replace(config, **settings(step, config, filter)[0]) for config, filter in zip(configs, own)]
        chains = [settings(step, config, filter)[1] for config, filter in zip(configs, own)]
        optimizer = FlatOptimizer(flat, now, chains, LAYOUT)
        for name, t in state.items():
            optimizer.state[name].copy_(t)
        optimizer.steps = step
        optimizer.step(flat, rows(1 + step)[models])
        state = optimizer.state
    return flat


def as_said(step, config, filter):
    first, inner, last = elements(filter)
    lamb = 0.0 + (inner.lamb - 0.0) * float(1 + torch.cos(torch.tensor(math.pi * min(1, step / STEPS)).double())) / 2
    inner = dataclasses.replace(inner, lamb=lamb)
    first = Orthogonal(0.1 if step >= 4 else first.share)
    lr = config.lr * (step / 3 if step < 3 else 1.0)
    return {"lr": lr, "weight_decay": 0.0 if step >= 2 else config.weight_decay}, Chain(first, inner, last)


@pytest.mark.parametrize("engine", ["auto", "reference", "triton"])
def test_hyper_parameters_follow_the_step(engine):
    if engine == "triton":
        pytest.importorskip("triton")
    with backend.using(engine):
        found, expected = followed(CHANGES, chains()), by_settings(chains(), as_said)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
        assert torch.equal(followed(CHANGES, chains(), models=[1])[0], found[1])


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_a_program_that_changes_nothing_changes_no_bit(engine):
    same = (Switch(of="lamb", to=7.0, after="memorizing"), Switch(of="lr", to=1e-2, at=STEPS - 1))
    with backend.using(engine):
        assert torch.equal(followed(same, [EMA(0.9, 2.0)] * 3)[0], trained([EMA(0.9, 2.0)] * 3)[0][0])


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_what_comes_after_a_moment_waits_for_it(engine):
    filters = [EMA(0.9, 2.0)] * 3
    with backend.using(engine):
        never = followed([Switch(of="lamb", to=0.0, after="memorizing")], filters)
        now = followed([Switch(of="lamb", to=0.0, after="memorizing", delay=1)], filters, begun=[(2, 0)])
        assert torch.equal(never, trained(filters)[0])
        assert torch.equal(now[0], followed([Switch(of="lamb", to=0.0, at=3)], filters)[0])
        assert torch.equal(now[1:], never[1:])


def test_no_value_may_be_out_of_range():
    with pytest.raises(ValueError, match=r"schedule.changes make 'alpha' 1.5: alpha must be in \[0.0, 1.0\], got 1.5"):
        followed([Switch(of="alpha", to=1.5, after="generalizing")], [EMA()] * 3)
    with pytest.raises(ValueError, match=r"schedule.changes make 'lr' -1: optimizer.lr must be in \[0"):
        followed([Cosine(to=-1.0, end=3)], [EMA()] * 3)
