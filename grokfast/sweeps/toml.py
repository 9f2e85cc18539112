"""A sweep written down in a file:

preset = "quick"
[experiment]                          # what differs from the preset
schedule.steps = 5000
filter = { kind = "ema", lamb = 1 }   # or "none", "ema", "ma"
[grid]
optimizer.weight_decay = [0.1, 1]
task.train_fraction = "0.3:0.5:3"     # or as on the command line
filter = ["none", "ema", { kind = "ma", window_size = 50 }]
[sweep]
seeds = 4                             # also zip, random
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grokfast import checks
from grokfast.store.table import flat
from grokfast.sweeps.text import parse_axes
from grokfast.training.experiment import FAMILIES, Experiment

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
    except (ValueError, RecursionError) as error:  # also what is no UTF-8, or nested thousands deep
        raise ValueError(f"{path} is not TOML: {error}") from error
    try:
        return _read(said)
    except RecursionError as error:
        raise ValueError(f"{path} has tables nested too deeply: {error}") from error
    except (ValueError, TypeError) as error:
        raise type(error)(f"{path}: {error}") from error


def _read(said: dict[str, Any]) -> SweepFile:
    for name in said:
        checks.choice("a key", name, ("preset", "experiment", "grid", "sweep"))
    for name in ("experiment", "grid", "sweep"):
        if not isinstance(said.get(name, {}), dict):
            raise TypeError(f"[{name}] must be a table, got {checks.shown(said[name])}")
    base = Experiment.preset(said.get("preset", "quick"))
    experiment = base.override(_changes(said.get("experiment", {})))
    grid = flat(said.get("grid", {}))
    texts = [f"{key}={values}" for key, values in grid.items() if isinstance(values, str)]
    parsed = parse_axes(experiment, texts, {key: values for key, values in grid.items() if isinstance(values, list)})
    options = said.get("sweep", {})
    for name in options:
        checks.choice("a key of [sweep]", name, OPTIONS)
        if name == "zip":
            checks.boolean("zip", options[name])
        else:
            checks.integer(name, options[name], minimum=1)
    return SweepFile(experiment, grid | parsed, options)


def _changes(said: dict[str, Any]) -> dict[str, Any]:
    """`said`, a part with its kind as one value, by dotted names otherwise."""
    changes: dict[str, Any] = {}
    for name, value in said.items():
        is_part = name in FAMILIES and isinstance(value, dict) and "kind" in value
        changes |= flat({name: value}) if isinstance(value, dict) and not is_part else {name: value}
    return changes
