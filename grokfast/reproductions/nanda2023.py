"""Nanda et al. 2023: a transformer adds by a few frequencies, and its circuit is there before it generalises."""

from __future__ import annotations

import math

import numpy as np

from grokfast.analysis import neuron_frequencies, progress_measures
from grokfast.reproductions.base import Arm, Reproduction, Runs, Version
from grokfast.reproductions.findings import Finding, Published
from grokfast.reproductions.verdicts import control, mean_within
from grokfast.training import Experiment, RunResult

SOURCE = "arXiv 2301.05217"
MAINLINE = Published(value=5, source=f"{SOURCE}, main line, p = 113: frequencies 14, 35, 41, 42, 52")
NEURONS = 433 / 512  # with more than .85 of one frequency: their main line, at p = 113 and after 40,000 steps
QUOTIENT = "log10 of a quotient of losses"
BEFORE = 0.6  # test accuracy: the circuit must be there while it is lower


def compare(runs: Runs) -> list[Finding]:
    found = runs["p53"]
    final = [progress_measures(run) for run in found]
    neurons = [(neuron_frequencies(run).share > 0.85).double().mean().item() for run in found]
    forming = [(run, _forming(run)) for run in found]
    return [
        mean_within(
            [len(own.frequencies[0]) for own in final], 3, 7, claim="3 to 7", published=MAINLINE,
            what="key frequencies, of the logits", quantity="key frequencies", unit="number",
        ),
        mean_within(
            [own.shares[0, [k - 1 for k in own.frequencies[0]]].sum().item() for own in final], 0.85, 1,
            claim="at least .85", what="their share of the logits' energy", quantity="share",
        ),
        control(
            neurons, what=f"control: neurons of one frequency (their main line: {NEURONS:.2f})", quantity="share"
        ),
        mean_within(
            [_log_ratio(_at(run, "restricted_loss", at), _at(run, "test_loss", at)) for run, at in forming],
            high=math.log10(0.2), claim="quotient below .2",
            what="restricted loss / test loss, while test accuracy is below .6", quantity=QUOTIENT,
            unit="number",
        ),
        mean_within(
            [_log_ratio(run.final["excluded_loss"], _at(run, "excluded_loss", run.t_memorize)) for run in found],
            math.log10(2), claim="quotient above 2",
            what="excluded loss, at the end / when memorised", quantity=QUOTIENT, unit="number",
        ),
    ]  # fmt: skip


def _at(run: RunResult, column: str, step: int | None) -> float:
    """NaN where there is no such step."""
    values = run.curves[column][run.curves["step"] == (-1 if step is None else step)]
    return float(values[0]) if len(values) else math.nan


def _log_ratio(one: float, other: float) -> float:
    """log10: quotients of losses scatter over powers of ten. NaN where one is not positive."""
    return math.log10(one / other) if one > 0 and other > 0 else math.nan


def _forming(run: RunResult) -> int | None:
    """The last evaluation with a test accuracy below BEFORE, of a run that came above; None without one."""
    low = run.curves["test_accuracy"] < BEFORE
    return int(run.curves["step"][np.flatnonzero(low)[-1]]) if low.any() and not low[-1] else None


def _arms(steps: int, seeds: int) -> dict[str, Arm]:
    changes = {
        "task.p": 53, "task.train_fraction": 0.5, "schedule.steps": steps, "schedule.eval_every": 50,
        "schedule.stop_after": 500, "probes": "progress",
    }  # fmt: skip
    return {"p53": Arm(experiment=Experiment.preset("nanda").override(changes), seeds=seeds)}


REPRODUCTION = Reproduction(
    name="nanda2023",
    paper="Nanda et al. 2023, arXiv 2301.05217, at p = 53 and half of the pairs",
    title="A transformer adds by a few frequencies, and the circuit forms before it generalises",
    full=Version(
        expectation="3 to 7 key frequencies; restricted loss falls before test loss does, excluded loss rises",
        arms=_arms(5000, 5),
        compare=compare,
    ),
    quick=Version(
        expectation="the same of three seeds, as far as they come in 1,200 steps",
        arms=_arms(1200, 3),
        compare=compare,
    ),
)
