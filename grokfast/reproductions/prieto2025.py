"""Prieto et al. 2025: without regularisation the softmax collapses and learning stalls; what cures it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from grokfast.reproductions.base import Arm, Reproduction, Runs, Version
from grokfast.reproductions.findings import Finding, Published
from grokfast.reproductions.verdicts import control, mean_within, same_mean, share_within
from grokfast.training import Experiment, RunResult

STABLEMAX, ORTHOGRAD = 80_000, 300  # epochs of figure 1
LONG = 20_000  # steps after which a softmax should have collapsed: those of figure 2
COLLAPSED, SHARE = "training rows whose answer has no gradient in fp32", "share of runs"
SOURCE = "arXiv 2501.04697"
PRESETS = {
    "decay": "prieto-wd8", "orthograd": "prieto-orthograd", "plain": "prieto", "stablemax": "prieto-stablemax",
}  # fmt: skip


def collapsed(run: RunResult) -> float:
    """The share of training rows in whose loss the answer's probability is 1 to the last bit: a sum of exponentials has
    absorbed the others, and the answer's logit has no gradient."""
    train = run.experiment.task.build(seed=run.experiment.seed).train
    with torch.no_grad():
        logits = run.to_torch()(train.inputs)
    _, _, gradient = run.experiment.loss.gradient(logits[None], train.targets[None])
    return (gradient[0].gather(-1, train.targets[:, None]) == 0).double().mean().item()


def compare(runs: Runs) -> list[Finding]:
    """What there is of the arms. A cure has failed, and a collapse is not there, only where a run was followed for as
    long as in the paper."""
    found = [
        mean_within(
            [run.final["test_accuracy"] for run in runs["plain"]], high=0.1, claim="below .1", what="plain, at the end",
            quantity="test accuracy", published=Published(value=0.0, source=f"{SOURCE}, figure 1: never"),
        ),
        mean_within(
            [collapsed(run) if run.steps >= LONG else math.nan for run in runs["plain"]], 0.5, quantity=COLLAPSED,
            claim=f"most, after {LONG:,} steps", what="plain",
        ),
        control(
            list(map(collapsed, runs["plain"])), quantity=COLLAPSED,
            what=f"control: plain, after {max(run.steps for run in runs['plain']):,} steps",
        ),
        same_mean(
            [math.nan if run.t_generalize is None else run.t_generalize for run in runs["decay"]],
            Published(value=200, source="issue 8 of their repository: weight decay 8 generalises within 200 epochs"),
            margin=50, what="weight decay 8", quantity="steps to 99% test accuracy", unit="steps",
        ),
        _cured(runs["orthograd"], ORTHOGRAD, "OrthoGrad"),
    ]  # fmt: skip
    if "stablemax" in runs:
        own = runs["stablemax"]
        found += [
            _cured(own, STABLEMAX, "StableMax"),
            control(
                [run.final["test_accuracy"] for run in own], quantity="test accuracy",
                what=f"control: StableMax, after {max(run.steps for run in own):,} steps",
            ),
            control(list(map(collapsed, own)), what="control: StableMax, likewise", quantity=COLLAPSED),
        ]  # fmt: skip
    return found


def _cured(runs: Sequence[RunResult], by: int, name: str) -> Finding:
    """Whether most runs generalise within `by` steps, of those that did, or were followed so long."""
    followed = [run for run in runs if run.t_generalize is not None or run.steps >= by]
    return share_within(
        [run.t_generalize is not None and run.t_generalize <= by for run in followed], 0.5,
        claim=f"most, within {by:,} steps", what=f"{name} generalises", quantity=SHARE,
        published=Published(value=1.0, source=f"{SOURCE}, figure 1: it generalises"),
    )  # fmt: skip


def _arms(plain: tuple[int, int], stablemax: tuple[int, int] | None, seeds: int) -> dict[str, Arm]:
    """plain, stablemax: seeds and steps of the long ones; seeds: of the others, which end once they generalise."""
    sizes = {"decay": (seeds, 400), "orthograd": (seeds, ORTHOGRAD), "plain": plain}
    sizes |= {} if stablemax is None else {"stablemax": stablemax}
    return {
        name: Arm(experiment=Experiment.preset(PRESETS[name]).override({"schedule.steps": steps}), seeds=n)
        for name, (n, steps) in sizes.items()
    }


REPRODUCTION = Reproduction(
    name="prieto2025",
    paper="Prieto et al. 2025, arXiv 2501.04697, of StableMax and plain AdamW the beginning",
    title="A softmax collapses and learning stalls; what cures it",
    full=Version(
        expectation="plain stalls, without a gradient; decay 8 generalises at 200 steps, OrthoGrad within 300",
        arms=_arms((3, 400), (2, 300), 5),
        compare=compare,
    ),
    quick=Version(
        expectation="the same of four seeds, without StableMax",
        arms=_arms((3, 400), None, 4),
        compare=compare,
    ),
)
