"""Gromov 2023: a network with x² for its activation adds mod p without an error, as one that is written down does."""

from __future__ import annotations

import torch

from grokfast.analysis import idealized_pair_mlp, inverse_participation_ratio
from grokfast.reproductions.base import Arm, Reproduction, Runs, Version
from grokfast.reproductions.findings import Finding, Published
from grokfast.reproductions.verdicts import control, mean_within
from grokfast.training import Experiment

P, WIDTH, N_WRITTEN = 97, 500, 20
ACCURACY, ONE_FREQUENCY = "accuracy", "inverse participation ratio"
SOURCE = "arXiv 2301.02679"


def written_down(width: int) -> list[float]:
    """What the analytic solution scores on all p² pairs, of N_WRITTEN draws of its phases."""
    pairs = torch.cartesian_prod(torch.arange(P), torch.arange(P))
    models = (idealized_pair_mlp(P, width, "cos", "cos", "square", seed) for seed in range(N_WRITTEN))
    return [(own(pairs)[0].argmax(-1) == pairs.sum(1) % P).double().mean().item() for own in models]


def compare(runs: Runs) -> list[Finding]:
    found = runs["adamw"]
    ratios = [_participation(run.weights["w_a"]) for run in found]
    first = [run.experiment.model.build(run.experiment.task.build(), seeds=[run.experiment.seed]) for run in found]
    before = [_participation(own.w_a[0].detach()) for own in first]
    return [
        mean_within(
            [run.final["test_accuracy"] for run in found], 0.999, claim="at least .999", quantity=ACCURACY,
            what="trained, test", published=Published(value=1.0, source=f"{SOURCE}, 100%"),
        ),
        mean_within(
            written_down(WIDTH), 0.999, claim="at least .999", quantity=ACCURACY,
            what=f"written down, {WIDTH} units", published=Published(value=1.0, source=f"{SOURCE}, analytic solution"),
        ),
        control(written_down(64), what="control: written down, 64 units", quantity=ACCURACY),
        mean_within(
            [after / own for after, own in zip(ratios, before)], 2, claim="more than doubled",
            what="of trained weights / of initial ones", quantity=ONE_FREQUENCY, unit="number",
        ),
    ]  # fmt: skip


def _participation(w_a: torch.Tensor) -> float:
    """The mean inverse participation ratio of what neurons read, w_a [p, N]; of those that decay has left at 0 none."""
    return inverse_participation_ratio(w_a.T).nanmean().item()


def _version(expectation: str, seeds: int) -> Version:
    return Version(
        expectation=expectation, arms={"adamw": Arm(experiment=Experiment.preset("gromov"), seeds=seeds)},
        compare=compare,
    )  # fmt: skip


REPRODUCTION = Reproduction(
    name="gromov2023",
    paper="Gromov 2023, arXiv 2301.02679, with AdamW",
    title="A network of x² adds without an error, by waves",
    full=_version("all test answers right, and weights of few frequencies", 5),
    quick=_version("the same of three seeds", 3),
)
