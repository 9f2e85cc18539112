"""What is replayed needs nothing of the host: here on torch's "meta" device, whose tensors cannot be read, in the place
of a GPU whose graph is being captured."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from grokfast import EMA, MA, SAM, Experiment, backend
from grokfast.schedules import Cosine, Curriculum, SwapOperands, Switch, Warmup
from grokfast.training import PRESETS, ensemble
from grokfast.training import replay as replay_module
from grokfast.training.ensemble import Ensemble
from grokfast.training.outcome import Outcome
from grokfast.training.replay import Replay
from grokfast.transforms import Chain, flat
from tests.schedules.common import changed
from tests.training.test_probing import Three
from tests.transforms.own import Clamp, Host, Orthogonal

MLP = Experiment.preset("quick").override({"task.p": 7, "model.width": 10, "schedule.eval_every": 3})
SMALL = {"task.p": 7, "model.d_model": 16, "model.n_heads": 2, "model.d_mlp": 24}
NANDA, POWER, GROKFAST = (
    Experiment.preset(name).override({**SMALL, "schedule.eval_every": 3}) for name in ("nanda", "power", "grokfast")
)
BATCH = {"schedule.batch_size": 5}
MOMENTUM = {"optimizer": "sgd", "optimizer.momentum": 0.9, "optimizer.nesterov": True}


@pytest.fixture(autouse=True)
def on_meta(monkeypatch):
    monkeypatch.setattr(ensemble, "resolve_device", lambda name: torch.device("meta"))


class Captured(TorchDispatchMode):
    """Refuses what meets a tensor of the host: a copy from or to it, which a graph would repeat or cannot hold."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for t in tree_leaves((args, kwargs, out)):
            assert not isinstance(t, torch.Tensor) or t.is_meta, f"{function} has a tensor of the host"
        return out


def perform(experiments):
    """All that graphs would hold: steps, and an evaluation."""
    with backend.using("reference"):
        replay = Replay(Ensemble(experiments), [Outcome(e.criteria) for e in experiments])
        if replay.batches is not None:
            replay.batches.prepare(0, 3)
        if replay.tables is not None:
            replay.tables.prepare(0, 3)
        replay.ensemble.probes.measure(replay.ensemble.runs)  # the first call, which makes tables
        with Captured():
            length = None if replay.batches is None else min(5, replay.batches.orders.size)
            replay._do(replay_module._Part((length,) * 3, True, False))
        assert replay.ensemble.steps == 3


@pytest.mark.parametrize(
    "change",
    [
        {},
        BATCH,
        {"filter": EMA(), "optimizer.warmup": 2, "loss": "mse"},
        {"filter": MA(4), "optimizer": "adam", **BATCH},
        {"filter": MA(4, filter_type="sum", warmup=False, ring="bfloat16"), "optimizer": "lion"},
        {"filter": EMA(), **MOMENTUM, "task.label_noise": 0.2},
        {"optimizer": "sgd", "optimizer.lr": 0.1, **BATCH, "loss": "mse"},
        {"optimizer": "muon", "filter": EMA(), "loss.temperature": 2.0},
        {"optimizer": "schedule_free", "filter": SAM(), **BATCH},
        {"filter": Chain(SAM(start=1), EMA())},
    ],
)
@pytest.mark.parametrize(("precision", "models"), [("float32", 1), ("float64", 3)])
@pytest.mark.parametrize("base", [MLP, MLP.override({"model.depth": 2}), NANDA, POWER, GROKFAST])
def test_every_option_can_be_captured(base, change, precision, models):
    experiment = base.override({"precision": precision, **change})
    fractions = [0.5, 0.4, 0.6] if change.get("loss") else [0.5]  # of different sizes, too
    perform([
        experiment.override({"seed": i, "task.train_fraction": fractions[i % len(fractions)]}) for i in range(models)
    ])  # fmt: skip


@pytest.mark.parametrize("batch", [{}, BATCH])
@pytest.mark.parametrize("models", [1, 3])
@pytest.mark.parametrize(
    "change",
    [
        {"model.dropout": 0.1},
        {"schedule.changes": (Switch(of="dropout", to=0.3, at=1), Switch(of="label_smoothing", to=0.1, at=2))},
        {"schedule.changes": (Switch(of="dropout", to=0.3, after="memorizing"),)},
    ],
)
def test_dropout_can_be_captured(batch, models, change):
    perform([POWER.override({**batch, **change, "seed": i}) for i in range(models)])


@pytest.mark.parametrize("batch", [{}, BATCH])
@pytest.mark.parametrize("models", [1, 3])
@pytest.mark.parametrize(
    "base",
    [
        Experiment.preset("a5").override({"task.group": "S3", "model.width": 8, "model.embed": 4}),
        Experiment.preset("parity").override(
            {"task.n": 6, "task.n_train": 20, "task.n_test": 9, "model.width": 8, "model.dropout": 0.1}
        ),
        MLP.override({"loss": "stablemax"}),
        MLP.override({"loss": "hinge", "task.operation": "a^2+3*a*b+1"}),
    ],
)
def test_new_models_and_losses_can_be_captured(base, batch, models):
    perform([base.override({**batch, "seed": i, "schedule.eval_every": 3}) for i in range(models)])


@pytest.mark.parametrize("batch", [{}, BATCH])
@pytest.mark.parametrize("models", [1, 3])
@pytest.mark.parametrize("base", [MLP, NANDA.override({"task.layout": "pair"})])
def test_evaluations_with_probes_and_further_splits_can_be_captured(base, batch, models):
    probes = "norms, spread, spectra, progress, local_complexity"
    changes = {"task": Three(p=7), "probes": probes, "criteria.generalize": "few", **batch}
    perform([base.override({**changes, "seed": i, "task.train_fraction": 0.4 + 0.1 * i}) for i in range(models)])


CHANGES = (
    Warmup(steps=2), Cosine(begin=2), Switch(of="weight_decay", to=0.0, after="memorizing"), Curriculum(steps=5)
)  # fmt: skip
CHAIN = Chain(Orthogonal(0.5), EMA(), Clamp())


@pytest.mark.parametrize("change", [{}, BATCH])
@pytest.mark.parametrize("changes", [(), CHANGES, (SwapOperands(), Switch(of="share", to=0.1, after="generalizing"))])
@pytest.mark.parametrize("base", [MLP, NANDA, POWER])
def test_transforms_and_changes_of_any_kind_can_be_captured(base, change, changes):
    base = base.override({**change, "optimizer.warmup": 0, "task.operation": "add", "task.augment": "swap"})
    perform([changed(base.override({"seed": i}), changes, filter=CHAIN) for i in range(2)])


def test_a_transform_that_needs_the_host_indeed_cannot():
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError, ValueError)):
        perform([changed(MLP, (), filter=Host())])


def on_host(tensor, slot):
    return torch.zeros(len(tensor), *slot.shape, device="cpu" if slot.on_host else tensor.device)


def test_what_is_announced_indeed_cannot(monkeypatch):
    monkeypatch.setattr(flat, "_zeros", on_host)
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)):
        perform([MLP.override({"filter": MA(4, ring="host")})])


SMALLER = {
    "task.p": 7, "task.train_fraction": 0.5, "task.group": "S3", "task.n_train": 40, "task.n_test": 20,
    "task.n_entities": 10, "task.n_relations": 4, "task.phi": 1.5, "model.width": 8, "model.embed": 4,
    "model.d_model": 16, "model.n_heads": 2, "model.d_mlp": 24, "schedule.eval_every": 3,
}  # fmt: skip
ADDED = {
    "attention rate": {"model.attention_rate": 0.5},
    "dropout": {"model.dropout": 0.2},
    "some are decayed": {"optimizer.decayed": "matrices", "optimizer.weight_decay": 0.1},
    "L2 of some": {
        "optimizer": "adam", "filter": EMA(), "optimizer.decayed": "*", "optimizer.weight_decay": 0.1,
        "schedule.changes": (Switch(of="weight_decay", to=0.3, at=1),),
    },
}  # fmt: skip


def smaller(name):
    there = Experiment.preset(name)
    if missing := there.task.missing():
        pytest.skip(f"needs {missing}")
    kept = {} if there.model.__dict__.get("embed", 1) else {"model.embed": None}
    return there.override({**{key: value for key, value in SMALLER.items() if key in there.flat()}, **kept})


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_captured(name):
    perform([smaller(name).override({"seed": seed}) for seed in (0, 1)])


@pytest.mark.parametrize("name", ADDED)
def test_what_any_transformer_may_have_can_be_captured(name):
    perform([NANDA.override({**ADDED[name], "seed": seed}) for seed in (0, 1)])
