"""Power et al. 2022: a decoder divides long after it has memorised, weight decay helps, and fewer pairs take longer."""

from __future__ import annotations

import math
from collections.abc import Mapping

from grokfast.reproductions.base import Arm, Reproduction, Runs, Version, crossings, generalised
from grokfast.reproductions.findings import Finding
from grokfast.reproductions.verdicts import control_times, mean_within, share_within, sooner
from grokfast.training import Experiment

# Share of the pairs that is trained on, and weight decay.
ARMS: dict[str, tuple[float, float]] = {
    "half": (0.5, 1.0), "no decay": (0.5, 0.0), "most": (0.7, 1.0), "fewer": (0.4, 1.0),
}  # fmt: skip
STEPS, TIMES = "steps to 99% test accuracy", "times as soon"


def compare(runs: Runs) -> list[Finding]:
    """Fewer pairs in an epoch alone would take fewer steps: that times grow faster than 1 / share is a strict claim.

    Three log-rank tests: the significance is shared."""
    times = {name: crossings(found) for name, found in runs.items()}
    delays = [
        math.log10(run.t_generalize / run.t_memorize)
        for run in runs["half"]
        if run.t_generalize is not None and run.t_memorize
    ]
    found = [
        share_within(
            generalised(runs["half"]), 0.5, claim="most, within 6,000 steps",
            what="runs that divide, 50% of the pairs", quantity="share",
        ),
        mean_within(
            delays, math.log10(2), claim="more than doubled", what="log10 of steps, generalise / memorise",
            quantity="delay", unit="number",
        ),
        sooner(
            *times["half"], *times["no decay"], significance=0.05 / 3, what="weight decay 1, than without",
            quantity=TIMES,
        ),
    ]  # fmt: skip
    for more, fewer in (("half", "fewer"), ("most", "half")):
        share, less = ARMS[more][0], ARMS[fewer][0]
        found.append(
            sooner(
                *times[more], *times[fewer], least=share / less, significance=0.05 / 3, quantity=TIMES,
                what=f"{share:.0%} of the pairs, than {less:.0%}",
            )
        )  # fmt: skip
    for name in ("most", "half", "fewer"):
        found.append(control_times(*times[name], what=f"control: {ARMS[name][0]:.0%} of the pairs", quantity=STEPS))
    return found


def compare_quick(runs: Runs) -> list[Finding]:
    share = "share of runs that divide"
    return [
        share_within(
            generalised(runs["most"]), 0.1, claim="not never", quantity=share,
            what="70% of the pairs, decay 1, within 2,000 steps",
        ),
        share_within(
            generalised(runs["no decay"]), high=0.9, claim="not always", quantity=share,
            what="50% of the pairs, no decay, within 2,000 steps",
        ),
    ]  # fmt: skip


def _arms(steps: Mapping[str, int], seeds: Mapping[str, int]) -> dict[str, Arm]:
    def arm(name: str) -> Arm:
        share, decay = ARMS[name]
        changes = {
            "task.train_fraction": share, "optimizer.weight_decay": decay, "schedule.steps": steps[name],
            "schedule.stop_after": 0,
        }  # fmt: skip
        return Arm(experiment=Experiment.preset("power").override(changes), seeds=seeds[name])

    return {name: arm(name) for name in steps}


REPRODUCTION = Reproduction(
    name="power2022",
    paper="Power et al. 2022, arXiv 2201.02177, x / y mod 97",
    title="A decoder divides late, sooner with weight decay, and later with fewer pairs",
    full=Version(
        expectation="late with weight decay 1, later without it or with fewer of the pairs",
        arms=_arms(
            {"half": 6000, "no decay": 6000, "most": 6000, "fewer": 12_000},
            {"half": 5, "no decay": 5, "most": 5, "fewer": 3},
        ),
        compare=compare,
    ),
    quick=Version(
        expectation="with 70% of the pairs and decay 1 within 2,000 steps, with half and without decay not",
        arms=_arms({"most": 2000, "no decay": 2000}, {"most": 2, "no decay": 2}),
        compare=compare_quick,
    ),
)
