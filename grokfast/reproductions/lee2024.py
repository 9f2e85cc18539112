"""Lee et al. 2024 (Grokfast): amplifying slow gradients makes a decoder generalise sooner than Adam without decay."""

from __future__ import annotations

from typing import Any

from grokfast.reproductions.base import Arm, Reproduction, Runs, Version, crossings, generalised
from grokfast.reproductions.findings import Finding, Published
from grokfast.reproductions.verdicts import control, control_times, same_times, share_within, sooner
from grokfast.training import Experiment

SOURCE = "arXiv 2405.20233, one run each"
TO_95 = {"ema": 910, "ma": 790, "adam": 39_890}  # iterations to 95% of the test set
NAMES = {"ema": "EMA α .98 λ 2", "ma": "MA window 100 λ 5", "adam": "Adam, no decay"}
STEPS, TIMES = "steps to 95% test accuracy", "times as soon"
CHANGES: dict[str, dict[str, Any]] = {
    "ema": {},
    "ma": {"filter": "ma(window_size=100,lamb=5)", "optimizer.weight_decay": 0.01},
    "adamw": {"filter": None, "optimizer": "adamw", "optimizer.weight_decay": 1.0},
    "adam": {"filter": None, "optimizer.weight_decay": 0.0},
}


def compare(runs: Runs) -> list[Finding]:
    """Two log-rank tests: the significance is shared. AdamW with decay, which the paper has not, is beside it.

    Whether Adam without decay takes their 39,890 steps is not tried: it is followed for half of them, with as many
    seeds as a log-rank test needs.
    """
    times = {name: crossings(found) for name, found in runs.items()}
    found = [
        same_times(
            *times[name], Published(value=TO_95[name], values=(TO_95[name],), source=SOURCE), what=NAMES[name],
            quantity=STEPS,
        )
        for name in ("ema", "ma")
    ]  # fmt: skip
    found.append(
        control_times(*times["adamw"], what="control: AdamW, decay 1, no filter", quantity=STEPS),
    )
    found.append(
        share_within(
            generalised(runs["adam"]), high=0.5, claim="at most half of them",
            what=f"{NAMES['adam']}, within 20,000 steps", quantity="share of runs that are there",
            published=Published(value=0.0, source=f"{SOURCE}: 39,890 iterations of Adam"),
        )
    )  # fmt: skip
    found += [
        sooner(
            *times[name], *times["adam"], least=10, significance=0.05 / 2, what=f"{NAMES[name]}, than {NAMES['adam']}",
            published=Published(value=TO_95["adam"] / TO_95[name], source=SOURCE), quantity=TIMES,
        )
        for name in ("ema", "ma")
    ]  # fmt: skip
    for name in ("ema", "ma"):
        pairs = zip(times["adamw"][0], times[name][0])
        found.append(
            control(
                [baseline / own for baseline, own in pairs], what=f"control: {NAMES[name]}, than AdamW, decay 1",
                quantity=TIMES, unit="number",
            )
        )  # fmt: skip
    return found


def compare_quick(runs: Runs) -> list[Finding]:
    share = "share of runs that are there"
    return [
        share_within(
            generalised(runs["ema"]), 0.1, claim="not never", quantity=share,
            what=f"{NAMES['ema']}, within 2,000 steps",
        ),
        share_within(
            generalised(runs["adam"]), high=0.9, claim="not always", quantity=share,
            what=f"{NAMES['adam']}, within 1,600 steps",
        ),
    ]  # fmt: skip


def _arm(name: str, steps: int, seeds: int) -> Arm:
    """The first step with 95%, as they have it."""
    stop = {"criteria.sustain": 1, "schedule.stop_after": 0, "schedule.steps": steps}
    return Arm(experiment=Experiment.preset("grokfast").override({**CHANGES[name], **stop}), seeds=seeds)


REPRODUCTION = Reproduction(
    name="lee2024",
    paper="Lee et al. 2024, arXiv 2405.20233, x · y mod 97",
    title="Amplified slow gradients, Adam without decay, and AdamW with it",
    full=Version(
        expectation="EMA and MA near 1,000 steps, more than ten times sooner than Adam without decay",
        arms={
            "ema": _arm("ema", 5000, 5), "ma": _arm("ma", 5000, 5), "adamw": _arm("adamw", 5000, 5),
            "adam": _arm("adam", 20_000, 4),
        },
        compare=compare,
    ),
    quick=Version(
        expectation="EMA is there within 2,000 steps, Adam without decay not within 1,600",
        arms={"ema": _arm("ema", 2000, 2), "adam": _arm("adam", 1600, 2)},
        compare=compare_quick,
    ),
)  # fmt: skip
