"""`Reproduction`: a paper's recipe, its published figures, and what is to be compared with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from grokfast.reproductions.findings import Finding
from grokfast.training import Experiment, RunResult

Runs = Mapping[str, Sequence[RunResult]]


def crossings(runs: Sequence[RunResult]) -> tuple[list[float], list[float]]:
    """Of each run the step at which it generalised, infinite where it did not, and how many it took."""
    times = [math.inf if run.t_generalize is None else float(run.t_generalize) for run in runs]
    return times, [float(run.steps) for run in runs]


def generalised(runs: Sequence[RunResult]) -> list[bool]:
    """Whether each run did."""
    return [run.t_generalize is not None for run in runs]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """An experiment that is trained with so many seeds, from its own on, with every combination of the values of
    `axes`, dotted names, where it has some."""

    experiment: Experiment
    seeds: int
    axes: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def differences(self) -> dict[str, Any]:
        """What it has otherwise than its preset, by dotted name, as JSON values."""
        own, preset = self.experiment.flat(), Experiment.preset(self.experiment.name).flat()
        return {name: value for name, value in own.items() if value != preset.get(name)}


@dataclass(frozen=True, kw_only=True)
class Version:
    """What is trained, and what is looked for in the runs of each arm.

    expectation: in a sentence, what should come out; a quick version's is its own.
    """

    expectation: str
    arms: Mapping[str, Arm]
    compare: Callable[[Runs], list[Finding]]

    def with_seeds(self, seeds: int | None) -> Version:
        """With so many seeds of every arm; None: as it is."""
        if seeds is None:
            return self
        return replace(self, arms={name: replace(arm, seeds=seeds) for name, arm in self.arms.items()})


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """A paper. full: as published, or as near as a CPU gets; quick: at most two minutes on two cores.

    title: of the picture, in words that say what is claimed.
    """

    name: str
    paper: str
    title: str
    full: Version
    quick: Version
