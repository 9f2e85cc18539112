"""Probes in training: columns of the curves, at the right step, alike alone and in company."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from grokfast import Experiment, RunStore, train
from grokfast.probes import Probe, Spread
from grokfast.tasks import Data, ModularTask, Split
from grokfast.training import loop
from grokfast.training.engines import Eager
from grokfast.training.ensemble import Ensemble, choice_of
from tests.training.common import same_result

SMALL = Experiment.preset("quick").override(
    {"task.p": 7, "model.width": 16, "schedule.steps": 12, "schedule.eval_every": 4, "schedule.stop_after": None}
)


@dataclass(frozen=True)
class Ours(Probe):
    names: tuple = ("one", "two")
    returns: bool = False

    def columns(self, data):
        return self.names

    def measure(self, view, out):
        out[:, 0] = view.weights["w_a"].flatten(1).norm(dim=1)
        return out if self.returns else None


@dataclass(frozen=True)
class Faulty(Probe):
    """`write(out, w_a)` is patched."""

    def columns(self, data):
        return ("one", "two")

    def measure(self, view, out):
        self.write(out, view.weights["w_a"])


def test_columns_are_measured_stored_and_the_same_in_company(how, tmp_path):
    experiments = [SMALL.override({"probes": (Ours(), Spread()), "seed": seed}) for seed in range(2)]
    with RunStore(tmp_path) as store:
        results = train(experiments, store=store)
        for result, experiment in zip(results, experiments):
            alone = train(experiment)
            assert list(result.curves)[-4:] == ["weight_norm", "one", "two", "train_logit_spread"]
            for name, column in alone.curves.items():
                np.testing.assert_array_equal(column, result.curves[name])
                np.testing.assert_array_equal(column, store.curves(result.run_id)[name])
            assert np.isnan(result.curves["two"]).all()  # not written: a gap
            assert result.curves["one"][-1] == pytest.approx(result.weights["w_a"].norm().item())
            assert result.summary()["final"]["two"] is None


def test_probes_change_nothing(how):
    plain, probed = train(SMALL), train(SMALL.override({"probes": "spread"}))
    assert all(torch.equal(w, probed.weights[name]) for name, w in plain.weights.items())
    for name, column in plain.curves.items():
        np.testing.assert_array_equal(column, probed.curves[name])


@pytest.mark.parametrize(
    ("probes", "error", "message"),
    [
        ((Ours(names="one"),), TypeError, "columns must return names, got 'one'"),
        ((Ours(names=("weight_norm",)),), ValueError, "probes must have columns of their own"),
        ((Ours(), Ours()), ValueError, "probes must have columns of their own"),
        ((Ours(returns=True),), ValueError, r"measure must write its 2 columns into out \[E, 2\] and return nothing"),
        ((Spread("tset"),), ValueError, "split must be one of 'train', 'test', got 'tset'"),
    ],
)
def test_a_bad_probe_is_named_before_the_first_step(probes, error, message, tmp_path):
    with RunStore(tmp_path) as store:
        with pytest.raises(error, match=message):
            train(SMALL.override({"probes": probes}), store=store)
        assert store.list() == []


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda out: out.fill_(math.nan), "Faulty.measure must write finite numbers, .* 'one' is NaN or infinite"),
        (lambda out: out[:, 1].fill_(-math.inf), "Faulty.measure must write finite numbers, .* 'two' is NaN or inf"),
        (lambda out: out.copy_(torch.zeros(1, 3)), r"Faulty.measure must write its 2 columns into out \[E, 2\]: "),
        (lambda out: out[:, 2].zero_(), r"Faulty.measure must write its 2 columns into out \[E, 2\]: "),
        (lambda out: out.resize_(1, 3), r"Faulty.measure must write its 2 columns .* got out \[1, 3\]"),
    ],
)
def test_what_a_probe_must_not_write_is_said_before_anything_is_stored(monkeypatch, tmp_path, write, message):
    monkeypatch.setattr(Faulty, "write", staticmethod(lambda out, w_a: write(out)), raising=False)
    with RunStore(tmp_path) as store:
        with pytest.raises(ValueError, match=message):
            train(SMALL.override({"probes": (Faulty(),)}), store=store)
        assert store.list() == []


def test_what_is_not_finite_later_is_a_gap_that_is_said_once(how, monkeypatch):
    first = Ensemble([SMALL]).model.w_a.detach().clone()

    def write(out, w_a):
        out[:, 0] = torch.where((w_a == first).all(), 1.0, math.inf)
        out[:, 1] = w_a.flatten(1).norm(dim=1)

    monkeypatch.setattr(Faulty, "write", staticmethod(write), raising=False)
    with pytest.warns(UserWarning, match="column 'one' is NaN or infinite in quick at step 4") as said:
        result = train(SMALL.override({"probes": (Faulty(),)}))
    assert len(said) == 1
    assert result.status == "finished"
    np.testing.assert_array_equal(result.curves["one"], [1, *[math.nan] * 3])
    assert np.isfinite(result.curves["two"]).all()


def test_a_run_that_diverges_is_not_the_probes_doing(recwarn):
    result = train(SMALL.override({"probes": "norms", "optimizer": "sgd", "optimizer.lr": 1e30}))
    assert result.status == "diverged"
    assert np.isnan(result.curves["norm_w_a"][-1])
    assert not recwarn.list


@dataclass(frozen=True, kw_only=True)
class Three(ModularTask):
    """A third split: the test set's first rows."""

    def build(self, *, seed=0):
        data = super().build(seed=seed)
        few = Split(data.test.inputs[:5], data.test.targets[:5])
        return Data(splits={**data.splits, "few": few}, n_tokens=data.n_tokens, n_answers=data.n_answers)


def test_further_splits_are_measured_and_criteria_name_theirs(how):
    experiment = SMALL.override(
        {"task": Three(p=7), "criteria.generalize": "few", "criteria.threshold": 1e-9, "criteria.sustain": 1}
    )
    result = train(experiment)
    expected = ["step", *(f"{s}_{what}" for what in ("loss", "accuracy") for s in ("train", "test", "few"))]
    assert list(result.curves) == [*expected, "weight_norm"]
    reached = result.curves["step"][result.curves["few_accuracy"] > 0]
    assert len(reached) > 0
    assert result.t_generalize == reached[0]
    with pytest.raises(ValueError, match=r"criteria\.generalize must be a split of the task, one of 'train', 'test'"):
        Ensemble([SMALL.override({"criteria.generalize": "few"})])


@dataclass(frozen=True, kw_only=True)
class Two(ModularTask):
    """Two answers a row: the sum, and 0."""

    def build(self, *, seed=0):
        data = super().build(seed=seed)
        splits = {n: Split(s.inputs, torch.stack([s.targets, 0 * s.targets], 1)) for n, s in data.splits.items()}
        return Data(splits=splits, n_tokens=data.n_tokens, n_answers=data.n_answers)


class Twice(torch.nn.Module):
    def __init__(self, data):
        super().__init__()
        self.table = torch.nn.Embedding(data.n_tokens, 2 * data.n_answers)

    def forward(self, tokens):
        return self.table(tokens).sum(1).unflatten(1, (2, -1))


def test_each_answer_position_has_its_accuracy(how):
    changes = {"schedule.steps": 60, "optimizer.lr": 0.1, "optimizer.weight_decay": 0.0}
    together = train([SMALL.override({"task": Two(p=7), "seed": s, **changes}) for s in range(2)], model=Twice)
    for result in together:
        names = [f"{split}_accuracy_{i}" for split in ("train", "test") for i in (1, 2)]
        assert list(result.curves)[-5:] == ["weight_norm", *names]
        assert result.final["train_accuracy_2"] == 1.0  # always 0: soon learned
        for split in ("train", "test"):
            both = result.final[f"{split}_accuracy"]
            assert both <= min(result.final[f"{split}_accuracy_{i}"] for i in (1, 2)) + 1e-6


@dataclass(frozen=True)
class OnHost(Ours):
    needs_host = True


def test_what_cannot_be_replayed_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    for change, why in (
        ({"probes": "spread"}, ""), ({"task": Three(p=7)}, ""),
        ({"probes": OnHost()}, "tests.training.test_probing:OnHost needs the host"),
    ):  # fmt: skip
        experiment = SMALL.override(change if "task" in change else {"probes": (change["probes"],)} if why else change)
        assert choice_of(experiment, torch.device("cuda", 0), experiment.task.build()).why_no_replay == why


@dataclass(frozen=True, kw_only=True)
class Seen(ModularTask):
    """A third split that is soon learned: half of the training set."""

    def build(self, *, seed=0):
        data = super().build(seed=seed)
        few = Split(data.train.inputs[::2], data.train.targets[::2])
        return Data(splits={**data.splits, "few": few}, n_tokens=data.n_tokens, n_answers=data.n_answers)


@pytest.mark.parametrize("batch_size", [None, 9])
def test_a_replay_measures_what_steps_do(replayed, batch_size):
    """Probes, a third split, criteria of it and a switch after its moment; runs end at different times."""
    changes = {
        "task": Seen(p=7), "probes": (Ours(), Spread("few")), "criteria.generalize": "few", "criteria.sustain": 2,
        "schedule.steps": 40, "schedule.stop_after": 6, "schedule.batch_size": batch_size, "optimizer.lr": 0.02,
        "schedule.changes": "switch(of='lr',to=0.001,after='generalizing')", "task.train_fraction": 0.9,
    }  # fmt: skip
    experiments = [
        SMALL.override({**changes, "seed": seed, "criteria.threshold": at}) for seed, at in ((0, 0.1), (1, 0.3), (2, 1))
    ]
    results = train(experiments)
    assert len({result.steps for result in results}) > 1
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "Replay", Eager)
        for result, expected in zip(results, train(experiments)):
            same_result(result, expected)
