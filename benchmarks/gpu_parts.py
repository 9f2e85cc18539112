"""What `benchmarks.gpu` runs on a machine with a GPU: its parts, in the order of their worth, in calls of nine minutes.

First what later parts need (a build, compiled kernels) and what must hold before a time means anything (gradients, the
tests); then our own times; then the baselines, of which those that compile come last.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import NamedTuple

CALLS = (1, 2, 3)
MINUTES = 9.0  # of a call

TESTS = [
    "ops",
    "nn/test_layers.py",
    "models/transformer/test_planned_step.py",
    "models/transformer/test_fused.py",
    "transforms/test_clock.py",
    "transforms/test_flat.py",
    "optim/test_launches.py",
    "optim/test_capturable.py",
    "csrc/test_update.py",
    "csrc/test_update_filters.py",
    "csrc/test_update_on_gpu.py",
]
TRAINING = ("watch", "batches", "replay", "graphs", "fused_training", "fractions", "whole_runs")
TESTS += [f"training/test_{name}.py" for name in TRAINING]


class Part(NamedTuple):
    """A process of its own. seconds: that it is expected to take, never measured yet; limit: after which it is stopped.

    command: {out} is the folder of the results.
    """

    name: str
    call: int
    command: list[str]
    seconds: int
    limit: int


def parts() -> list[Part]:
    """All of them, in order."""
    found: list[Part] = []

    def add(call: int, name: str, seconds: int, limit: int, module: str, *arguments: str) -> None:
        found.append(Part(name, call, [sys.executable, "-m", module, *arguments], seconds, limit))

    def replay(call: int, name: str, seconds: int, limit: int, preset: str, *arguments: str) -> None:
        out = "--out", f"{{out}}/gpu-{name}.json"
        add(call, name, seconds, limit, "benchmarks.bench_replay_gpu", "--preset", preset, *arguments, *out)

    def step(call: int, name: str, seconds: int, limit: int, *arguments: str) -> None:
        out = "--out", f"{{out}}/gpu-{name}.json"
        add(call, name, seconds, limit, "benchmarks.bench_step_gpu", *arguments, *out)

    # A process each for as many tests, which mostly wait for the compiler; the usual options need xdist.
    usual = "addopts=-q --strict-markers --import-mode=importlib"
    at_once = ["-n", str(max(1, min(12, (os.cpu_count() or 2) - 2)))] if importlib.util.find_spec("xdist") else []

    add(1, "build", 50, 150, "benchmarks.gpu_build")
    add(1, "compile", 90, 150, "benchmarks.gpu_compile")
    add(1, "gradients", 50, 100, "benchmarks.gpu_gradients", "--seconds", "80", "--out", "{out}/gpu-gradients.json")
    replay(1, "nanda", 50, 90, "nanda", "--only", "ours", "--models", "1", "256", "--rounds", "5")
    step(1, "mlp", 30, 60, "--only", "ours", "--models", "256", "1024")
    add(1, "profile", 60, 90, "benchmarks.profile_step", "--seconds", "50", "--out", "{out}")
    add(1, "tests", 150, 200, "pytest", "-o", usual, *at_once, *(f"tests/{name}" for name in TESTS))

    replay(2, "nanda-baselines", 50, 90, "nanda", "--only", "others", "--models", "1", "--rounds", "5")
    step(2, "mlp-baselines", 80, 120, "--only", "others", "--models", "256", "--seconds", "60")
    replay(2, "power", 60, 100, "power", "--only", "ours", "--models", "1", "256", "--rounds", "3")
    replay(
        2, "nanda-runs", 60, 120, "nanda", "--to-the-end", "--models", "64", "--products", "tf32",
    )  # fmt: skip
    replay(2, "nanda-whole", 40, 80, "nanda", "--to-the-end")
    replay(2, "nanda-whole-reference", 60, 120, "nanda", "--to-the-end", "--engine", "reference", "--products", "ieee")
    replay(
        2, "nanda-many-baselines", 70, 110, "nanda", "--only", "others", "--models", "64", "--steps", "40",
        "--rounds", "3",
    )  # fmt: skip

    replay(3, "power-baselines", 60, 110, "power", "--only", "others", "--models", "1", "64", "--rounds", "3")
    add(3, "optimizer", 60, 100, "benchmarks.bench_optimizer_gpu", "--out", "{out}/gpu-optimizer.json")
    replay(3, "nanda-64", 30, 60, "nanda", "--only", "ours", "--models", "64", "--rounds", "3")
    step(3, "mlp-compiled", 90, 150, "--only", "compiled", "--models", "256", "--seconds", "90")
    replay(3, "nanda-compiled", 120, 180, "nanda", "--models", "--compiled", "--rounds", "3", "--seconds", "60")
    add(3, "operations", 130, 200, "benchmarks.bench_ops", "--seconds", "100", "--out", "{out}/gpu-ops.json")
    return found


def plan(call: int | None, names: list[str] | None, begun: set[str]) -> list[Part]:
    """What a call does. names: these parts, in this order; else those of the call (None: of all), and before them those
    of earlier calls that were not begun then, where there is a pack that says which were."""
    every = parts()
    if names is not None:
        by_name = {part.name: part for part in every}
        return [by_name[name] for name in names]
    late = [part for part in every if begun and call is not None and part.call < call and part.name not in begun]
    return late + [part for part in every if call in (None, part.call)]
