import json

import pytest

from grokfast import EMA, MA, tasks
from grokfast.nn import PairMLPConfig, TransformerConfig
from grokfast.tasks import ModularTask
from grokfast.training import PRESETS, Experiment, OptimizerConfig, Schedule


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_and_survive_json(name):
    experiment = Experiment.preset(name)
    assert experiment.name == name
    assert Experiment.from_dict(json.loads(json.dumps(experiment.to_dict()))) == experiment
    assert len(tasks.build(experiment.task).train_targets) > 0


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
        (lambda: OptimizerConfig(lr=-1.0), r"optimizer.lr must be in \[0.*got -1"),
        (lambda: OptimizerConfig(lr=float("nan")), "optimizer.lr"),
        (lambda: OptimizerConfig(betas=(0.9, 1.0)), "optimizer.betas"),
        (lambda: OptimizerConfig(betas=(0.9,)), "optimizer.betas"),
        (lambda: OptimizerConfig(name="adagrad"), "optimizer.name must be one of"),
        (lambda: OptimizerConfig(name="sgd", nesterov=True), "optimizer.momentum"),
        (lambda: Schedule(steps=0), "schedule.steps must be at least 1, got 0"),
        (lambda: Schedule(batch_size=0), "schedule.batch_size"),
        (lambda: Schedule(eval_every=0), "schedule.eval_every"),
        (lambda: Experiment(seed=-1), "seed"),
        (lambda: Experiment(loss="hinge"), "loss must be one of"),
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
    with pytest.raises(TypeError, match="filter must be a EMA or MA"):
        Experiment(filter=0.98)
    with pytest.raises(TypeError, match="not an experiment's dict"):
        Experiment.from_dict({"sed": 1})
