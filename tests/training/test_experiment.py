import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from grokfast import EMA, MA
from grokfast.models import PairMLPConfig, TransformerConfig
from grokfast.tasks import ModularTask
from grokfast.training import PRESETS, Experiment, Schedule
from grokfast.transforms.optimizers import SGD, AdamW


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_and_survive_json(name):
    experiment = Experiment.preset(name)
    assert experiment.name == name
    assert Experiment.from_dict(json.loads(json.dumps(experiment.to_dict()))) == experiment
    if not experiment.task.missing():
        assert len(experiment.task.build().train.targets) > 0


@pytest.mark.parametrize("filter", [None, EMA(0.9, 1.0), MA(7, 2.0, "sum", False)])
def test_filters_survive_json(filter):
    experiment = Experiment(filter=filter)
    assert Experiment.from_dict(json.loads(json.dumps(experiment.to_dict()))) == experiment


def test_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match=r"preset must be one of .*'quick'.* got 'quik' .did you mean 'quick'"):
        Experiment.preset("quik")


def test_override_replaces_leaves_and_whole_parts():
    base = Experiment.preset("quick")
    changed = base.override({"optimizer.lr": 3e-3, "seed": 4, "filter": EMA(), "optimizer.betas": (0.8, 0.9)})
    assert (changed.optimizer.lr, changed.seed, changed.filter, changed.optimizer.betas) == (3e-3, 4, EMA(), (0.8, 0.9))
    assert changed.optimizer.weight_decay == base.optimizer.weight_decay
    assert changed.override({"filter.alpha": 0.5}).filter == EMA(alpha=0.5)
    assert changed.override({"filter.lamb": 7.0, "filter": MA(3)}).filter == MA(3, 7.0)
    assert base == Experiment.preset("quick")


def test_a_field_of_an_absent_filter_is_explained():
    with pytest.raises(ValueError, match=r"unknown option 'filter.lamb' .the experiment has no filter: choose one"):
        Experiment().override({"filter.lamb": 1.0})


@pytest.mark.parametrize(
    ("wrong", "right"), [("optimizer.rl", "optimizer.lr"), ("task.trainfraction", "train_fraction")]
)
def test_unknown_option_names_the_nearest(wrong, right):
    with pytest.raises(ValueError, match=f"unknown option '{wrong}' .did you mean '.*{right}'"):
        Experiment().override({wrong: 1})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdamW(lr=-1.0), r"optimizer.lr must be in \[0.*got -1"),
        (lambda: AdamW(lr=float("nan")), "optimizer.lr"),
        (lambda: AdamW(betas=(0.9, 1.0)), "optimizer.betas"),
        (lambda: AdamW(betas=(0.9,)), "optimizer.betas"),
        (lambda: Experiment(optimizer="adagrad"), "optimizer must be one of"),
        (lambda: SGD(nesterov=True), "optimizer.momentum"),
        (lambda: Schedule(steps=0), "schedule.steps must be at least 1, got 0"),
        (lambda: Schedule(batch_size=0), "schedule.batch_size"),
        (lambda: Schedule(eval_every=0), "schedule.eval_every"),
        (lambda: Experiment(seed=-1), "seed"),
        (lambda: Experiment(loss="hinged"), "loss must be one of"),
        (lambda: Experiment(precision="float16"), "precision must be one of"),
        (lambda: Experiment(engine="fast"), "engine must be one of"),
        (lambda: Experiment(task=ModularTask(layout="equals")), "task.layout must be 'pair' for a PairMLP"),
        (lambda: PairMLPConfig(width=0), "width must be at least 1, got 0"),
        (lambda: TransformerConfig(n_heads=3), "d_model must be a multiple of n_heads"),
    ],
)
def test_bad_values_name_the_field(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_parts_of_another_type_are_refused():
    with pytest.raises(TypeError, match="filter must be a transform"):
        Experiment(filter=0.98)
    for values in ({"sed": 1}, {"task": {"kind": "ModularTask", "q": 1}}, {"seed": {"kind": "EMA"}}, 3, [1], None):
        with pytest.raises((TypeError, ValueError), match=r"not an experiment's dict|seed must be an integer"):
            Experiment.from_dict(values)


LEAVES = sorted(Experiment.preset("nanda").override({"filter": MA()}).flat())
ODD = [
    np.array([1, 2]),
    {1: 2},
    [{}],
    float("nan"),
    1e39,
    -1,
    10**20,
    10**5000,
    "\x1b[31m",
    "",
    b"x",
    {1, 2},
    object(),
    ...,
]


@pytest.mark.parametrize("name", LEAVES)
def test_whatever_a_field_is_given_is_refused_by_name_or_can_be_stored(name):
    base = Experiment.preset("nanda").override({"filter": MA()})
    for value in ODD:
        said = ""
        try:
            made = base.override({name: value})
            assert Experiment.from_dict(json.loads(json.dumps(made.to_dict()))) == made
        except (TypeError, ValueError) as error:
            said = str(error)
            assert "\n" not in said
        assert not said or name.rpartition(".")[2] in said


def test_numbers_of_any_kind_become_pythons_own():
    changes = {
        "seed": np.int64(3), "task.p": np.uint8(13), "task.train_fraction": Fraction(1, 2), "model.width": np.int32(16),
        "optimizer.lr": np.float32(0.5), "optimizer.betas": [np.float64(0.5), Fraction(3, 4)], "loss": np.str_("mse"),
        "optimizer.weight_decay": 1, "schedule.stop_after": np.int16(7), "criteria.threshold": Fraction(1, 4),
        "filter": EMA(Fraction(1, 2), np.float64(1)), "name": np.str_("mine"),
    }  # fmt: skip
    made = Experiment.preset("quick").override(changes)
    assert json.loads(json.dumps(made.to_dict())) == made.to_dict()
    kinds = {name: type(value) for name, value in made.flat().items()}
    assert set(kinds.values()) <= {int, float, bool, str, tuple, type(None)}
    assert [type(beta) for beta in made.optimizer.betas] == [float, float]
    assert (kinds["optimizer.weight_decay"], kinds["seed"], kinds["loss"]) == (float, int, str)


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("criteria.grok_gap", 10**20, ValueError, "criteria.grok_gap must be at most 9007199254740991, got 1000"),
        ("model.width", 10**30, ValueError, "width must be at most 9007199254740991"),
        ("model.depth", 10**9, ValueError, "depth must be between 1 and 1000, got 1000000000"),
        ("model.init_scale", 1e39, ValueError, r"init_scale must be in \(0, 1e\+38\], got 1e\+39"),
        ("optimizer.lr", 1e39, ValueError, r"optimizer.lr must be in \[0, 1e\+38\]"),
        ("optimizer.betas", ({1: 2}, 0.9), TypeError, "optimizer.betas must be a number, got {1: 2}"),
        ("task.layout", np.array(["pair", "equals"]), ValueError, "layout must be one of 'pair', "),
        ("name", 3, TypeError, "name must be a string, got 3"),
        ("device", None, TypeError, "device must be a string, got None"),
        ("device", "", ValueError, "device must have 1 to 200 printable characters"),
    ],
)
def test_values_that_once_escaped_are_refused_by_name(name, value, error, message):
    with pytest.raises(error, match=message):
        Experiment.preset("quick").override({name: value})


def test_fields_that_fit_only_each_other_come_in_any_order():
    for changes in (
        {"optimizer": "sgd", "optimizer.nesterov": True, "optimizer.momentum": 0.9},
        {"task.operation": "div", "task.p": 13},
        {"model": TransformerConfig(), "task.layout": "equals"},
    ):
        base = Experiment(task=ModularTask(p=12))
        assert base.override(changes) == base.override(dict(reversed(changes.items()))) != base


@pytest.mark.parametrize("changes", [3, None, "seed", {3: 1}, {None: 1}, [("seed", 1)]])
def test_changes_that_are_no_mapping_of_names_are_refused(changes):
    with pytest.raises(TypeError, match="changes must map dotted names to values"):
        Experiment().override(changes)


def test_a_copy_by_dataclasses_is_checked_like_any_other():
    with pytest.raises(ValueError, match=r"schedule.steps must be at least 1"):
        replace(Schedule(), steps=0)
