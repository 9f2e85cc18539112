"""The command that repeats a sweep, or an ablation: read back before it is said, so that it does."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from grokfast import parts
from grokfast.report.repeat import repeated
from grokfast.store import StoredSweep
from grokfast.sweeps import Ablation
from grokfast.sweeps.text import parse_axes, parse_changes
from grokfast.text import command
from grokfast.training import PRESETS, Experiment
from grokfast.training.experiment import FAMILIES, TUPLES


def repeated_sweep(sweep: StoredSweep, experiment: Experiment | None) -> str:
    """A line for a shell: `grokfast sweep`, the preset with what the experiment that was varied has otherwise, and the
    grid. Where that cannot be said, as of forks and of data from a file, it is the line that goes on with the stored
    sweep, which does the same in a store where nothing of it is done."""
    stored = command("grokfast", "sweep", "--resume", sweep.sweep_id)
    if experiment is None or experiment.origin is not None:
        return stored
    words = shlex.split(repeated(experiment, ""))
    axes = {key: values for key, values in sweep.axes.items() if not (key == "seed" and sweep.grid.get("seeds"))}
    texts = [f"{key}={','.join(_text(key, value) for value in values)}" for key, values in axes.items()]
    try:
        is_said = parts.to_plain([*parse_axes(experiment, texts).values()]) == [*axes.values()]
    except (TypeError, ValueError):
        is_said = False
    if words[:2] != ["grokfast", "run"] or not is_said:
        return stored
    more = ["--zip"] if sweep.grid.get("zip") else []
    for name in ("random", "seeds"):
        if (n := sweep.grid.get(name)) is not None:
            more += [f"--{name}", n]
    return command("grokfast", "sweep", *words[2:], *(["--grid", *texts] if texts else []), *more)


def repeated_ablation(sweep: StoredSweep, ablation: Ablation) -> str:
    """`grokfast ablate`, likewise."""
    experiment, preset = ablation.experiment, PRESETS.get(ablation.experiment.name)
    arms = ",".join(list(ablation.arms)[1:])
    if preset is not None:
        texts = [*_changes(preset, experiment)]
        try:
            if preset.override(parse_changes(preset, texts)) == experiment:
                said = ["--set", *texts] if texts else []
                return command("grokfast", "ablate", experiment.name, "--seeds", ablation.seeds, "--arms", arms, *said)
        except (TypeError, ValueError):
            pass
    return command("grokfast", "sweep", "--resume", sweep.sweep_id)


def _changes(preset: Experiment, experiment: Experiment) -> Iterator[str]:
    there, chosen = preset.flat(), set()
    for key, value in experiment.flat().items():
        family = key.partition(".")[0]
        if key in FAMILIES and value != there.get(key):
            chosen.add(key)
            part = getattr(experiment, key)
            yield f"{key}={','.join(map(parts.shown, part)) if key in TUPLES else parts.shown(part)}"
        elif family not in chosen and value != there.get(key):
            yield f"{key}={_text(key, parts.to_plain(value))}"


def _text(key: str, value: Any) -> str:
    """A JSON value as `parse_axes` reads it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping) and key in FAMILIES:
        return parts.shown(parts.from_plain(FAMILIES[key], value, key))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"({','.join(map(repr, value))}{',' if len(value) == 1 else ''})"
    return str(value)
