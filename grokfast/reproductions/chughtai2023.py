"""Chughtai et al. 2023: when embeddings and an MLP learn to compose the elements of a group."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from importlib.resources import files

import numpy as np

from grokfast.reproductions.base import Arm, Reproduction, Runs, Version, crossings
from grokfast.reproductions.findings import Finding, Published
from grokfast.reproductions.verdicts import same_times, share_within
from grokfast.training import Experiment

RUNS = "chughtai2023-groups.csv"  # 112 runs of theirs: first logged test accuracy of .99, and the evaluation before
SOURCE = "arXiv 2302.03025, the authors' logs, run by run"
# Of each arm the group and its n as the table has them, and the share of pairs that is trained on.
GROUPS = {"A5": ("AlternatingGroup", "5", 0.5), "D59": ("DihedralGroup", "59", 0.3)}
_MLP = Experiment.preset("chughtai-s5").override({"criteria.sustain": 1, "schedule.stop_after": 0})


def published(group: str) -> Published:
    """The epochs after which their MLPs of width 128 first had 99% test accuracy; infinite where they had not."""
    kind, n, fraction = GROUPS[group]
    text = files("grokfast.reproductions").joinpath("data", RUNS).read_text(encoding="utf-8")
    times = [
        float(row["t_generalize"] or math.inf)
        for row in csv.DictReader(text.splitlines())
        if (row["group"], row["n"], row["model"], row["hidden_dim"]) == (kind, n, "OneLayerMLP", "128")
        and float(row["train_fraction"]) == fraction
    ]
    return Published(value=float(np.median(times)), n=len(times), values=tuple(times), source=SOURCE)


def compare(runs: Runs) -> list[Finding]:
    """One log-rank test a group: the significance is shared."""
    return [
        same_times(
            *crossings(found), published(group), significance=0.05 / len(runs),
            what=f"{group}, {GROUPS[group][2]:.0%} of the pairs", quantity="steps to 99% test accuracy",
        )
        for group, found in runs.items()
    ]  # fmt: skip


def compare_quick(runs: Runs) -> list[Finding]:
    (found,) = runs.values()
    return [
        share_within(
            [run.t_generalize is not None for run in found], 0.1, claim="not never, within 30,000 steps",
            what="D59, runs that generalise", quantity="share",
        )
    ]  # fmt: skip


def _arms(seeds: Mapping[str, int], steps: int) -> dict[str, Arm]:
    return {
        group: Arm(
            experiment=_MLP.override(
                {"task.group": group, "task.train_fraction": GROUPS[group][2], "schedule.steps": steps}
            ),
            seeds=n,
        )
        for group, n in seeds.items()
    }


REPRODUCTION = Reproduction(
    name="chughtai2023",
    paper="Chughtai et al. 2023, arXiv 2302.03025, A5 and D59",
    title="When networks learn to compose the elements of a group",
    full=Version(
        expectation="the times of the authors' own runs, A5 near 30,000 and D59 near 20,000 steps",
        arms=_arms({"D59": 4, "A5": 4}, 100_000),
        compare=compare,
    ),
    quick=Version(
        expectation="D59 generalises within 30,000 steps",
        arms=_arms({"D59": 2}, 30_000),
        compare=compare_quick,
    ),
)
