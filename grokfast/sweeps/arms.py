"""The arms of an ablation: one technique off or on, or more or less of it, with all else as the experiment has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from grokfast import checks
from grokfast.parts import name_of
from grokfast.schedules.curriculum import Curriculum
from grokfast.tasks import Data
from grokfast.training.experiment import Experiment

Changes = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A named change of an experiment.

    Args:
        name: what `ablate` and the command line call it.
        group: what it is about, for people.
        about: what it does, in a sentence.
        changes: what `Experiment.override` takes, or a function of the experiment that returns it, and raises
            ValueError where the experiment has nothing to change.
    """

    name: str
    group: str = "own"
    about: str = ""
    changes: Changes | Callable[[Experiment], Changes]

    def __post_init__(self) -> None:
        checks.Fields(self).text("name", "group")
        if not (callable(self.changes) or isinstance(self.changes, Mapping)):
            raise TypeError(
                f"changes must map dotted names to values, or be a function, got {checks.shown(self.changes)}"
            )

    def of(self, experiment: Experiment) -> Experiment:
        """The experiment of this arm. Raises ValueError where it does not apply."""
        return experiment.override(self.changes(experiment) if callable(self.changes) else self.changes)


def _value(experiment: Experiment, *keys: str) -> tuple[str, Any]:
    """The first of the keys that the experiment has, and its value."""
    flat = experiment.flat()
    for key in keys:
        if key in flat:
            return key, flat[key]
    raise ValueError(f"the experiment has no {' or '.join(keys)}")


def _times(factor: float, *keys: str) -> Callable[[Experiment], Changes]:
    """One of the keys, an integer or a real number to four digits, times a factor."""

    def changes(experiment: Experiment) -> Changes:
        key, value = _value(experiment, *keys)
        return {key: round(factor * value) if isinstance(value, int) else float(f"{factor * value:.4g}")}

    return changes


def _plus(number: int, *keys: str) -> Callable[[Experiment], Changes]:
    def changes(experiment: Experiment) -> Changes:
        key, value = _value(experiment, *keys)
        return {key: value + number}

    return changes


def _turned(key: str, on: Any, off: Any) -> Callable[[Experiment], Changes]:
    """Off where it is on, on where it is off."""

    def changes(experiment: Experiment) -> Changes:
        _, value = _value(experiment, key)
        return {key: on if value == off else off}

    return changes


def _skips(experiment: Experiment) -> Changes:
    key, depth = _value(experiment, *_DEPTH)
    if key == "model.depth" and depth < 2:
        raise ValueError("a single hidden layer has no skip connection")
    return _turned("model.residual", True, False)(experiment)


def _width(factor: float) -> Callable[[Experiment], Changes]:
    """Of a transformer all widths together."""

    def changes(experiment: Experiment) -> Changes:
        key, _ = _value(experiment, "model.width", "model.d_model")
        keys = [key] if key == "model.width" else [key, "model.d_mlp"]
        return {own: value for one in keys for own, value in _times(factor, one)(experiment).items()}

    return changes


def _l2(experiment: Experiment) -> Changes:
    other = {"adamw": "adam", "adam": "adamw"}
    kind = name_of(experiment.optimizer)
    if kind not in other:
        raise ValueError(f"optimizer {kind} has no twin whose weight decay is L2")
    if not experiment.optimizer.weight_decay:
        raise ValueError("the experiment has no weight decay")
    return {"optimizer": other[kind]}


def _half_batch(experiment: Experiment) -> Changes:
    return {"schedule.batch_size": max(1, len(_data(experiment).train) // 2)}


def _curriculum(by: str) -> Callable[[Experiment], Changes]:
    """Over the first sixth of the steps, from 30% of the rows on; off where the experiment has one by size."""

    def changes(experiment: Experiment) -> Changes:
        there = experiment.schedule.changes
        others = tuple(one for one in there if name_of(one) != "curriculum")
        if by == "size" and others != there:
            return {"schedule.changes": others}
        steps = max(1, experiment.schedule.steps // 6)
        return {"schedule.changes": (*others, Curriculum(steps=steps, start=0.3, by=by))}  # type: ignore[arg-type]

    return changes


def _swap_coverage(experiment: Experiment) -> Changes:
    """As many different pairs as with the swap, drawn at random: 1 - (1 - f)² of a table whose operands commute."""
    key, share = _value(experiment, "task.train_fraction")
    plain, swapped = (experiment.override({"task.augment": augment}) for augment in ("none", "swap"))
    coverage = share * len(_data(swapped).train) / len(_data(plain).train)
    return {"task.augment": "none", key: float(f"{coverage:.4g}")}


def _data(experiment: Experiment) -> Data:
    return experiment.task.build(seed=experiment.seed)


_DECAY, _INIT, _DATA = "optimizer.weight_decay", "model.init_scale", ("task.train_fraction", "task.n_train")
_DEPTH = "model.depth", "model.n_layers"

_ALL = (
    Arm(name="decay", group="weight decay", about="No weight decay; where there is none, 1.",
        changes=_turned(_DECAY, 1.0, 0.0)),
    Arm(name="decay-third", group="weight decay", about="A third of the weight decay.", changes=_times(1 / 3, _DECAY)),
    Arm(name="decay-x3", group="weight decay", about="Three times the weight decay.", changes=_times(3, _DECAY)),
    Arm(name="decay-x10", group="weight decay", about="Ten times the weight decay.", changes=_times(10, _DECAY)),
    Arm(name="l2", group="weight decay", about="Adam, its weight decay as L2; of Adam AdamW, decoupled.", changes=_l2),
    Arm(name="filter", group="gradient", about="No filter; where there is none, the EMA filter.",
        changes=lambda experiment: {"filter": "ema" if experiment.filter is None else None}),
    Arm(name="batch-half", group="gradient", about="Batches of half of the training set.", changes=_half_batch),
    Arm(name="batch-full", group="gradient", about="The whole training set in every step.",
        changes={"schedule.batch_size": None}),
    Arm(name="dropout", group="noise", about="No dropout; where there is none, 0.1.",
        changes=_turned("model.dropout", 0.1, 0.0)),
    Arm(name="label-noise", group="noise", about="No label noise; where there is none, 0.05.",
        changes=_turned("task.label_noise", 0.05, 0.0)),
    Arm(name="label-smoothing", group="noise", about="No label smoothing; where there is none, 0.1.",
        changes=_turned("loss.label_smoothing", 0.1, 0.0)),
    Arm(name="mse", group="loss", about="Squared error against the one-hot answer.", changes={"loss": "mse"}),
    Arm(name="stablemax", group="loss", about="StableMax cross entropy.", changes={"loss": "stablemax"}),
    Arm(name="cross-entropy", group="loss", about="Cross entropy.", changes={"loss": "cross_entropy"}),
    Arm(name="skips", group="model", about="No skip connections; where there are none, skip connections.",
        changes=_skips),
    Arm(name="init-third", group="model", about="Initial weights a third as large.", changes=_times(1 / 3, _INIT)),
    Arm(name="init-x3", group="model", about="Initial weights three times as large.", changes=_times(3, _INIT)),
    Arm(name="depth-less", group="model", about="One layer less.", changes=_plus(-1, *_DEPTH)),
    Arm(name="depth-more", group="model", about="One layer more.", changes=_plus(1, *_DEPTH)),
    Arm(name="width-half", group="model", about="Half of the width.", changes=_width(0.5)),
    Arm(name="width-x2", group="model", about="Twice the width.", changes=_width(2)),
    Arm(name="data-less", group="data", about="Three quarters of the training rows.", changes=_times(0.75, *_DATA)),
    Arm(name="data-more", group="data", about="Five quarters of the training rows.", changes=_times(1.25, *_DATA)),
    Arm(name="curriculum", group="data", about="Small rows first; where there is such a curriculum, none.",
        changes=_curriculum("size")),
    Arm(name="curriculum-random", group="data", about="The control of the curriculum: as many rows, at random.",
        changes=_curriculum("random")),
    Arm(name="swap", group="data", about="Training pairs also with operands swapped; where that is so, not.",
        changes=_turned("task.augment", "swap", "none")),
    Arm(name="swap-coverage", group="data", about="The control of the swap: as many pairs, at random.",
        changes=_swap_coverage),
)  # fmt: skip

BASE = Arm(name="base", group="base", about="The experiment as it is.", changes={})
ARMS: dict[str, Arm] = {arm.name: arm for arm in _ALL}
# What an ablation has that names none: with 8 seeds of `quick` 13 CPU minutes; the others take longer than these.
USUAL = (
    "decay", "decay-x3", "filter", "batch-full", "dropout", "label-smoothing", "mse", "cross-entropy",
    "skips", "depth-less", "data-more", "curriculum", "curriculum-random", "swap", "swap-coverage",
)  # fmt: skip
