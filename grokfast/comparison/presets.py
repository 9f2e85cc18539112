"""Tasks that are small enough to be compared on a CPU, and comparisons of several of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grokfast import checks
from grokfast.training import Experiment
from grokfast.training.presets import PRESETS

# Beside these every preset of `grokfast run` is a task.
TASKS: dict[str, Experiment] = {
    "add-mlp": Experiment.preset("quick").override({"name": "add-mlp", "schedule.steps": 1100}),
    "mul-mlp": Experiment.preset("quick").override(
        {"name": "mul-mlp", "task.operation": "mul", "schedule.steps": 1100}
    ),
    "mul-decoder": Experiment.preset("grokfast").override(
        {
            "name": "mul-decoder", "task.p": 53, "model.d_model": 64, "model.d_mlp": 256,
            "schedule.steps": 1200, "schedule.batch_size": 256, "schedule.eval_every": 20,
        }
    ),
    "a5": Experiment.preset("a5").override({"schedule.steps": 2500}),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A comparison: names of tasks and of arms, runs of each arm's search on so many tuning seeds, final seeds."""

    tasks: Sequence[str]
    arms: Sequence[str]
    budget: int
    tuning: int
    seeds: int


COMPARISONS = {
    "cpu": Preset(
        tasks=("add-mlp", "mul-mlp", "mul-decoder", "a5"),
        arms=(
            "plain", "adam", "paper-ema", "paper-ma", "ema", "ma", "orthograd", "norm-clip", "muon", "mse",
        ),
        budget=6, tuning=1, seeds=8,  # a second tuning seed would change one of 18 choices with the MLPs
    ),
}  # fmt: skip


def task(name: str) -> Experiment:
    """One of TASKS, or a preset of `grokfast run`. Raises ValueError with the nearest name where it is none."""
    known = {**PRESETS, **TASKS}
    return known[checks.choice("task", name, known)]
