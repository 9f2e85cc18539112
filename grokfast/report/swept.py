"""What the sections of a sweep's page look at: its table, its curves and its runs; an ablation is recognised as one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from grokfast.analysis.table import ENDED
from grokfast.plots.results import axes_of
from grokfast.report.each_run import EachRun
from grokfast.store import RunStore, StoredSweep, StoreError
from grokfast.store.records import records_of
from grokfast.store.words import written
from grokfast.sweeps import ARMS, AblationResult, SweepResult, try_arms
from grokfast.training import Experiment
from grokfast.training.result import stored_experiment


@dataclass(frozen=True, eq=False)
class Swept:
    """stored: the sweep. result: it as a result, of an ablation as that. experiment: what was varied, None where that
    cannot be read here. table, curves: `RunStore.table`, with a column "arm" of an ablation, and `all_curves`."""

    store: RunStore
    stored: StoredSweep
    result: SweepResult
    experiment: Experiment | None
    table: dict[str, np.ndarray]
    curves: dict[str, np.ndarray]

    @cached_property
    def varied(self) -> list[str]:
        """The columns that were varied; seeds are repetitions. Of an ablation the arm stands for all of them."""
        return ["arm"] if isinstance(self.result, AblationResult) else axes_of(self.result, self.table)

    @cached_property
    def wide(self) -> list[str]:
        """Of these those with several values."""
        return [key for key in self.varied if len(np.unique(self.table[key])) > 1]

    @property
    def has_ended(self) -> bool:
        """Whether a run has."""
        return bool(np.isin(self.table["status"], ENDED).any())

    def names(self, keys: Sequence[str]) -> list[str]:
        """Columns without the parts that they belong to, where that is clear."""
        short = [key.rpartition(".")[2] for key in keys]
        return short if len(set(short)) == len(short) else [*keys]

    def words(self, key: str) -> list[str]:
        """A column's values as they are written down."""
        return written(self.table[key].tolist())

    def runs(self, rows: Sequence[int]) -> list[EachRun]:
        """The runs of some rows of the table."""
        own = [*self.varied, "seed"]
        values = [self.words(key) for key in own]
        ends = np.searchsorted(self.curves["run"], np.arange(len(self.table["run_id"]) + 1))
        found = []
        for i in rows:
            stored = self.store.get(str(self.table["run_id"][i]))
            mine = slice(ends[i], ends[i + 1])
            columns = {name: column[mine] for name, column in self.curves.items() if name != "run"}
            known = {name: column for name, column in columns.items() if name == "step" or not np.isnan(column).all()}
            experiment = None
            with suppress(StoreError):  # of another version, or with a part of one's own that is not here
                experiment = stored_experiment(stored)
            said = ", ".join(f"{name} {value[i]}" for name, value in zip(self.names(own), values))
            found.append(EachRun(stored, said, experiment, records_of(known)))
        return found


def gather(store: RunStore, sweep_id: str) -> Swept:
    """The sweep of a store. Raises UnknownRunError, which names the nearest, where there is none."""
    stored = store.sweeps.get(sweep_id)
    experiment = None
    with suppress(TypeError, ValueError, StoreError):
        experiment = Experiment.from_dict(stored.base)
        experiment.task.attach(store.root)
    result = SweepResult(sweep_id=sweep_id, root=store.root, axes=list(stored.axes))
    table, curves = store.table(sweep_id), store.all_curves(sweep_id)
    if experiment is not None and (ablation := _ablation(store, stored, experiment, result)) is not None:
        result = ablation
        table = {"arm": np.array([ablation.arm_of[run_id] for run_id in table["run_id"].tolist()]), **table}
    return Swept(store, stored, result, experiment, table, curves)


def _ablation(
    store: RunStore, stored: StoredSweep, experiment: Experiment, result: SweepResult
) -> AblationResult | None:
    """A sweep that is stored as `Ablation.plan` does, each of whose runs is of an arm, as that ablation."""
    seeds = stored.grid.get("seeds")
    if not stored.grid.get("zip") or seeds is None or experiment.origin is not None:
        return None
    try:
        ablation = try_arms(experiment, seeds, [*ARMS])
        known = {_key(changed): name for name, (_, changed) in ablation.arms.items()}
        configs = {run.run_id: Experiment.from_dict(run.config) for run in store.list(sweep_id=stored.sweep_id)}
    except (TypeError, ValueError, StoreError):
        return None
    arm_of = {run_id: known.get(_key(configs[run_id])) for run_id in result.runs.run_ids if run_id in configs}
    there = [name for name in ablation.arms if name in arm_of.values()]
    if None in arm_of.values() or len(there) < 2 or there[0] != next(iter(ablation.arms)):
        return None
    ablation = replace(ablation, arms={name: ablation.arms[name] for name in there}, left_out={})
    return ablation.result(result)


def _key(experiment: Experiment) -> Any:
    """What makes an arm: all but the seed, and the device, which a sweep decides."""
    return experiment.override({"seed": 0, "device": "auto"})
