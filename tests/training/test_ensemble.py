import pytest
import torch
import torch.nn.functional as F

from grokfast import EMA, MA, Experiment, backend
from grokfast.models import TransformerConfig
from grokfast.models.transformer import planned_cpu
from grokfast.models.transformer.planned import logits_of
from grokfast.models.transformer.steps import Planned
from grokfast.training.ensemble import Ensemble, check_together, resolve_device

TINY = Experiment.preset("quick").override({"task.p": 13, "model.width": 33})
SMALL_TRANSFORMER = TransformerConfig(d_model=16, n_heads=2, d_mlp=24, n_layers=2, norm="pre", dropout=0.1)
CASES = {
    "mlp": TINY,
    "mlp deep gelu mse": TINY.override(
        {
            "model.depth": 2,
            "model.activation": "gelu",
            "loss": "mse",
            "optimizer": "sgd",
            "optimizer.momentum": 0.9,
        }
    ),
    "mlp minibatch noise": TINY.override({"schedule.batch_size": 20, "task.label_noise": 0.2, "filter": MA(4)}),
    "transformer": Experiment.preset("nanda").override({"task.p": 11, "model.d_model": 16, "model.d_mlp": 24}),
    "transformer minibatch": Experiment.preset("grokfast").override(
        {"task.p": 11, "model.d_model": 16, "model.d_mlp": 24, "schedule.batch_size": 20}
    ),
    "mlp muon": TINY.override({"optimizer": "muon", "loss.temperature": 2.0}),
    "transformer dropout": Experiment.preset("nanda").override({"task.p": 11, "model": SMALL_TRANSFORMER}),
}


def variants(base):
    changes = [
        {"seed": 0},
        {"seed": 1, "optimizer.lr": 3e-3, "optimizer.weight_decay": 0.3, "optimizer.betas": (0.8, 0.95)},
        {"seed": 2, "optimizer.eps": 1e-6},
    ]
    if base.filter is not None:
        changes[1]["filter.lamb"] = 1.0
    there = base.flat()
    return [base.override({name: value for name, value in c.items() if name in there}) for c in changes]


def advance(experiments, steps):
    ensemble = Ensemble(experiments)
    for _ in range(steps):
        ensemble.step()
    return ensemble


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("case", CASES)
def test_runs_together_are_each_alone_bit_for_bit(case, engine):
    with backend.using(engine):
        experiments = variants(CASES[case])
        together = advance(experiments, 12)
        records = together.evaluate()
        for i, experiment in enumerate(experiments):
            alone = advance([experiment], 12)
            assert torch.equal(together.flat[i], alone.flat[0])
            assert records[i] == alone.evaluate()[0]


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("threads", [1, 2])
def test_an_evaluation_that_works_for_the_next_step_changes_no_bit(case, engine, threads, set_threads):
    set_threads(threads)
    with backend.using(engine):
        saving, plain = (Ensemble(variants(CASES[case])[:2]) for _ in range(2))
        for i in range(8):
            if i % 3 == 0:
                assert saving.evaluate(goes_on=True) == plain.evaluate()
                assert (saving._ahead is None) == (saving.compute.is_random or saving.schedule.batch_size is not None)
            saving.step()
            plain.step()
        assert saving.evaluate() == plain.evaluate()
        assert saving._ahead is None
        assert torch.equal(saving.flat, plain.flat)


def test_a_gradient_at_other_parameters_is_not_stepped_with():
    experiments = variants(TINY)
    ensemble = advance(experiments, 4)
    tensors = [{name: t.clone() for name, t in ensemble.checkpoint(i).items()} for i in range(3)]
    ensemble.step()
    ensemble.evaluate(goes_on=True)
    for i in range(3):
        ensemble.restore(i, tensors[i], 4)
    ensemble.step()
    assert torch.equal(ensemble.flat, advance(experiments, 5).flat)
    ensemble.evaluate(goes_on=True)
    ensemble.keep([2, 1])
    ensemble.step()
    assert torch.equal(ensemble.flat, advance(experiments[:0:-1], 6).flat)


@pytest.mark.parametrize("batch_size", [None, 25])
@pytest.mark.parametrize("preset", ["nanda", "power", "grokfast"])
def test_planned_training_is_ordinary_training(preset, batch_size):
    """In fp64, to rounding; the large eps because Adam makes a step of a gradient that is nothing but rounding."""
    small = {"task.p": 11, "model.d_model": 16, "model.d_mlp": 24, "schedule.batch_size": batch_size}
    experiment = Experiment.preset(preset).override({**small, "precision": "float64", "optimizer.eps": 1e-3})
    planned = advance([experiment, experiment.override({"seed": 1})], 12)
    assert isinstance(planned.compute, Planned)
    with backend.using("reference"):
        ordinary = advance([experiment, experiment.override({"seed": 1})], 12)
        assert not isinstance(ordinary.compute, Planned)
        expected = ordinary.evaluate()
    torch.testing.assert_close(planned.flat, ordinary.flat, rtol=1e-9, atol=1e-11)
    for got, right in zip(planned.evaluate(), expected):
        assert got.step == right.step
        assert got.values == pytest.approx(right.values, rel=1e-9)


def test_dropout_is_not_planned_for_but_evaluation_is(monkeypatch):
    ensemble, planned = Ensemble([CASES["transformer dropout"]]), []
    monkeypatch.setattr(planned_cpu, "logits_of", lambda *args: planned.append(args) or logits_of(*args))
    ensemble.step()
    assert not planned
    ensemble.measure("test")
    assert len(planned) == 1


def test_planned_training_without_the_extension(monkeypatch):
    experiments = [CASES[case].override({"optimizer.eps": 1e-3}) for case in ("transformer", "transformer minibatch")]
    with_it = [advance([experiment], 5) for experiment in experiments]
    monkeypatch.setattr(backend, "built", lambda: (None, "hidden"))
    for experiment, expected in zip(experiments, with_it):
        ensemble = advance([experiment], 5)
        assert isinstance(ensemble.compute, Planned)
        torch.testing.assert_close(ensemble.flat, expected.flat, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_leaving_runs_do_not_disturb_the_others(case):
    experiments = variants(CASES[case])
    ensemble = advance(experiments, 7)
    ensemble.keep([0, 2])
    for _ in range(5):
        ensemble.step()
    assert torch.equal(ensemble.flat[1], advance(experiments[2:], 12).flat[0])


@pytest.mark.parametrize("case", CASES)
def test_a_restored_checkpoint_goes_on_to_the_same_bits(case):
    experiment = CASES[case].override({"seed": 3})
    whole = advance([experiment], 15)
    part = advance([experiment], 9)
    tensors = {name: t.clone() for name, t in part.checkpoint(0).items()}
    fresh = Ensemble([experiment])
    fresh.restore(0, tensors, 9)
    for _ in range(6):
        fresh.step()
    assert torch.equal(fresh.flat, whole.flat)
    for name, tensor in whole.checkpoint(0).items():
        assert torch.equal(fresh.checkpoint(0)[name], tensor)


def test_a_checkpoint_of_another_shape_is_refused_and_nothing_changes():
    ensemble = advance([TINY], 1)
    before = ensemble.flat.clone()
    with pytest.raises(ValueError, match="the checkpoint holds"):
        ensemble.restore(0, {"parameters": torch.zeros(3)}, 5)
    assert torch.equal(ensemble.flat, before)
    assert ensemble.steps == 1


def eager_script(experiment, steps, dtype):
    """The quick recipe as anybody would write it in plain PyTorch, from the same initial weights."""
    model, data = Ensemble([experiment]).model, experiment.task.build(seed=experiment.seed)
    w_in = torch.cat([model.w_a[0], model.w_b[0]]).T
    net = torch.nn.Sequential(
        torch.nn.Linear(w_in.shape[1], len(w_in)), torch.nn.ReLU(), torch.nn.Linear(len(w_in), data.n_answers)
    )
    with torch.no_grad():
        for own, given in zip(net.parameters(), (w_in, model.b_in[0], model.out.weight[0], model.out.bias[0])):
            own.copy_(given)
    net.to(dtype)
    x = F.one_hot(data.train.inputs, data.n_tokens).flatten(1).to(dtype)
    o = experiment.optimizer
    optimizer = torch.optim.AdamW(net.parameters(), lr=o.lr, weight_decay=o.weight_decay, betas=o.betas, eps=o.eps)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(x), data.train.targets).backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in (net[0].weight.T, net[0].bias, net[2].weight, net[2].bias)])


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_twenty_steps_follow_an_eager_script(engine):
    experiment = Experiment.preset("quick").override({"task.p": 31, "model.width": 64})
    exact = eager_script(experiment, 20, torch.float64)
    torchs = eager_script(experiment, 20, torch.float32)
    with backend.using(engine):
        ensemble = advance([experiment], 20)
    weights = ensemble.weights(0)
    order = ("w_a", "w_b", "b_in", "out.weight", "out.bias")
    ours = torch.cat([weights[name].flatten() for name in order])
    assert (ours - exact).norm() <= 2 * (torchs - exact).norm()


def test_float64_is_the_eager_script_to_rounding():
    experiment = Experiment.preset("quick").override({"task.p": 31, "model.width": 64, "precision": "float64"})
    exact = eager_script(experiment, 20, torch.float64)
    weights = advance([experiment], 20).weights(0)
    ours = torch.cat([weights[name].flatten() for name in ("w_a", "w_b", "b_in", "out.weight", "out.bias")])
    torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-12)


def test_minibatches_are_a_new_permutation_each_epoch():
    ensemble = Ensemble([TINY.override({"schedule.batch_size": 30, "schedule.batch_seed": 5})])
    rows = ensemble.rows["train"].targets.shape[1]
    epochs = []
    for _ in range(2):
        seen = []
        for _ in range(-(-rows // 30)):
            x, y, _ = ensemble.runs.chosen("train", ensemble._chosen())
            assert torch.equal((x[0].sum(1)) % 13, y[0])
            seen.append(x[0])
            ensemble.optimizer.steps += 1
        assert len(seen[-1]) == rows - 30 * (len(seen) - 1)
        epochs.append(torch.cat(seen))
        assert torch.equal(epochs[-1].unique(dim=0), ensemble.rows["train"].inputs[0].unique(dim=0))
    assert not torch.equal(*epochs)


def test_a_batch_of_the_whole_set_is_full_batch():
    size = Ensemble([TINY]).rows["train"].targets.shape[1]
    assert torch.equal(advance([TINY], 3).flat, advance([TINY.override({"schedule.batch_size": size})], 3).flat)


def test_divergence_is_noted_with_its_step_and_leaves_the_neighbour_alone():
    wild = TINY.override({"optimizer.lr": 1e30})
    together = advance([wild, TINY], 8)
    assert together.diverged_at[1] == -1
    assert 0 < together.diverged_at[0] < 8
    assert torch.equal(together.flat[1], advance([TINY], 8).flat[0])


@pytest.mark.parametrize(
    "change",
    [{"task.p": 17}, {"model.width": 34}, {"filter": EMA()}, {"schedule.steps": 7}, {"optimizer": "adam"}],
)
def test_what_an_ensemble_cannot_hold_is_named(change):
    with pytest.raises(ValueError, match=rf"experiments\[1\].{next(iter(change))}"):
        check_together([TINY, TINY.override(change)])


def test_unknown_devices_are_refused():
    with pytest.raises(ValueError, match="device must be 'auto', 'cpu' or an available accelerator, got 'warp'"):
        resolve_device("warp")
