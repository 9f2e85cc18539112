"""Merrill et al. 2023: sparse parity is memorised by many neurons and later answered by a few, whose norms grow."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from grokfast.reproductions.base import Arm, Reproduction, Runs, Version, generalised
from grokfast.reproductions.findings import Finding, Published
from grokfast.reproductions.verdicts import control, mean_within, share_within
from grokfast.seeds import generator
from grokfast.training import Experiment, RunResult

PERIOD = 160  # steps between snapshots: five epochs
ACCURACY, NEURONS, GROWTH = "test accuracy", "neurons", "log10 of a quotient of norms"
SOURCE = "arXiv 2303.11873"


class Circuit(NamedTuple):
    """The numbers of the neurons that answer the training set as all of them do, and of the others."""

    few: Tensor
    rest: Tensor


def circuit(run: RunResult) -> Circuit:
    """Their code's `circuit_discovery_linear`: the least k whose k neurons of the largest norm have the accuracy of the
    whole network on the training set."""
    data = run.experiment.task.build(seed=run.experiment.seed).train
    order = norms(run).argsort(descending=True)
    right = (partial_outputs(run, data.inputs, order).sign() == data.targets).double().mean(0)  # [width]
    size = int((right == right[-1]).nonzero()[0]) + 1
    return Circuit(order[:size], order[size:])


def norms(run: RunResult) -> Tensor:
    """Of what each neuron reads, without its bias [width]."""
    return run.weights["layers.0.weight"].norm(dim=1)


def partial_outputs(run: RunResult, x: Tensor, order: Tensor) -> Tensor:
    """The outputs of the networks of the first 1, 2, ... neurons of `order`: x [N, n] -> [N, len(order)]."""
    w = run.weights
    hidden = (x @ w["layers.0.weight"].T + w["layers.0.bias"]).relu()
    return (hidden * w["layers.1.weight"][0])[:, order].cumsum(1) + w["layers.1.bias"]


def accuracy(run: RunResult, neurons: Tensor) -> float:
    """On the test set, of the network of these neurons alone."""
    test = run.experiment.task.build(seed=run.experiment.seed).test
    outputs = partial_outputs(run, test.inputs, neurons)[:, -1:]
    return (outputs.sign() == test.targets).double().mean().item()


def compare(runs: Runs) -> list[Finding]:
    """The neurons are those of runs that memorise and generalise: of others it is not known what they would be."""
    found = runs["parity"]
    late = [run for run in found if run.t_memorize is not None and run.t_generalize is not None]
    before = [run.at(-(-(run.t_memorize or 0) // PERIOD) * PERIOD) for run in late]
    ends = [circuit(run) for run in late]
    few, rest = [own.few for own in ends], [own.rest for own in ends]
    return [
        share_within(
            generalised(found), 0.5, claim="most, within 300 epochs", quantity="share",
            what="runs that generalise", published=Published(value=1.0, source=f"{SOURCE}: they generalise perfectly"),
        ),
        mean_within(
            [(run.t_generalize or 0) / (run.t_memorize or 1) for run in late], 1.8, claim="above 1.8",
            what="steps to generalise / to memorise", quantity="quotient of steps", unit="number",
        ),
        control([_steps(run.t_memorize) for run in found], what="control: to 98%, training", quantity="steps",
                unit="steps"),
        control([_steps(run.t_generalize) for run in found], what="control: to 98%, test", quantity="steps",
                unit="steps"),
        mean_within(
            [_test_accuracy(run, run.t_memorize) for run in found], high=0.6, claim="below .6", what="when memorised",
            quantity=ACCURACY, published=Published(value=0.5, source=f"{SOURCE}: near chance"),
        ),
        mean_within(
            list(map(accuracy, late, few)), 0.95, claim="above .95", what="of the few neurons alone, at the end",
            quantity=ACCURACY,
        ),
        control(
            [accuracy(run, _drawn(run, own)) for run, own in zip(late, ends)], quantity=ACCURACY,
            what="control: of as many others, at random",
        ),
        mean_within(
            list(map(len, few)), high=100, claim="below 100 of 1,000", what="that answer as all do, at the end",
            quantity=NEURONS, unit="number",
        ),
        control(
            [len(circuit(run).few) for run in before], what="control: that answer as all do, when memorised",
            quantity=NEURONS, unit="number",
        ),
        mean_within(
            list(map(_growth, late, before, few)), 0, claim="above 0", quantity=GROWTH, unit="number",
            what="of the few neurons, at the end / when memorised",
        ),
        mean_within(
            list(map(_growth, late, before, rest)), high=0, claim="below 0", what="of the others, likewise",
            quantity=GROWTH, unit="number",
        ),
    ]  # fmt: skip


def _steps(moment: int | None) -> float:
    return math.nan if moment is None else moment


def _test_accuracy(run: RunResult, step: int | None) -> float:
    """NaN where there is no such step."""
    return math.nan if step is None else float(run.curves["test_accuracy"][run.curves["step"] == step][0])


def _drawn(run: RunResult, own: Circuit) -> Tensor:
    """As many as the few, of the others."""
    return own.rest[torch.randperm(len(own.rest), generator=generator(run.experiment.seed, "control"))][: len(own.few)]


def _growth(run: RunResult, first: RunResult, neurons: Tensor) -> float:
    """log10 of the quotient of the mean norms of these neurons."""
    return math.log10(norms(run)[neurons].mean() / norms(first)[neurons].mean())


# As published, but 1,000 rows to test instead of 100; as theirs, from the first evaluation with 98%.
_PARITY = Experiment.preset("merrill").override(
    {"task.n_test": 1000, "criteria.threshold": 0.98, "schedule.snapshots": f"every:{PERIOD}"}
)


def _version(expectation: str, seeds: int) -> Version:
    return Version(
        expectation=expectation, arms={"parity": Arm(experiment=_PARITY, seeds=seeds)}, compare=compare
    )  # fmt: skip


REPRODUCTION = Reproduction(
    name="merrill2023",
    paper="Merrill et al. 2023, arXiv 2303.11873",
    title="Many neurons memorise a sparse parity, and a few that grow know it",
    full=_version("at chance when memorised, then a phase transition, after which a few neurons answer alone", 20),
    quick=_version("the same of five seeds", 5),
)
