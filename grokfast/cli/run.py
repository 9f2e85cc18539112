"""`grokfast run`: one experiment, from its beginning or from where it was interrupted."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Table

from grokfast import checks
from grokfast.cli.common import Screen, UsageError, base_experiment, output
from grokfast.cli.pictures import draw_all
from grokfast.display.run import Display
from grokfast.parts import name_of
from grokfast.store import RunStore
from grokfast.store.records import Record, records_of
from grokfast.training import Experiment, Observer, RunResult, resume, train
from grokfast.training.ensemble import Ensemble, resolve_device
from grokfast.training.outcome import Outcome
from grokfast.training.presets import ABOUT, PRESETS
from grokfast.training.sinks import SafeSink, Sink, TensorBoardSink, WandbSink
from grokfast.units import duration


def run_command(args: Sequence[str]) -> Callable[..., Callable[[], int]]:
    """`run` with the named preset's values as the defaults of its options, which the help then shows."""
    named = args[1] if len(args) > 1 and args[0] == "run" and not args[1].startswith("-") else "quick"
    base = base_experiment(args, Experiment.preset(named))

    def run(
        preset: tyro.conf.Positional[str] = "quick",
        *,
        experiment: Annotated[Experiment, tyro.conf.arg(name="")] = base,
        task: str = name_of(base.task),
        model: str = name_of(base.model),
        loss: str = name_of(base.loss),
        optimizer: str = name_of(base.optimizer),
        filter: str = "none" if base.filter is None else name_of(base.filter),
        steps: int | None = None,
        out: Path = Path("runs"),
        resume: str | None = None,
        json: bool = False,
        tensorboard: bool = False,
        wandb: bool = False,
        checkpoint_every: float = 10.0,
        list: bool = False,
    ) -> Callable[[], int]:
        """Train a preset to its end and say what happened; every option of the experiment can be changed.

        Args:
            preset: quick, nanda, s5, parity, ...: --list shows them all; comes first.
            task: the kind of it: its name, name(field=value,...), or a class of yours, package.module:Name.
            model: likewise; the chosen kind's fields are then options, too.
            loss: likewise.
            optimizer: likewise.
            filter: what is done to gradients or weights: none, ema, ma or another kind, likewise.
            steps: short for --schedule.steps.
            out: directory of the run store.
            resume: go on with this interrupted or killed run; with --steps also with one that has finished.
            json: print the result as one JSON object on the last line.
            tensorboard: log to the run's directory for TensorBoard, too.
            wandb: log to the Weights & Biases project "grokfast", too.
            checkpoint_every: seconds between checkpoints.
            list: show all presets instead: what they train, whose they are, how long it takes here, what should happen.
        """
        if list:
            return _list
        if preset != named:
            raise UsageError(f"the preset comes first: grokfast run {preset} ...")
        if resume is not None and ((len(args) > 1 and args[1] == named) or experiment != base):
            raise UsageError(
                "--resume takes the run as it was begun: no preset, and no option of the experiment but --steps"
            )
        checks.real("--checkpoint-every", checkpoint_every, minimum=0)
        if steps is not None and resume is None:
            experiment = experiment.override({"schedule.steps": steps})
        sinks = _Sinks(tensorboard, wandb)
        return partial(_run, experiment, resume, steps, out, sinks, as_json=json, checkpoint_every=checkpoint_every)

    return run


def _list() -> int:
    """A row for each preset, timed for a moment on this machine."""
    from grokfast.sweeps import presets as sweeps
    from grokfast.sweeps.estimate import estimate

    screen, table = (
        output(),
        Table("preset", "what", "whose", "here, a thread", "what should happen", box=None, pad_edge=False),
    )
    with Screen(stderr=True).status("timing a few steps of each"):
        for name, about in ABOUT.items():
            experiment = PRESETS[name]
            device = resolve_device(experiment.device).type
            here = f"needs {missing}" if (missing := experiment.task.missing()) else ""
            if not here:
                step = estimate([experiment.override({"device": device})], device).seconds_per_step
                here = duration(about.steps * step)
            table.add_row(name, about.what, about.paper, here, about.outcome)
    for name, (what, paper, outcome) in sweeps.ABOUT.items():
        table.add_row(name, what, paper, f"grokfast sweep {name}", outcome)
    screen.print(table)
    return 0


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
    screen = Screen(stderr=True)
    display = Display(screen)
    watchers: dict[str, Any] = {"observers": [display, sinks], "checkpoint_every": checkpoint_every}
    with RunStore(out, create=run_id is None) as store:
        sinks.store = store
        try:
            begin = partial(train, experiment) if run_id is None else partial(resume, run_id, steps=steps)
            result = begin(store=store, **watchers)
        finally:
            display.stop()
    try:  # first of all, what nothing that comes later can take away
        done, rate = f"{result.steps:,} steps in {result.seconds:.1f} s", result.steps / max(result.seconds, 1e-9)
        print(f"{result.sentence} ({result.phase}, {done}, {rate:,.0f} steps/s)")
        if as_json:
            print(json_module.dumps(result.summary()))
        sys.stdout.flush()
    finally:
        assert result.directory is not None
        screen = screen if as_json else Screen()
        draw_all(result.experiment, result.curves, result.directory, screen, has_ended=True)
    return 0


class _Sinks(Observer):
    """Feeds TensorBoard and Weights & Biases, if asked for; a run does not end because one of them fails in it."""

    def __init__(self, tensorboard: bool, wandb: bool) -> None:
        self.tensorboard, self.wandb = tensorboard, wandb
        self.store: RunStore | None = None
        self.open: list[Sink] = []

    def started(self, ensemble: Ensemble, run_ids: Sequence[str | None]) -> None:
        run_id = run_ids[0]
        if self.store is None or run_id is None:
            return
        store, curves = self.store, self.store.curves(run_id)
        resumed = len(curves["step"]) > 0
        if self.tensorboard:
            board = TensorBoardSink(store.directory(run_id, "tensorboard"), purge_step=0 if resumed else None)
            self.open.append(SafeSink(board, "TensorBoard"))
        if self.wandb:
            config = ensemble.experiments[0].to_dict()
            log = WandbSink("grokfast", run_id, config, store.directory(run_id, "wandb"))
            self.open.append(SafeSink(log, "Weights & Biases"))
        for record in records_of(curves):  # a killed process may not have sent all
            for sink in self.open:
                sink.record(record)

    def recorded(self, run: int, record: Record, outcome: Outcome) -> None:
        for sink in self.open:
            sink.record(record)

    def finished(self, run: int, result: RunResult) -> None:
        for sink in self.open:
            sink.close(result.summary())
