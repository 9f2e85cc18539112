"""Which runs of a sweep train together."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping

from grokfast import backend
from grokfast.sweeps.runner import Group
from grokfast.training.experiment import FAMILIES, Experiment

ENSEMBLE = {"cpu": 1, "cuda": 1024}  # runs at most: on a CPU, where a run keeps a core busy, an ensemble gains nothing


def make_groups(
    runs: Mapping[str, Experiment], *, ensemble: int | None = None, checkpoint_every: float = 10.0,
    keep_weights: bool = True,
) -> list[Group]:  # fmt: skip
    """Runs (experiments by id) that differ only in what an ensemble can hold, together, at most `ensemble` in a group.

    Their devices are kinds, "cpu" or "cuda". The longest groups come first, so that no worker begins one when the
    others are done.
    """
    together: dict[str, list[str]] = {}
    for run_id, common in zip(runs, commons(runs.values())):
        together.setdefault(common, []).append(run_id)
    groups = []
    for run_ids in together.values():
        device = runs[run_ids[0]].device
        size = ensemble or ENSEMBLE[device]
        for i in range(0, len(run_ids), size):
            some = tuple(run_ids[i : i + size])
            groups.append(
                Group(
                    runs=some, device=device, backend=backend.current(), checkpoint_every=checkpoint_every,
                    keep_weights=keep_weights,
                )
            )  # fmt: skip
    return sorted(groups, key=lambda group: -_work(group, runs))


def commons(experiments: Iterable[Experiment]) -> Iterator[str]:
    """Of each what it has in common with the runs that it can train together with, as a key."""
    varying: dict[tuple[object, ...], set[str]] = {}  # by what it depends on, the kinds of parts
    for experiment in experiments:
        flat = experiment.flat()
        kinds = (*flat, *(flat[name] for name in FAMILIES), flat["schedule.changes"])
        if kinds not in varying:
            varying[kinds] = experiment.varying()
        yield json.dumps({name: None if name in varying[kinds] else value for name, value in flat.items()})


def _work(group: Group, runs: Mapping[str, Experiment]) -> int:
    """Training rows that the group's runs see at most."""
    total = 0
    for experiment in (runs[run_id] for run_id in group.runs):
        rows = experiment.task.n_rows() or 1
        total += experiment.schedule.steps * min(experiment.schedule.batch_size or rows, rows)
    return total
