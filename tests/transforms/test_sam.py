"""SAM against its equation: in ensembles, under replay, and in scripts, where it needs a closure."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from grokfast import EMA, SAM, Chain, GrokFast
from grokfast.training.ensemble import Ensemble
from grokfast.transforms import OrthoGrad
from grokfast.transforms.flat import FlatOptimizer
from tests.training.own_updates import BASE, STEPS, Network, check
from tests.training.replays import follow

RHOS = (0.05, 0.5, 0.0)


def anew(network, weights, rho):
    """The gradients at w + ρ g / ‖g‖."""
    grads = network.gradients(weights)
    norm = torch.cat([g.flatten() for g in grads.values()]).norm()
    return network.gradients({name: w + rho * grads[name] / norm for name, w in weights.items()})


def by_hand(experiment, steps=STEPS, on=lambda step: True):
    o, network = experiment.optimizer, Network(experiment)
    sam = experiment.filter.transforms[0] if isinstance(experiment.filter, Chain) else experiment.filter
    weights = {name: w.clone().requires_grad_() for name, w in network.start.items()}
    slow = {}
    if o.rule == "sgd":
        inner = torch.optim.SGD(weights.values(), lr=o.lr, momentum=o.momentum)
    else:
        inner = torch.optim.AdamW(weights.values(), lr=o.lr, betas=o.betas, weight_decay=o.weight_decay)
    for step in range(steps):
        own = {name: w.detach() for name, w in weights.items()}
        grads = anew(network, own, sam.rho) if on(step) else network.gradients(own)
        for name, g in grads.items():
            if isinstance(experiment.filter, Chain):
                slow[name] = 0.9 * slow.get(name, g) + 0.1 * g
                g = g + 2 * slow[name]
            weights[name].grad = g
        inner.step()
    return {name: w.detach() for name, w in weights.items()}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd(lr=0.5,momentum=0.9)"])
@pytest.mark.parametrize("others", [(), (EMA(0.9, 2.0),)], ids=["alone", "before EMA"])
def test_fifty_steps_are_those_of_the_equation(optimizer, others):
    filters = [Chain(SAM(rho), *others) if others else SAM(rho) for rho in RHOS]
    base = BASE.override({"optimizer": optimizer, "optimizer.weight_decay": 0.0})
    check([base.override({"filter": own, "seed": i}) for i, own in enumerate(filters)], by_hand)


def test_while_it_is_off_the_gradient_is_the_models_own():
    runs = [BASE.override({"filter": SAM(0.5, start=start, stop=stop)}) for start, stop in ((3, 9), (0, 5))]
    ensemble = Ensemble(runs)
    for _ in range(15):
        ensemble.step()
    for i, run in enumerate(runs):
        sam = run.filter
        expected = by_hand(run, 15, lambda step, sam=sam: sam.start <= step < sam.stop)
        for name, own in ensemble.weights(i).items():
            torch.testing.assert_close(own, expected[name])


@pytest.mark.parametrize(
    "change",
    [
        {"schedule.batch_size": 7},
        {"precision": "float32", "optimizer": "muon"},
        {"loss": "mse", "filter": "sam(rho=0.3)+ema"},
    ],
)
def test_replayed_steps_are_eager_steps(change):
    """And the second gradient has the rows of the first."""
    run = BASE.override({"filter": SAM(0.3), "schedule.eval_every": 4, **change})
    runs = [run, run.override({"filter.sam.rho" if "+" in str(change.get("filter")) else "filter.rho": 0.0, "seed": 1})]
    replay, eager = follow(runs), Ensemble(runs)
    found = [replay.evaluate().read(), replay.launch().read(), replay.launch().read()]
    expected = []
    for _ in range(3):
        expected.append(eager.evaluate(goes_on=True))
        for _ in range(4):
            eager.step()
    assert [[report.record for report in own] for own in found] == expected


@pytest.mark.parametrize("change", [{}, {"model.dropout": 0.3}, {"schedule.batch_size": 7, "precision": "float32"}])
def test_with_rho_0_a_step_is_the_plain_one(change):
    """So both gradients have the same rows and the same dropout."""
    base = BASE.override(change)
    plain, sharp = Ensemble([base]), Ensemble([base.override({"filter": SAM(0.0)})])
    for _ in range(5):
        plain.step()
        sharp.step()
    assert torch.equal(plain.flat, sharp.flat)


def scripted(filter, optimizer=torch.optim.AdamW, dtype=torch.float64, steps=10, **options):
    """A network trained by closures, and the losses that its steps returned."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
    x, y = torch.randn(16, 4, dtype=dtype), torch.randint(3, (16,))
    opt = GrokFast(optimizer(model.parameters(), lr=0.05, **options), filter)

    def closure():
        opt.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    losses = [opt.step(closure).item() for _ in range(steps)]
    return [p.detach() for p in model.parameters()], losses, (model, x, y)


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop])
@pytest.mark.parametrize("slow", [None, EMA(0.9, 2.0)], ids=["alone", "before EMA"])
def test_a_script_with_a_closure(optimizer, slow):
    found, losses, (model, x, y) = scripted(SAM(0.3) if slow is None else Chain(SAM(0.3), slow), optimizer)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    inner, past = optimizer(model.parameters(), lr=0.05), {}
    for said in losses:
        params = list(model.parameters())
        loss = nn.functional.cross_entropy(model(x), y)
        assert loss.item() == pytest.approx(said)
        grads = torch.autograd.grad(loss, params)
        norm = torch.cat([g.flatten() for g in grads]).norm()
        names = [name for name, _ in model.named_parameters()]
        there = {name: p + 0.3 * g / norm for name, p, g in zip(names, params, grads)}
        value = nn.functional.cross_entropy(torch.func.functional_call(model, there, (x,)), y)
        for p, g in zip(params, torch.autograd.grad(value, params)):
            if slow is not None:
                past[p] = 0.9 * past.get(p, g) + 0.1 * g
                g = g + 2 * past[p]
            p.grad = g
        inner.step()
    for own, p in zip(found, model.parameters()):
        torch.testing.assert_close(own, p.detach())


def test_an_optimizer_that_evaluates_the_closure_itself():
    found, losses, _ = scripted(SAM(0.05), torch.optim.LBFGS, steps=3)
    plain, own, _ = scripted(EMA(0.0, 0.0), torch.optim.LBFGS, steps=3)
    assert losses[0] == own[0]
    assert losses[-1] < losses[0]
    assert not torch.equal(found[0], plain[0])


def test_without_a_closure_it_says_what_it_needs_and_changes_nothing():
    p = nn.Parameter(torch.ones(3))
    opt = GrokFast(torch.optim.SGD([p], lr=0.1), SAM())
    p.grad = torch.ones(3)
    with pytest.raises(ValueError, match=r"SAM .*step\(closure\)"):
        opt.step()
    assert torch.equal(p.detach(), torch.ones(3))
    opt.disable()
    opt.step()
    assert torch.allclose(p.detach(), torch.tensor(0.9))


def test_in_a_script_it_starts_and_stops():
    p, calls = nn.Parameter(torch.ones(3)), []
    opt = GrokFast(torch.optim.SGD([p], lr=0.1), Chain(SAM(start=1, stop="memorizing"), EMA()))

    def closure():
        calls.append(p.detach().clone())
        p.grad = torch.ones(3)

    numbers = []
    for step in range(4):
        if step == 3:
            opt.reach("memorizing")
        opt.step(closure)
        numbers.append(len(calls))
    assert numbers == [1, 3, 5, 6]
    opt.step()


def test_a_closure_that_fails_leaves_the_weights():
    p, calls = nn.Parameter(torch.ones(3)), []
    opt = GrokFast(torch.optim.SGD([p], lr=0.1), SAM())

    def closure():
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("no more data")
        p.grad = torch.ones(3)
        return torch.zeros(())

    with pytest.raises(RuntimeError, match="no more data"):
        opt.step(closure)
    assert torch.equal(p.detach(), torch.ones(3))


class NoLooking(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert "_local_scalar_dense" not in str(function)  # .item(), which a captured step cannot
        return function(*args, **(kwargs or {}))


def test_nothing_of_it_asks_the_host():
    from grokfast.optim.sharpness import sharpened

    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))

    def closure():
        p.grad, q.grad = p.detach() * 2, None
        return p.sum()

    with NoLooking():
        sharpened(closure, [(p, 0.1), (q, 0.1)])()
    torch.testing.assert_close(p.grad, (torch.ones(3) + 0.1 / 3**0.5) * 2)


def test_groups_that_are_off_do_not_move():
    p, q, seen = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2)), []
    opt = GrokFast(torch.optim.SGD([{"params": [p]}, {"params": [q], "grokfast_enabled": False}], lr=0.0), SAM(0.5))

    def closure():
        seen.append((p.detach().clone(), q.detach().clone()))
        p.grad, q.grad = torch.tensor([3.0, 4.0]), torch.tensor([30.0, 40.0])

    opt.step(closure)
    torch.testing.assert_close(seen[1][0], torch.tensor([1.3, 1.4]))
    torch.testing.assert_close(seen[1][1], torch.ones(2))


def test_bad_input_is_named():
    for rho in (-0.1, float("nan"), "much"):
        with pytest.raises((TypeError, ValueError), match="rho"):
            SAM(rho)
    with pytest.raises(ValueError, match="begin with SAM"):
        Chain(OrthoGrad(), SAM())
    with pytest.raises(ValueError, match="begin with SAM"):
        Chain(SAM(), SAM())
    with pytest.raises(ValueError, match=r"filters must be one per model, 2, got 3"):
        FlatOptimizer(torch.zeros(2, 3), [BASE.optimizer] * 2, [SAM()] * 3)
