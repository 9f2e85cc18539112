"""Doshi et al. 2023: waves know the right answers, other neurons the wrong labels, which regularisation stops."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from grokfast.analysis import inverse_participation_ratio
from grokfast.reproductions.base import Arm, Reproduction, Runs, Version
from grokfast.reproductions.findings import Finding, Published
from grokfast.reproductions.verdicts import control, mean_within
from grokfast.tasks.data import Split
from grokfast.training import Experiment, RunResult

STEPS = 2000  # of the paper
PERIODIC = 0.5  # inverse participation ratio of a neuron that counts as a wave
WRONG, TEST, WAVES = "accuracy on wrong labels", "test accuracy", "share of neurons that are waves"
SOURCE = "arXiv 2310.13061"


class Scores(NamedTuple):
    """Accuracies: on training rows whose label is wrong, to that label, and on the test set."""

    wrong: float
    test: float


def participation(run: RunResult) -> Tensor:
    """Of each neuron the mean inverse participation ratio of what it reads of a, of b, and writes [N]; 0 of what decay
    has left at 0."""
    own = [run.weights[name].T for name in ("w_a", "w_b", "out.weight")]
    return torch.stack([inverse_participation_ratio(w).nan_to_num(0) for w in own]).mean(0)


def scores(run: RunResult, kept: Tensor) -> Scores:
    """Of the network of the kept neurons alone, bool [N]."""
    w = run.weights
    w_a, w_b, w_out = w["w_a"][:, kept], w["w_b"][:, kept], w["out.weight"][:, kept]

    def right(split: Split) -> Tensor:
        a, b = split.inputs.unbind(1)
        return ((w_a[a] + w_b[b]).square() @ w_out.T).argmax(-1) == split.targets

    data = run.experiment.task.build(seed=run.experiment.seed)
    return Scores(*(found.double().mean().item() for found in (right(data.train)[data.corrupted], right(data.test))))


def compare(runs: Runs) -> list[Finding]:
    """Of the arm "plain", and of those with regularisation that there are. Wrong labels go on being learned: that they
    are memorised is decided by runs alone that were followed for as long as in the paper."""
    plain, others = runs["plain"], {name: own for name, own in runs.items() if name != "plain"}
    whole = {name: [scores(run, participation(run) >= 0) for run in own] for name, own in runs.items()}
    waves = [scores(run, participation(run) > PERIODIC) for run in plain]
    rest = [scores(run, participation(run) <= PERIODIC) for run in plain]
    memorised = Published(value=1.0, source=f"{SOURCE}: corrupted labels memorised, 100% generalisation at once")
    ignored = Published(value=0.0, source=f"{SOURCE}: regularisation ignores corrupted labels")
    right = Published(value=1.0, source=f"{SOURCE}: 100%")
    return [
        mean_within(
            [own.wrong if run.steps >= STEPS else math.nan for own, run in zip(whole["plain"], plain)], 0.9,
            claim=f"above .9 after {STEPS:,} steps", what="plain", quantity=WRONG, published=memorised,
        ),
        control(
            [own.wrong for own in whole["plain"]], quantity=WRONG,
            what=f"control: plain, after {max(run.steps for run in plain):,} steps",
        ),
        mean_within(
            [own.wrong for own in waves], high=0.1, claim="below .1", what="plain, its waves alone", quantity=WRONG,
        ),
        control([own.wrong for own in rest], what="control: plain, the other neurons alone", quantity=WRONG),
        *(
            mean_within(
                [own.wrong for own in whole[name]], high=0.1, claim="below .1", what=name, quantity=WRONG,
                published=ignored,
            )
            for name in others
        ),
        *(
            mean_within(
                [own.test for own in found], 0.99, claim="at least .99", what=name, quantity=TEST, published=right,
            )
            for name, found in whole.items()
        ),
        mean_within(
            [own.test for own in waves], 0.99, claim="at least .99", what="plain, its waves alone", quantity=TEST,
        ),
        control([own.test for own in rest], what="control: plain, the other neurons alone", quantity=TEST),
        control(list(map(_share, plain)), what="control: plain", quantity=WAVES),
        *(
            mean_within(
                [a - b for a, b in zip(map(_share, own), map(_share, plain))], 0, claim="more than 0", unit="number",
                what=f"{name}, less plain", quantity=f"difference of the {WAVES}",
            )
            for name, own in others.items()
        ),
    ]  # fmt: skip


def _share(run: RunResult) -> float:
    """Of the neurons that are waves."""
    return (participation(run) > PERIODIC).double().mean().item()


def _arms(seeds: int, steps: Mapping[str, int]) -> dict[str, Arm]:
    """A fifth of the labels is wrong, half of the pairs are trained on."""
    changes = {"plain": {"model.dropout": 0.0}, "decay": {"model.dropout": 0.0, "optimizer.weight_decay": 5.0}}
    base = Experiment.preset("doshi")
    return {
        name: Arm(experiment=base.override({**changes.get(name, {}), "schedule.steps": own}), seeds=seeds)
        for name, own in steps.items()
    }


REPRODUCTION = Reproduction(
    name="doshi2023",
    paper="Doshi et al. 2023, arXiv 2310.13061, of 2,000 steps the first 200 to 800",
    title="Waves give the right answers, other neurons remember wrong labels, and regularisation makes more waves",
    full=Version(
        expectation="plain: wrong labels and the test set, by its waves; decay, dropout: the test set alone",
        arms=_arms(5, {"plain": 800, "decay": 200, "dropout": 200}),
        compare=compare,
    ),
    quick=Version(
        expectation="the same of plain, after 400 steps, and of decay, three seeds",
        arms=_arms(3, {"plain": 400, "decay": 200}),
        compare=compare,
    ),
)
