"""Zhong et al. 2023: heads that weigh both operands alike add by pizza, heads that attend more like a clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from grokfast.analysis import circularity, distance_irrelevance, gradient_symmetricity
from grokfast.reproductions.base import Arm, Reproduction, Runs, Version
from grokfast.reproductions.findings import Finding, Published
from grokfast.reproductions.verdicts import control, mean_within, same_mean, share_within
from grokfast.training import Experiment, RunResult

RATES = {"pizza": 0.0, "clock": 1.0}  # of attention
TABLE = "the authors' table of runs, arXiv 2306.17844"
# Of all their runs with one layer at rates below .05, and above .95. Their table has the irrelevance of the largest
# wrong logit, not of the correct one, which is what is defined: for that there are the weights of two networks.
SYMMETRICITY = {
    "pizza": Published(value=0.9929, spread=0.0014, n=121, source=f"{TABLE}, rate below .05"),
    "clock": Published(value=0.4548, spread=0.1209, n=110, source=f"{TABLE}, rate above .95"),
}
CIRCULARITY = {
    "pizza": Published(value=0.9523, spread=0.0765, n=121, source=f"{TABLE}, rate below .05"),
    "clock": Published(value=0.9609, spread=0.0675, n=110, source=f"{TABLE}, rate above .95"),
}
IRRELEVANCE = {
    "pizza": Published(value=0.172, source="the authors' weights of model B, measured with them"),
    "clock": Published(value=0.848, source="the authors' weights of model A, measured here"),
}
MARGINS = {"pizza": 0.02, "clock": 0.2}  # of symmetricity, whose runs differ by .001 and .12
MARGIN = 0.2  # of irrelevance, .68 apart, and of circularity


def compare(runs: Runs) -> list[Finding]:
    """Untrained networks are the control of symmetricity: how much of it the heads alone make."""
    symmetricity = {name: gradient_symmetricity(found).tolist() for name, found in runs.items()}
    irrelevance = {name: distance_irrelevance(found).tolist() for name, found in runs.items()}
    circles = {name: circularity(_embeddings(found)).tolist() for name, found in runs.items()}
    found = []
    for name in RATES:
        words: dict[str, Any] = {"what": name, "quantity": "gradient symmetricity"}
        found.append(same_mean(symmetricity[name], SYMMETRICITY[name], margin=MARGINS[name], **words))
    for name, own in runs.items():
        before = gradient_symmetricity(*_untrained(own)).tolist()
        found.append(control(before, what=f"control: {name}, untrained", quantity="gradient symmetricity"))
    for name in RATES:
        words = {"what": name, "quantity": "distance irrelevance"}
        found.append(same_mean(irrelevance[name], IRRELEVANCE[name], margin=MARGIN, **words))
    for name in RATES:
        words = {"what": name, "quantity": "circularity of embeddings"}
        found.append(same_mean(circles[name], CIRCULARITY[name], margin=MARGIN, **words))
    for quantity, values in (("gradient symmetricity", symmetricity), ("distance irrelevance", irrelevance)):
        sign = 1 if values is symmetricity else -1
        found.append(
            mean_within(
                [sign * (pizza - clock) for pizza, clock in zip(values["pizza"], values["clock"])], 0,
                claim="more than 0", what=f"{quantity}, {'pizza less clock' if sign > 0 else 'clock less pizza'}",
                quantity="difference", unit="number",
            )
        )  # fmt: skip
    return found


def compare_quick(runs: Runs) -> list[Finding]:
    pizza, clock = (gradient_symmetricity(runs[name]).tolist() for name in RATES)
    return [
        mean_within(pizza, 0.95, claim="at least .95", what="pizza", quantity="gradient symmetricity"),
        share_within(
            [one > other for one, other in zip(pizza, clock)], 0.1, claim="not never", quantity="share of seeds",
            what="symmetricity of pizza above that of clock",
        ),
    ]  # fmt: skip


def _embeddings(runs: Sequence[RunResult]) -> Tensor:
    return torch.stack([run.weights["embedding"] for run in runs])


def _untrained(runs: Sequence[RunResult]) -> tuple[Any, Any]:
    """The networks as they were drawn, and their task."""
    experiment = runs[0].experiment
    data = experiment.task.build(seed=experiment.seed)
    return experiment.model.build(data, seeds=[run.experiment.seed for run in runs]), experiment.task


def _arms(steps: int, seeds: int) -> dict[str, Arm]:
    changes = {"schedule.steps": steps, "schedule.stop_after": None}
    base = Experiment.preset("pizza").override(changes)
    return {
        name: Arm(experiment=base.override({"model.attention_rate": rate}), seeds=seeds) for name, rate in RATES.items()
    }


REPRODUCTION = Reproduction(
    name="zhong2023",
    paper="Zhong et al. 2023, arXiv 2306.17844, after 5,000 of their 20,000 epochs",
    title="The clock and the pizza: how heads that attend, or weigh alike, add",
    full=Version(
        expectation="pizza: symmetric gradients and low irrelevance; clock: neither", arms=_arms(5000, 5),
        compare=compare,
    ),
    quick=Version(
        expectation="after 1,500 epochs pizza is symmetric, and more so than clock", arms=_arms(1500, 3),
        compare=compare_quick,
    ),
)  # fmt: skip
