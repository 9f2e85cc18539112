"""`ablate`: each technique of an experiment off, on, more or less in turn, with the same seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from grokfast import checks, parts
from grokfast.sweeps.arms import ARMS, BASE, USUAL, Arm
from grokfast.sweeps.engine import plan
from grokfast.sweeps.planned import PlannedSweep, SweepObserver
from grokfast.sweeps.result import SweepResult
from grokfast.text import one_line
from grokfast.training.ensemble import Ensemble
from grokfast.training.experiment import Experiment


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """An experiment and its arms, each tried.

    seeds: of every arm. arms: those that apply, "base" first, and their experiments, by name; their seed is the first.
    left_out: why the others do not apply, by name.
    """

    experiment: Experiment
    seeds: int
    arms: dict[str, tuple[Arm, Experiment]]
    left_out: dict[str, str]

    def differences(self, name: str) -> dict[str, Any]:
        """What the arm has otherwise than the base: see `differences`."""
        return differences(self.experiment, self.arms[name][1])

    def plan(self, **options: Any) -> PlannedSweep:
        """A sweep that zips what varies, each cell with every seed. Options and errors are those of `sweep`."""
        return plan_each([changed for _, changed in self.arms.values()], self.seeds, **options)

    def result(self, result: SweepResult) -> AblationResult:
        """The result of the planned sweep as that of the ablation."""
        names = [name for name in self.arms for _ in range(self.seeds)]
        return AblationResult(**parts.fields_of(result), ablation=self, arm_of=dict(zip(result.runs.run_ids, names)))


@dataclass(frozen=True, kw_only=True, repr=False)
class AblationResult(SweepResult):
    """The sweep of an ablation. arm_of: the arm of each run."""

    ablation: Ablation
    arm_of: dict[str, str]

    def table(self) -> dict[str, np.ndarray]:
        """A row per run, with a column "arm": `analysis.compare_arms` says how they differ."""
        table = super().table()
        return {"arm": np.array([self.arm_of[str(run_id)] for run_id in table["run_id"]], dtype=np.str_), **table}


def ablate(
    experiment: Experiment,
    seeds: int = 8,
    arms: Sequence[str | Arm] | None = None,
    *,
    observers: Sequence[SweepObserver] = (),
    **options: Any,
) -> AblationResult:
    """Train `experiment` and each of its `arms` with the same `seeds` seeds, from the experiment's on.

    `arms` are names of `sweeps.ARMS`, or arms of one's own; None: those of USUAL. One that the experiment
    refuses, or that changes nothing, is left out: `result.ablation.left_out` says why. The other options are those of
    `sweep`; all runs are of one sweep, so that the same call does nothing twice, and another one shares its runs.

    Raises TypeError or ValueError for an unknown arm (and names the nearest), where seeds is not at least 1, or where
    no arm is left; and as `sweep` does.
    """
    ablation = try_arms(experiment, seeds, arms)
    return ablation.result(ablation.plan(**options).train(observers))


def try_arms(experiment: Experiment, seeds: int = 8, arms: Sequence[str | Arm] | None = None) -> Ablation:
    """`ablate` up to the sweep: which arms apply is found out by building their data, model and optimizer."""
    if not isinstance(experiment, Experiment):
        raise TypeError(f"experiment must be an Experiment, got {checks.shown(experiment)}")
    seeds = checks.integer("seeds", seeds, minimum=1)
    Ensemble([experiment])
    found, left_out = {BASE.name: (BASE, experiment)}, dict[str, str]()
    for name, arm in _chosen(arms).items():
        try:
            changed = arm.of(experiment)
            same = next((other for other, (_, known) in found.items() if known == changed), None)
            if same is not None:
                raise ValueError("the experiment is so already" if same == BASE.name else f"it is the same as {same}")
            Ensemble([changed])
        except ValueError as error:
            left_out[name] = one_line(error)
        else:
            found[name] = arm, changed
    if len(found) == 1:
        said = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise ValueError(f"arms must be at least one that applies to the experiment, got none ({said or 'no arms'})")
    return Ablation(experiment=experiment, seeds=seeds, arms=found, left_out=left_out)


def differences(experiment: Experiment, other: Experiment) -> dict[str, Any]:
    """What the other has otherwise, by dotted name; another kind of part in words, as overrides take it."""
    flat, base = experiment.flat(), _fields(experiment)
    found: dict[str, Any] = {}
    for key, own in _fields(other).items():
        if isinstance(own, parts.Part) and type(own) is type(base[key]):
            found |= {at: value for at, value in parts.leaves(key, own) if value != flat.get(at)}
        elif own != base[key] and isinstance(own, tuple):
            found[key] = ",".join(map(parts.shown, own)) or "none"
        elif own != base[key] and isinstance(own, parts.Part):
            same = [at for at, value in parts.fields_of(own).items() if flat.get(f"{key}.{at}") == value]
            found[key] = parts.shown(own, same)
        elif own != base[key]:
            found[key] = own
    return found


def plan_each(experiments: Sequence[Experiment], seeds: int, **options: Any) -> PlannedSweep:
    """A sweep of these experiments, all different but of one seed, each with so many seeds from that on, one after the
    other. Options and errors are those of `sweep`."""
    fields = [_fields(experiment) for experiment in experiments]
    axes = {key: [own[key] for own in fields] for key in fields[0]}
    varied = {key: values for key, values in axes.items() if any(value != values[0] for value in values)}
    return plan(experiments[0], varied, zip=True, seeds=seeds, **options)


def _chosen(arms: Sequence[str | Arm] | None) -> dict[str, Arm]:
    """By name, without the base."""
    if arms is None:
        return {name: ARMS[name] for name in USUAL}
    if isinstance(arms, (str, Arm)) or not isinstance(arms, Sequence):
        raise TypeError(f"arms must be a sequence of names or of arms, got {checks.shown(arms)}")
    known = {BASE.name: BASE, **ARMS}
    found = [one if isinstance(one, Arm) else known[checks.choice("arms", one, known)] for one in arms]
    chosen: dict[str, Arm] = {}
    for arm in found:
        if chosen.setdefault(arm.name, arm) != arm or (arm.name == BASE.name and arm != BASE):
            raise ValueError(f"arms must have different names, got two that are {arm.name!r}")
    return {name: arm for name, arm in chosen.items() if name != BASE.name}


def _fields(experiment: Experiment) -> dict[str, Any]:
    """By what an axis of a grid is called: parts and plain values whole, schedule and criteria field by field."""
    found: dict[str, Any] = {}
    for name, value in parts.fields_of(experiment).items():
        if name in ("schedule", "criteria"):
            found |= {f"{name}.{own}": one for own, one in parts.fields_of(value).items()}
        else:
            found[name] = value
    return found
