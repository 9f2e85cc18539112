"""`grokfast run`: one experiment, from its beginning or from where it was interrupted."""

from __future__ import annotations

import json as json_module
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from grokfast.cli.common import UsageError, base_experiment
from grokfast.display import Display
from grokfast.filters import filter_name
from grokfast.store import RunStore
from grokfast.store.records import Record, records_of
from grokfast.training import Experiment, Observer, RunResult, resume, train
from grokfast.training.ensemble import Ensemble
from grokfast.training.outcome import Outcome
from grokfast.training.sinks import Sink, TensorBoardSink, WandbSink


def run_command(args: Sequence[str]) -> Callable[..., Callable[[], int]]:
    """`run` with the named preset's values as the defaults of its options, which the help then shows."""
    named = args[1] if len(args) > 1 and args[0] == "run" and not args[1].startswith("-") else "quick"
    base = base_experiment(args, Experiment.preset(named))

    def run(
        preset: tyro.conf.Positional[str] = "quick",
        *,
        experiment: Annotated[Experiment, tyro.conf.arg(name="")] = base,
        filter: str = filter_name(base.filter),
        steps: int | None = None,
        out: Path = Path("runs"),
        resume: str | None = None,
        json: bool = False,
        tensorboard: bool = False,
        wandb: bool = False,
        checkpoint_every: float = 10.0,
    ) -> Callable[[], int]:
        """Train a preset to its end and say what happened; every option of the experiment can be changed.

        Args:
            preset: quick, gromov, swaroop, nanda, power, grokfast or prieto; comes first.
            filter: gradient filter: none, ema or ma; its values are then options, too.
            steps: short for --schedule.steps.
            out: directory of the run store.
            resume: go on with this interrupted or killed run; with --steps also with one that has finished.
            json: print the result as one JSON object on the last line.
            tensorboard: log to the run's directory for TensorBoard, too.
            wandb: log to the Weights & Biases project "grokfast", too.
            checkpoint_every: seconds between checkpoints.
        """
        if preset != named:
            raise UsageError(f"the preset comes first: grokfast run {preset} ...")
        if resume is not None and ((len(args) > 1 and args[1] == named) or experiment != base):
            raise UsageError(
                "--resume takes the run as it was begun: no preset, and no option of the experiment but --steps"
            )
        if steps is not None and resume is None:
            experiment = experiment.override({"schedule.steps": steps})
        sinks = _Sinks(tensorboard, wandb)
        return partial(_run, experiment, resume, steps, out, sinks, as_json=json, checkpoint_every=checkpoint_every)

    return run


def _run(
    experiment: Experiment,
    run_id: str | None,
    steps: int | None,
    out: Path,
    sinks: _Sinks,
    *,
    as_json: bool,
    checkpoint_every: float,
) -> int:
    from grokfast.plots import plot_curves

    console = Console(stderr=True)
    display = Display(console)
    watchers: dict[str, Any] = {"observers": [display, sinks], "checkpoint_every": checkpoint_every}
    with RunStore(out, create=run_id is None) as store:
        sinks.store = store
        try:
            begin = partial(train, experiment) if run_id is None else partial(resume, run_id, steps=steps)
            result = begin(store=store, **watchers)
        finally:
            display.stop()
    assert result.directory is not None
    picture = plot_curves(
        result.curves,
        result.directory / "curves.png",
        title=f"{result.run_id}: {result.phase}",
        t_memorize=result.t_memorize,
        t_generalize=result.t_generalize,
        threshold=result.experiment.criteria.threshold,
    )
    speed = result.steps / max(result.seconds, 1e-9)
    print(f"{result.sentence} ({result.phase}, {result.steps:,} steps in {result.seconds:.1f} s, {speed:,.0f} steps/s)")
    print(f"curves: {picture}")
    if as_json:
        print(json_module.dumps(result.summary()))
    return 0


class _Sinks(Observer):
    """Feeds TensorBoard and Weights & Biases, if asked for."""

    def __init__(self, tensorboard: bool, wandb: bool) -> None:
        self.tensorboard, self.wandb = tensorboard, wandb
        self.store: RunStore | None = None
        self.open: list[Sink] = []

    def started(self, ensemble: Ensemble, run_ids: Sequence[str | None]) -> None:
        run_id = run_ids[0]
        if self.store is None or run_id is None:
            return
        directory, curves = self.store.directory(run_id), self.store.curves(run_id)
        resumed = len(curves["step"]) > 0
        if self.tensorboard:
            self.open.append(TensorBoardSink(directory / "tensorboard", purge_step=0 if resumed else None))
        if self.wandb:
            config = ensemble.experiments[0].to_dict()
            self.open.append(WandbSink("grokfast", run_id, config, directory / "wandb"))
        for record in records_of(curves):  # a killed process may not have sent all
            for sink in self.open:
                sink.record(record)

    def recorded(self, run: int, record: Record, outcome: Outcome) -> None:
        for sink in self.open:
            sink.record(record)

    def finished(self, run: int, result: RunResult) -> None:
        for sink in self.open:
            sink.close(result.summary())
