"""The registry of parts: names, texts, JSON, hashes."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from grokfast import EMA, MA, Experiment, parts
from grokfast.losses import CrossEntropy
from grokfast.probes import Spread
from grokfast.sweeps.grid import expand, identity
from grokfast.tasks import ModularTask
from grokfast.transforms import Chain
from grokfast.transforms.base import Transform
from grokfast.transforms.optimizers import SGD, AdamW, Lion

OLD = json.loads((Path(__file__).parent / "training" / "presets-0.1.json").read_text())


@pytest.mark.parametrize(
    ("family", "part"),
    [
        ("task", ModularTask(p=7, operation="a2+b2")),
        ("optimizer", Lion(lr=1e-4, betas=(0.9, 0.97))),
        ("optimizer", SGD(momentum=0.9, nesterov=True)),
        ("loss", CrossEntropy(label_smoothing=0.1)),
        ("transform", MA(7, ring="bfloat16")),
        ("transform", Chain(EMA(0.5), MA(3))),
        ("probe", Spread("test")),
    ],
)
def test_a_part_survives_its_text_and_its_json(family, part):
    assert parts.chosen(family, parts.shown(part)) == part
    assert parts.from_plain(family, json.loads(json.dumps(parts.to_plain(part))), family) == part


def test_another_optimizer_keeps_what_both_have():
    nanda = Experiment.preset("nanda").override({"optimizer": "lion", "optimizer.lr": 1e-4})
    assert nanda.optimizer == Lion(lr=1e-4, weight_decay=1.0, betas=(0.9, 0.98), warmup=10)
    assert nanda.override({"optimizer": AdamW()}).optimizer == AdamW()


@pytest.mark.parametrize("name", OLD)
def test_what_an_older_version_stored_is_read_and_known_again(name):
    preset = Experiment.preset(name)
    assert Experiment.from_dict(OLD[name]) == preset
    old = {key: value for key, value in OLD[name].items() if key != "device"}
    assert json.loads(json.dumps(identity(preset))) == {**old, "device": identity(preset)["device"]}


@pytest.mark.parametrize(
    ("family", "said", "error", "message"),
    [
        ("optimizer", "lyon", ValueError, "optimizer must be one of .*'lion'.*did you mean 'lion'"),
        ("task", "nothing:Task", ValueError, "task 'nothing:Task' is not there: No module named 'nothing'"),
        ("task", "grokfast.tasks:Nothing", ValueError, "task 'grokfast.tasks:Nothing' is not there"),
        ("task", "grokfast:EMA", TypeError, "task must be a kind of task, 'grokfast:EMA' is"),
        ("transform", "ema(alpha=open('x'))", ValueError, "transform must be written name or name.*literals"),
        ("transform", "ema(0.9)", ValueError, "transform must be written name or name"),
        ("transform", "ema(beta=1)", ValueError, "transform 'ema' has no field 'beta', accepted are alpha, lamb"),
        ("transform", AdamW(), TypeError, "transform must be a transform, got AdamW"),
        ("probe", 3, TypeError, "probe must be a probe, its name or a mapping, got 3"),
    ],
)
def test_what_is_no_part_is_named(family, said, error, message):
    with pytest.raises(error, match=message):
        parts.chosen(family, said)


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match=r"transform 'ema' is grokfast\.transforms\.filters\.EMA already"):

        @parts.register("ema")
        @dataclass(frozen=True)
        class Other(Transform):
            pass


def test_a_users_registered_kind_is_stored_as_any_process_finds_it():
    @parts.register("of_this_test")
    @dataclass(frozen=True)
    class Ours(Transform):
        pass

    assert parts.chosen("transform", "of_this_test") == Ours()
    assert parts.to_plain(Ours()) == {"kind": f"{__name__}:{Ours.__qualname__}", "start": 0, "stop": None}
    del parts.kinds("transform")["of_this_test"]


def test_a_field_of_a_part_that_is_not_there_names_the_nearest():
    base = Experiment(probes="spread")
    assert base.override({"probes.spread.split": "test"}).probes == (Spread("test"),)
    with pytest.raises(ValueError, match=r"unknown option 'probes.sprad' .did you mean 'probes.spread"):
        base.override({"probes.sprad.split": "test"})


def test_whole_parts_are_axes():
    grid = {"optimizer": ["adamw", "lion"], "filter": ["none", "ema+ma(window_size=5)"]}
    cells = expand(Experiment.preset("quick"), grid)
    assert [type(cell.experiment.optimizer) for cell in cells] == [AdamW, AdamW, Lion, Lion]
    assert cells[1].experiment.filter == Chain(EMA(), MA(5))
    assert all(cell.experiment.optimizer.weight_decay == 1.0 for cell in cells)
