"""Ablations: which arms an experiment has, what differs in them, and that nothing is trained twice."""

import numpy as np
import pytest

from grokfast import Experiment, RunStore, ablate
from grokfast.sweeps import ARMS, Arm, InProcess, try_arms
from grokfast.sweeps.arms import USUAL
from tests.sweeps.common import TINY, Watch

NAMES = ["decay", "l2", "filter", "batch-half", "mse", "width-x2", "data-more", "curriculum"]
MLP = Experiment.preset("parity").override(
    {"task.n": 8, "task.n_train": 40, "task.n_test": 20, "model.width": 8, "model.depth": 2}
)
TRANSFORMER = Experiment(
    task="modular(p=7,layout=equals)", model="transformer(d_model=16,d_mlp=32,n_layers=2,dropout=0.2)",
    optimizer="adam(weight_decay=0.3)", filter="ma", schedule=TINY.schedule, device="cpu",
)  # fmt: skip


def differences(experiment, *names):
    found = try_arms(experiment, 1, names)
    return {name: found.differences(name) for name in found.arms if name != "base"}


def test_arms_change_what_they_say_and_nothing_else():
    assert differences(TINY, *NAMES, "decay-third", "init-x3", "depth-more", "label-noise", "label-smoothing") == {
        "decay": {"optimizer.weight_decay": 0.0},
        "l2": {"optimizer": "adam"},
        "filter": {"filter": "ema"},
        "batch-half": {"schedule.batch_size": int(0.4 * 13**2) // 2},
        "mse": {"loss": "mse"},
        "width-x2": {"model.width": 32},
        "data-more": {"task.train_fraction": 0.5},
        "curriculum": {"schedule.changes": "curriculum(steps=10,start=0.3)"},
        "decay-third": {"optimizer.weight_decay": 0.3333},
        "init-x3": {"model.init_scale": 3.0},
        "depth-more": {"model.depth": 2},
        "label-noise": {"task.label_noise": 0.05},
        "label-smoothing": {"loss.label_smoothing": 0.1},
    }


def test_what_an_experiment_has_is_turned_off():
    has = TRANSFORMER.override(
        {"schedule.changes": "curriculum(steps=5)", "schedule.batch_size": 10, "task.label_noise": 0.1}
    )
    names = ["l2", "filter", "batch-full", "dropout", "label-noise", "skips", "width-half", "depth-less", "curriculum"]
    assert differences(has, *names) == {
        "l2": {"optimizer": "adamw"},
        "filter": {"filter": None},
        "batch-full": {"schedule.batch_size": None},
        "dropout": {"model.dropout": 0.0},
        "label-noise": {"task.label_noise": 0.0},
        "skips": {"model.residual": False},
        "width-half": {"model.d_model": 8, "model.d_mlp": 16},
        "depth-less": {"model.n_layers": 1},
        "curriculum": {"schedule.changes": "none"},
    }
    assert differences(MLP.override({"optimizer.weight_decay": 0.0}), "decay", "skips", "data-less") == {
        "decay": {"optimizer.weight_decay": 1.0}, "skips": {"model.residual": True}, "data-less": {"task.n_train": 30},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("experiment", "name", "why"),
    [
        (TINY, "batch-full", "the experiment is so already"),
        (TINY, "skips", "a single hidden layer has no skip connection"),
        (TINY, "depth-less", "depth must be between 1"),
        (TINY.override({"optimizer.weight_decay": 0.0}), "l2", "the experiment has no weight decay"),
        (TINY.override({"optimizer.weight_decay": 0.0}), "decay-x3", "the experiment is so already"),
        (TINY.override({"task.train_fraction": 0.9}), "data-more", "train_fraction must be in (0, 1), got 1.125"),
        (MLP, "l2", "optimizer sgd has no twin"),
        (MLP, "cross-entropy", "takes classes as targets"),  # said only by the data
        (TINY.override({"task.operation": "sub"}), "swap", "augment"),
        (MLP, "swap-coverage", "train_fraction"),
    ],
)
def test_an_arm_that_does_not_apply_is_left_out_and_says_why(experiment, name, why):
    found = try_arms(experiment, 1, [name, "filter"])
    assert list(found.arms) == ["base", "filter"]
    assert list(found.left_out) == [name]
    assert why in found.left_out[name]


def test_arms_that_are_not_named_are_the_usual_ones():
    found = try_arms(TINY)
    assert {*found.arms} | {*found.left_out} == {"base", *USUAL}
    assert {*USUAL} < {*ARMS}


def test_the_control_of_the_swap_has_as_many_rows():
    if "task.augment" not in TINY.flat():
        pytest.skip("tables have no augmentation")
    rows = {
        name: len(experiment.task.build(seed=TINY.seed).train)
        for name, (_, experiment) in try_arms(TINY, 1, ["swap", "swap-coverage"]).arms.items()
    }
    assert rows["base"] == int(0.4 * 13**2)
    assert rows["swap"] > 1.4 * rows["base"]
    assert abs(rows["swap-coverage"] - rows["swap"]) <= 1


def test_each_arm_has_the_same_seeds_and_nothing_is_trained_twice(tmp_path):
    watch = Watch()
    tiny = TINY.override({"seed": 5})
    first = ablate(tiny, 2, NAMES, store=tmp_path, runner=InProcess(), observers=[watch])
    assert len(watch.begun()) == 2 * (1 + len(NAMES))
    table = first.table()
    assert table["arm"].tolist() == [name for name in ("base", *NAMES) for _ in range(2)]
    assert table["seed"].tolist() == [5, 6] * (1 + len(NAMES))
    assert set(table["status"]) == {"finished"}
    with RunStore(tmp_path) as store:
        for run_id, arm in first.arm_of.items():
            config = Experiment.from_dict(store.get(run_id).config)
            assert config == first.ablation.arms[arm][1].override({"seed": config.seed})
    watch = Watch()
    again = ablate(tiny, 2, NAMES, store=tmp_path, runner=InProcess(), observers=[watch])
    assert not watch.events
    assert all(np.array_equal(again.table()[name], table[name]) for name in ("run_id", "arm", "steps", "train_loss"))
    watch = Watch()
    ablate(tiny, 3, ["mse", "l2"], store=tmp_path, runner=InProcess(), observers=[watch])
    assert len(watch.begun()) == 3  # of the third seed


def test_arms_of_ones_own(tmp_path):
    own = [
        Arm(name="no-bias", changes={"model.bias": False}),
        Arm(name="slower", changes=lambda experiment: {"optimizer.lr": experiment.optimizer.lr / 2}),
        "mse",
    ]
    result = ablate(TINY, 1, own, store=tmp_path, runner=InProcess())
    assert list(result.ablation.arms) == ["base", "no-bias", "slower", "mse"]
    assert result.ablation.differences("slower") == {"optimizer.lr": 0.005}
    assert [run.experiment.model.bias for run in result.runs] == [True, False, True, True]


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"seeds": 0}, ValueError, "seeds must be at least 1, got 0"),
        ({"seeds": 2.5}, TypeError, "seeds must be an integer"),
        ({"arms": ["decya"]}, ValueError, r"arms must be one of .*did you mean 'decay'"),
        ({"arms": "decay"}, TypeError, "arms must be a sequence of names"),
        ({"arms": []}, ValueError, "at least one that applies"),
        ({"arms": ["base", "skips"]}, ValueError, "got none .skips: a single hidden layer has no skip connection"),
        ({"arms": [Arm(name="mse", changes={"loss": "hinge"}), "mse"]}, ValueError, "two that are 'mse'"),
        ({"arms": [Arm(name="base", changes={"loss": "hinge"})]}, ValueError, "two that are 'base'"),
        ({"experiment": "quick"}, TypeError, "experiment must be an Experiment"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_stored(tmp_path, arguments, kind, message):
    with pytest.raises(kind, match=message):
        ablate(**{"experiment": TINY, "store": tmp_path / "runs", **arguments})
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("fields", [{"name": "", "changes": {}}, {"name": "a", "changes": [1]}])
def test_an_arm_of_nothing_is_refused(fields):
    with pytest.raises((TypeError, ValueError), match=r"name|changes"):
        Arm(**fields)


def test_two_arms_that_are_the_same_are_one():
    found = try_arms(TINY, 1, ["mse", Arm(name="squares", changes={"loss": "mse"})])
    assert found.left_out == {"squares": "it is the same as mse"}
