"""What a run was: its parts and its data."""

from __future__ import annotations

from typing import Any

import numpy as np
from markupsafe import Markup

from grokfast import parts
from grokfast.plots.data.rows import some
from grokfast.report.figures import csv, svg, table
from grokfast.report.material import Chapter, Material
from grokfast.report.page import Figure
from grokfast.text import shown
from grokfast.training.experiment import FAMILIES, TUPLES
from grokfast.units import duration

NUMBERS = 60_000  # of the data, in its CSV


def setting(material: Material) -> list[Figure]:
    """Parts, schedule, criteria, and where and when it ran."""
    run, stored = material.run, material.stored
    experiment = run.experiment
    rows: dict[str, Any] = {
        name: ", ".join(map(parts.shown, own if name in TUPLES else [own])) or "none"
        for name, own in ((name, getattr(experiment, name)) for name in FAMILIES)
    }
    schedule = experiment.schedule
    rows["schedule"] = (
        f"{schedule.steps:,} steps at most, {schedule.batch_size or 'all'} rows a step, evaluated every "
        f"{schedule.eval_every:,}"
    )
    if schedule.changes:
        rows["changes"] = ", ".join(map(parts.shown, schedule.changes))
    rows["seed"] = str(experiment.seed)
    if experiment.origin:
        rows["forked from"] = experiment.origin
    if run.weights:
        rows["parameters"] = f"{sum(w.numel() for w in run.weights.values()):,}"
    rows["trained"] = f"{run.steps:,} steps in {duration(run.seconds)} on {stored.device}, begun {stored.created[:10]}"
    rows["version"] = stored.version
    columns = {"": [*rows], "value": [*map(shown, rows.values())]}
    return [
        Figure(
            "Setting",
            table(columns),
            f"A table of what was trained: {rows['task']}, {rows['model']}, {rows['optimizer']}.",
            csv({"what": columns[""], "value": columns["value"]}),
        )
    ]


def data_of_run(material: Material) -> list[Figure]:
    """The picture of its data."""
    run, data = material.run, material.data
    figure = run.plot("data")
    figure.suptitle("")
    body: Markup = svg(figure, has_images=True)
    sizes = ", ".join(f"{name} {len(split):,} rows" for name, split in data.splits.items())
    width = data.seq_len + (data.train.targets[0].numel())
    most = max(1, NUMBERS // width)
    total = sum(len(split) for split in data.splits.values())
    inputs, targets, names = [], [], []
    for name, split in data.splits.items():
        rows = some(len(split), max(1, most * len(split) // total) if total > most else len(split))
        inputs.append(split.inputs[rows].numpy())
        targets.append(split.targets[rows].reshape(len(rows), -1).numpy())
        names += [name] * len(rows)
    x, y = np.concatenate(inputs), np.concatenate(targets)
    what = "token" if data.n_tokens else "feature"
    columns = {"split": names} | {f"{what} {i + 1}": own for i, own in enumerate(x.T)}
    columns |= {f"target {i + 1}" if y.shape[1] > 1 else "target": own for i, own in enumerate(y.T)}
    some_of = f" The CSV has {len(names):,} of the {total:,} rows." if len(names) < total else ""
    return [
        Figure(
            "Data", body, f"A picture of the data set: {sizes}.", csv(columns),
            f"What is shown and asked: {sizes}.{some_of}",
        )
    ]  # fmt: skip


CHAPTER = Chapter(
    "run", "The run", "", {"setting": setting, "picture of the data": data_of_run}, needs_weights=False
)  # fmt: skip
