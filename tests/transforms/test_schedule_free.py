"""Schedule-free AdamW against its equations, and the authors' package where it is installed."""

import copy

import pytest
import torch
from torch import nn

from grokfast import EMA, Experiment, GrokFast, RunStore, train
from grokfast.optim import ScheduleFreeAdamW as Face
from grokfast.training.ensemble import Ensemble
from grokfast.transforms.schedule_free import ScheduleFreeAdamW
from tests.training.own_updates import BASE, STEPS, Network, check
from tests.training.replays import follow

FREE = BASE.override({"optimizer": "schedule_free", "optimizer.lr": 0.02})


def by_hand(experiment, steps=STEPS, of="x"):
    """x, y and z apart, as the paper has them."""
    o, network = experiment.optimizer, Network(experiment)
    (beta1, beta2), total, lr_max = o.betas, 0.0, 0.0
    z = {name: w.clone() for name, w in network.start.items()}
    x, v = {name: w.clone() for name, w in z.items()}, {name: torch.zeros_like(w) for name, w in z.items()}
    for step in range(steps):
        lr = o.lr * (min(1, step / o.warmup) if o.warmup else 1)
        lr_max = max(lr_max, lr)
        weight = (step + 1) ** o.r * lr_max**o.weight_lr_power
        total += weight
        c = weight / total if total else 0
        y = {name: (1 - beta1) * z[name] + beta1 * x[name] for name in z}
        for name, g in network.gradients(y).items():
            v[name] = beta2 * v[name] + (1 - beta2) * g * g
            u = g / ((v[name] / (1 - beta2 ** (step + 1))).sqrt() + o.eps)
            if o.decayed == "all" or z[name].ndim > 1:
                u = u + o.weight_decay * y[name]
            z[name] = z[name] - lr * u
            x[name] = (1 - c) * x[name] + c * z[name]
    return x if of == "x" else {name: (1 - beta1) * z[name] + beta1 * x[name] for name in z}


@pytest.mark.parametrize("decayed", ["all", "matrices"])
def test_fifty_steps_are_those_of_the_equations(decayed):
    base = FREE.override({"optimizer.decayed": decayed})
    check(
        [
            base,
            base.override({"optimizer.lr": 5e-3, "optimizer.weight_decay": 0.1, "seed": 1}),
            base.override({"optimizer.betas": (0.7, 0.9), "optimizer.weight_decay": 0.0}),
        ],
        by_hand,
        tolerance=1e-8,
    )


@pytest.mark.parametrize("change", [{"optimizer.warmup": 20}, {"optimizer.r": 1.0, "optimizer.weight_lr_power": 0.0}])
def test_a_warm_up_and_other_weights_of_the_average(change):
    check([FREE.override(change)], by_hand, tolerance=1e-8)


def test_it_trains_at_y_and_is_evaluated_at_x():
    ensemble = Ensemble([FREE])
    start = ensemble.weights(0)
    assert all(torch.equal(w, start[name]) for name, w in Network(FREE).start.items())
    for _ in range(10):
        ensemble.step()
    before = ensemble.flat.clone()
    (record,) = ensemble.evaluate(goes_on=True)
    assert torch.equal(ensemble.flat, before)  # training goes on where it was
    y = by_hand(FREE, 10, "y")
    for name, own in ensemble.runs.layout.views(before).items():
        torch.testing.assert_close(own[0], y[name])
    network, x = Network(FREE), by_hand(FREE, 10)
    given = {name: w[None] for name, w in x.items()}
    logits = torch.func.functional_call(network.module, given, (network.data.test.inputs[None],))[0]
    answers = network.data.test.targets
    assert record["test_loss"] == pytest.approx(nn.functional.cross_entropy(logits, answers).item())
    assert record["weight_norm"] == pytest.approx(torch.cat([w.flatten() for w in x.values()]).norm().item())


def test_replayed_evaluations_are_of_x_too():
    run = FREE.override({"schedule.eval_every": 4, "filter": EMA(0.9, 1.0), "precision": "float32"})
    runs = [run, run.override({"seed": 1, "optimizer.lr": 1e-3})]
    replay, eager = follow(runs), Ensemble(runs)
    found = [replay.evaluate().read(), replay.launch().read(), replay.launch().read()]
    for own in found:
        assert [report.record for report in own] == eager.evaluate(goes_on=True)
        for _ in range(4):
            eager.step()


def test_results_and_snapshots_have_x_and_a_run_goes_on_from_its_own_state(tmp_path):
    run = FREE.override({"schedule.steps": 20, "schedule.stop_after": None, "schedule.snapshots": "10"})
    run = run.override({"schedule.full_snapshots": True, "name": "free"})
    store = RunStore(tmp_path)
    result = train(run, store=store)
    x = by_hand(run, 20)
    for name, own in result.weights.items():
        torch.testing.assert_close(torch.as_tensor(own), x[name])
    kept, _ = store.snapshots.weights(result.run_id, 10)
    for name, own in by_hand(run, 10).items():
        torch.testing.assert_close(torch.as_tensor(kept[name]), own)
    fork = run.override({"origin": f"{result.run_id}@10"})
    again = train(fork, store=store)
    for name, own in again.weights.items():
        assert torch.equal(torch.as_tensor(own), torch.as_tensor(result.weights[name]))


def gradient(seed, shape=(5, 3)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scripted(make, steps=30, resumed_at=None):
    p = nn.Parameter(gradient(0))
    opt = make([p])
    opt.train()
    for step in range(steps):
        if step == resumed_at:
            opt.eval()
            saved, p = copy.deepcopy(opt.state_dict()), nn.Parameter(p.detach().clone())
            opt = make([p])
            opt.load_state_dict(saved)
            opt.train()
        p.grad = gradient(1 + step) + p.detach()
        opt.step()
    opt.eval()
    return p.detach().clone()


OPTIONS = {"lr": 0.03, "betas": (0.8, 0.95), "weight_decay": 0.1, "warmup_steps": 7, "r": 0.5}


def test_the_face_is_the_authors_package():
    schedulefree = pytest.importorskip("schedulefree")
    expected = scripted(lambda ps: schedulefree.AdamWScheduleFree(ps, foreach=False, **OPTIONS))
    torch.testing.assert_close(scripted(lambda ps: Face(ps, **OPTIONS)), expected)


def test_the_face_is_the_equations_and_goes_on_from_a_state_dict():
    z = x = gradient(0)
    v, total, lr_max, (beta1, beta2) = torch.zeros_like(z), 0.0, 0.0, OPTIONS["betas"]
    for k in range(1, 31):
        y = (1 - beta1) * z + beta1 * x
        g = gradient(k) + y
        lr = OPTIONS["lr"] * min(1, k / 7)
        lr_max = max(lr, lr_max)
        total += k**0.5 * lr_max**2
        v = beta2 * v + (1 - beta2) * g * g
        z = z - lr * (g / ((v / (1 - beta2**k)).sqrt() + 1e-8) + 0.1 * y)
        c = k**0.5 * lr_max**2 / total
        x = (1 - c) * x + c * z
    found = scripted(lambda ps: Face(ps, **OPTIONS))
    torch.testing.assert_close(found, x)
    assert torch.equal(scripted(lambda ps: Face(ps, **OPTIONS), resumed_at=13), found)
    wrapped = scripted(lambda ps: GrokFast(Face(ps, **OPTIONS), EMA(0.9, 0.0)), resumed_at=13)
    torch.testing.assert_close(wrapped, x)


def test_a_step_between_eval_and_train_is_refused():
    p = nn.Parameter(torch.ones(3))
    opt = Face([p])
    opt.eval()
    p.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match=r"train\(\)"):
        opt.step()
    assert torch.equal(p.detach(), torch.ones(3))


@pytest.mark.parametrize(
    "options", [{"betas": (0.0, 0.9)}, {"betas": (0.9, 1.0)}, {"r": -1.0}, {"weight_lr_power": "2"}]
)
def test_bad_values_are_named(options):
    name = next(iter(options))
    with pytest.raises((TypeError, ValueError), match=rf"optimizer\.{name}"):
        ScheduleFreeAdamW(**options)
    with pytest.raises((TypeError, ValueError), match=name):
        Face([nn.Parameter(torch.zeros(2))], **options)


def test_another_optimizer_keeps_what_both_have():
    run = Experiment.preset("quick").override({"optimizer": "schedule_free"})
    assert (run.optimizer.lr, run.optimizer.betas) == (1e-2, (0.9, 0.98))
