"""`RunResult`: what `train` returns, and what the store has of an ended run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from grokfast import checks
from grokfast.store import RunStore, StoredRun, StoreError
from grokfast.store.records import Record, columns, records_of
from grokfast.tasks.data import Data
from grokfast.text import shown
from grokfast.training.experiment import Experiment
from grokfast.training.outcome import Outcome
from grokfast.training.showing import Shown
from grokfast.training.version import version


@dataclass(frozen=True, kw_only=True)
class RunResult(Shown):
    """One ended run.

    status is "finished" or "diverged", that of `at` "snapshot"; phase, t_memorize, t_generalize and collapsed are
    `Outcome`'s; `steps` taken in `seconds` of wall-clock time (all runs of an ensemble together); curves has the step
    and all columns, of which `pandas.DataFrame(result.curves)`, or polars', is the table; weights are the last
    parameters by name; run_id and directory are None where no store was given.
    """

    experiment: Experiment
    status: str
    phase: str
    t_memorize: int | None
    t_generalize: int | None
    collapsed: bool
    diverged_at: int | None
    sentence: str
    steps: int
    seconds: float
    final: Record
    curves: dict[str, np.ndarray]
    weights: dict[str, Tensor]
    run_id: str | None = None
    directory: Path | None = None

    def __repr__(self) -> str:
        return f"RunResult({shown(self.run_id or self.experiment.name)}: {self.phase}, {self.sentence})"

    def at(self, step: int) -> RunResult:
        """The run as it was after `step` steps, of which there is a snapshot: weights, curves, phase and moments of
        then; its status is "snapshot".

        Raises ValueError where nothing was stored, StoreError, which names the snapshots that there are, for another
        step, CheckpointError where it is damaged.
        """
        if self.run_id is None or self.directory is None:
            raise ValueError("snapshots are of a stored run: give `train` a store, and schedule.snapshots")
        with RunStore(self.directory.parent, create=False, read_only=True) as store:
            return stored_snapshot(store, self.run_id, step)

    def to_torch(self) -> nn.Module:
        """The trained model as an ordinary module in eval mode: forward(inputs [N, ...]) -> [N, n_outputs], parameters
        under the names of `weights`, in their shapes; a module of one's own is that very module.

        Raises ValueError where there are no weights, TypeError where a model kind of one's own cannot be unstacked.
        """
        own: nn.Module = module_of([self], self.experiment.task.build(seed=self.experiment.seed)).unstack()[0]
        return own.eval()

    def weights_as(self, names: str) -> dict[str, Tensor]:
        """The weights of a transformer as others call and shape them: `names` "hooked_transformer" is TransformerLens's
        (its HookedTransformer, before 4.0): W_E, W_pos, W_Q [n_heads, d_model, d_head], ..., W_U, all of them in
        `models.transformer.names`. There `load_state_dict(found, strict=False)` takes them, and the logits, of every
        position, are the same where norm is "none" or "pre", residual True and attention_rate 1.

        Raises ValueError for other names, another model, or no weights.
        """
        return self.experiment.model.weights_as(names, self.to_torch())

    def summary(self) -> dict[str, Any]:
        """As JSON values, NaN and infinity as None."""
        values = {"step": self.final.step, **self.final.values}
        finite = {name: value if np.isfinite(value) else None for name, value in values.items()}
        return {
            "run_id": self.run_id,
            "preset": self.experiment.name,
            "status": self.status,
            "phase": self.phase,
            "t_memorize": self.t_memorize,
            "t_generalize": self.t_generalize,
            "collapsed": self.collapsed,
            "diverged_at": self.diverged_at,
            "steps": self.steps,
            "seconds": round(self.seconds, 3),
            "final": finite,
            "directory": None if self.directory is None else str(self.directory),
        }


def module_of(runs: Sequence[RunResult], data: Data) -> Any:
    """The trained models of runs as one ensemble, made for such data. Raises ValueError where one has no weights, or
    another model than the first."""
    first = runs[0].experiment.model
    for i, run in enumerate(runs):
        if not run.weights:
            raise ValueError(f"run {run.run_id or i} must have weights, it was stored without them")
        if run.experiment.model != first:
            raise ValueError(f"run {run.run_id or i} must be of the first one's model, {first}")
    dtype = next(iter(runs[0].weights.values())).dtype
    module = first.build(data, seeds=[run.experiment.seed for run in runs], dtype=dtype)
    with torch.no_grad():
        for name, p in module.named_parameters():
            torch.stack([run.weights[name] for run in runs], out=p)
    return module


def stored_experiment(stored: StoredRun) -> Experiment:
    """A run's experiment. Raises StoreError where another version wrote one that this version does not know, or where a
    part of one's own is not there."""
    try:
        experiment = Experiment.from_dict(stored.config)
        experiment.task.attach(stored.directory.parent)
        return experiment
    except (TypeError, ValueError) as error:
        said = f"run {stored.run_id} cannot be read: {error}"
        if stored.version != version():
            by = f"was stored by {stored.version}; this is {version()}, and cannot read it"
            said = f"run {stored.run_id} {by}: {error}"
        hint = " (go where its module lies, or install it)" if "is not there" in said else ""
        raise StoreError(f"{said}{hint}") from error


def stored_result(store: RunStore, run_id: str) -> RunResult:
    """An ended run of the store, without weights where they were not kept. Raises ValueError where it has not ended."""
    stored = store.get(run_id)
    if stored.result is None or stored.status not in ("finished", "diverged"):
        raise ValueError(f"run {run_id} has not ended (status {stored.status})")
    experiment, records = stored_experiment(stored), records_of(store.curves(run_id))
    outcome = Outcome(experiment.criteria)
    for record in records:
        outcome.update(record)
    weights = store.load_weights(run_id) if store.has_weights(run_id) else {}
    return result_of(
        experiment, outcome, records, diverged_at=stored.result["diverged_at"], seconds=stored.result["seconds"],
        weights=weights, run_id=run_id, directory=stored.directory,
    )  # fmt: skip


def snapshots_of(store: RunStore, run_id: str) -> dict[int, bool]:
    """Of each of a run's snapshots, up to its end, the step, and whether it is full."""
    result = store.get(run_id).result
    last = None if result is None else result["steps"]
    return {step: full for step, full in store.snapshots.of(run_id).items() if last is None or step <= last}


def stored_snapshot(store: RunStore, run_id: str, step: int) -> RunResult:
    """A stored run, ended or not, after `step` steps: see `RunResult.at`."""
    checks.integer("step", step, minimum=0)
    stored, there = store.get(run_id), snapshots_of(store, run_id)
    weights, meta = store.snapshots.weights(run_id, step)
    if step not in there:
        raise StoreError(f"run {run_id} has ended before step {step}")
    experiment = stored_experiment(stored)
    records = [record for record in records_of(store.curves(run_id)) if record.step <= step]
    if not records:
        raise StoreError(f"run {run_id} has no evaluation up to step {step}")
    outcome = Outcome(experiment.criteria)
    for record in records:
        outcome.update(record)
    result = result_of(
        experiment, outcome, records, diverged_at=None, seconds=meta["seconds"], weights=weights,
        run_id=run_id, directory=stored.directory,
    )  # fmt: skip
    return replace(result, status="snapshot", steps=step, sentence=outcome.sentence(step))


def result_of(
    experiment: Experiment,
    outcome: Outcome,
    records: list[Record],
    *,
    diverged_at: int | None,
    seconds: float,
    weights: dict[str, Tensor],
    run_id: str | None,
    directory: Path | None,
) -> RunResult:
    """The result of a run that has ended with the last of `records`, all of which `outcome` has followed."""
    steps = records[-1].step
    return RunResult(
        experiment=experiment,
        status="finished" if diverged_at is None else "diverged",
        phase=outcome.phase,
        t_memorize=outcome.t_memorize,
        t_generalize=outcome.t_generalize,
        collapsed=outcome.collapsed,
        diverged_at=diverged_at,
        sentence=outcome.sentence(steps, diverged_at),
        steps=steps,
        seconds=seconds,
        final=records[-1],
        curves=columns(records),
        weights=weights,
        run_id=run_id,
        directory=directory,
    )
