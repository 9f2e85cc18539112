"""What an analysis looks at: stored or trained runs, or a live model, as one ensemble with its data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from grokfast import checks
from grokfast.nn.ensemble import EnsembleModule
from grokfast.tasks.data import Data, Task

if TYPE_CHECKING:
    from grokfast.training.result import RunResult


@dataclass(frozen=True, eq=False)
class Subject:
    """E models of one shape. module: forward(inputs [N, ...] or [E, N, ...]) -> [E, N, n_outputs], in eval mode.
    data: the data set of each. weights: parameters by name, [E, ...], as views of the module's."""

    module: Any
    data: tuple[Data, ...]
    weights: Mapping[str, Tensor]


def subject(model: Any, task: Task | Data | None = None) -> Subject:
    """The subject that is meant.

    model: a RunResult, `RunResult.at(step)`, or several of one model; or a live EnsembleModule. task: what it learns, a
    Task (built with each model's own seed) or its Data; None: the run's own.

    Raises TypeError naming what is accepted; ValueError where a run has no weights, or a live model no task.
    """
    if runs := runs_of(model):
        return _of_runs(runs, task)
    if not isinstance(model, EnsembleModule):
        raise TypeError(
            "model must be a run's result, several of them, or a grokfast model (EnsembleModule), "
            f"got {checks.shown(model)}"
        )
    if task is None:
        raise ValueError("task must say what the model learns, a Task or its Data, got None")
    return _subject(model, [_data(task, seed) for seed in model.seeds])


def runs_of(model: Any) -> Sequence[RunResult]:
    """The runs that `model` is, one or several; none of anything else."""
    from grokfast.training.result import RunResult  # brings SQLite

    runs = [*model] if isinstance(model, Sequence) else [model]
    return runs if all(isinstance(run, RunResult) for run in runs) else []


def _of_runs(runs: Sequence[RunResult], task: Task | Data | None) -> Subject:
    from grokfast.training.result import module_of

    data = [_data(run.experiment.task if task is None else task, run.experiment.seed) for run in runs]
    return _subject(module_of(runs, data[0]), data)


def _subject(module: Any, data: Sequence[Data]) -> Subject:
    return Subject(module.eval(), tuple(data), {name: p.detach() for name, p in module.named_parameters()})


def _data(task: Task | Data, seed: int) -> Data:
    if isinstance(task, Data):
        return task
    if not isinstance(task, Task):
        raise TypeError(f"task must be a Task or its Data, got {checks.shown(task)}")
    return task.build(seed=seed)
