"""A sweep written down in a file:

preset = "quick"
[experiment]                          # what differs from the preset
schedule.steps = 5000
[grid]
optimizer.weight_decay = [0.1, 1]
task.train_fraction = "0.3:0.5:3"     # or as on the command line
[sweep]
seeds = 4                             # also zip, random
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grokfast import checks
from grokfast.store.table import flat
from grokfast.training.experiment import Experiment
from grokfast.training.sweep.text import parse_axis

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

OPTIONS = ("zip", "random", "seeds")


@dataclass(frozen=True)
class SweepFile:
    """The arguments of `sweep` that a file holds."""

    experiment: Experiment
    grid: dict[str, list[Any]]
    options: dict[str, Any] = field(default_factory=dict)


def read_sweep(path: Path) -> SweepFile:
    """Read a file; raises ValueError or TypeError naming it and what is wrong, OSError where it cannot be read."""
    try:
        with path.open("rb") as file:
            said = tomllib.load(file)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}") from error
    try:
        return _read(said)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{path}: {error}") from error


def _read(said: dict[str, Any]) -> SweepFile:
    for name in said:
        checks.choice("a key", name, ("preset", "experiment", "grid", "sweep"))
    for name in ("experiment", "grid", "sweep"):
        if not isinstance(said.get(name, {}), dict):
            raise TypeError(f"[{name}] must be a table, got {said[name]!r}")
    experiment = Experiment.preset(said.get("preset", "quick")).override(flat(said.get("experiment", {})))
    grid: dict[str, list[Any]] = {}
    for key, values in flat(said.get("grid", {})).items():
        grid[key] = parse_axis(experiment, f"{key}={values}")[1] if isinstance(values, str) else values
    options = said.get("sweep", {})
    for name in options:
        checks.choice("a key of [sweep]", name, OPTIONS)
    return SweepFile(experiment, grid, options)
