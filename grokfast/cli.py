"""`grokfast run`, `grokfast bench` and `grokfast doctor`."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.bar import Bar
from rich.console import Console
from rich.table import Table
from rich.text import Text

from grokfast import checks
from grokfast.display import Display
from grokfast.filters import EMA, MA
from grokfast.store import RunStore, StoreError
from grokfast.store.records import Record
from grokfast.training import Experiment, Interrupted, Observer, RunResult, resume, train
from grokfast.training.ensemble import Ensemble
from grokfast.training.outcome import Outcome
from grokfast.training.sinks import Sink, TensorBoardSink, WandbSink

FILTERS: dict[str, EMA | MA | None] = {"none": None, "ema": EMA(), "ma": MA()}


class UsageError(Exception):
    """The command line cannot be carried out; the message is for the user."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script; returns the exit status: 0, 1 (failed), 2 (bad usage), 130 (interrupted)."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    console = Console(stderr=True)
    try:
        execute: Callable[[], int] = tyro.extras.subcommand_cli_from_dict(
            {"run": _run_command(args), "bench": bench, "doctor": doctor},
            prog="grokfast",
            description="Fast grokking experiments.",
            args=args,
            use_underscores=True,
            config=(tyro.conf.AvoidSubcommands,),
        )
        return execute()
    except Interrupted as stopped:
        out = _option(args, "--out")
        for run_id in stopped.run_ids:
            command = f"grokfast run --resume {run_id}" + (f" --out {out}" if out else "")
            console.print(f"Stopped and saved. Go on with: {command}", highlight=False, soft_wrap=True)
        return 130
    except KeyboardInterrupt:
        return 130
    except (StoreError, OSError) as error:
        console.print(f"grokfast: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        return 1
    except (UsageError, ValueError, TypeError, ImportError) as error:
        console.print(f"grokfast: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        return 2


def _option(args: Sequence[str], name: str) -> str | None:
    """The value of an option that has to be known before the others can be parsed."""
    for i, arg in enumerate(args):
        if arg.startswith(f"{name}="):
            return arg.partition("=")[2]
        if arg == name and i + 1 < len(args):
            return args[i + 1]
    return None


def _run_command(args: Sequence[str]) -> Callable[..., Callable[[], int]]:
    """`run` with the named preset's values as the defaults of its options, which the help then shows."""
    named = args[1] if len(args) > 1 and args[0] == "run" and not args[1].startswith("-") else "quick"
    base = Experiment.preset(named)
    chosen = _option(args, "--filter")
    if chosen is not None:
        checks.choice("--filter", chosen, FILTERS)
        if chosen != _filter_name(base):
            base = base.override({"filter": FILTERS[chosen]})

    def run(
        preset: tyro.conf.Positional[str] = "quick",
        *,
        experiment: Annotated[Experiment, tyro.conf.arg(name="")] = base,
        filter: str = _filter_name(base),
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
            resume: go on with this interrupted or killed run.
            json: print the result as one JSON object on the last line.
            tensorboard: log to the run's directory for TensorBoard, too.
            wandb: log to the Weights & Biases project "grokfast", too.
            checkpoint_every: seconds between checkpoints.
        """
        if preset != named:
            raise UsageError(f"the preset comes first: grokfast run {preset} ...")
        if steps is not None:
            experiment = experiment.override({"schedule.steps": steps})
        if resume is not None and ((len(args) > 1 and args[1] == named) or experiment != base):
            raise UsageError(
                "--resume takes the run as it was begun: no preset and no option of the experiment beside it"
            )
        sinks = _Sinks(tensorboard, wandb)
        return partial(_run, experiment, resume, out, sinks, as_json=json, checkpoint_every=checkpoint_every)

    return run


def _filter_name(experiment: Experiment) -> str:
    return "none" if experiment.filter is None else type(experiment.filter).__name__.lower()


def _run(
    experiment: Experiment, run_id: str | None, out: Path, sinks: _Sinks, *, as_json: bool, checkpoint_every: float
) -> int:
    from grokfast.plots import plot_curves

    console = Console(stderr=True)
    display = Display(console)
    watchers: dict[str, Any] = {"observers": [display, sinks], "checkpoint_every": checkpoint_every}
    with RunStore(out, create=run_id is None) as store:
        sinks.store = store
        try:
            begin = partial(train, experiment) if run_id is None else partial(resume, run_id)
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
        for row in zip(*(curves[name].tolist() for name in Record._fields)):  # a killed process may not have sent all
            for sink in self.open:
                sink.record(Record(*row))

    def recorded(self, run: int, record: Record, outcome: Outcome) -> None:
        for sink in self.open:
            sink.record(record)

    def finished(self, run: int, result: RunResult) -> None:
        for sink in self.open:
            sink.close(result.summary())


def bench(models: int = 1, seconds: float = 0.2) -> Callable[[], int]:
    """Time the fused operations on this machine, against eager and compiled PyTorch.

    Args:
        models: size of the ensemble.
        seconds: spent on each figure.
    """
    checks.integer("--models", models, minimum=1)
    checks.real("--seconds", seconds, minimum=0, open_minimum=True)
    return partial(_bench, models, seconds)


def _bench(models: int, seconds: float) -> int:
    import torch

    from grokfast.bench import measure

    device = "cuda" if torch.cuda.is_available() else "cpu"
    console = Console()
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    console.print(f"{name}, torch {torch.__version__}, {models} model{'s' if models > 1 else ''}", highlight=False)
    figures: dict[str, dict[str, float | str]] = {}
    with console.status("measuring"):
        for what, how, found in measure(models, device, seconds):
            figures.setdefault(what, {})[how] = found
    for what, rows in figures.items():
        times = {how: found for how, found in rows.items() if isinstance(found, float)}
        table = Table("", "ms", "", "", box=None, pad_edge=False, show_header=False, title=what, title_justify="left")
        for how, found in rows.items():
            if isinstance(found, str):
                table.add_row(how, "", "", Text(found, overflow="ellipsis", no_wrap=True))
            else:
                ratio = f"{times['eager'] / found:.2f} × as fast" if "eager" in times else ""
                bar = Bar(max(times.values()), 0, found, width=30, color="cyan")
                table.add_row(how, f"{1e3 * found:.3f} ms", bar, ratio)
        console.print()
        console.print(table, highlight=False)
    return 0


def doctor() -> Callable[[], int]:
    """Say what this machine has, and which implementation each operation will use here and why."""
    return _doctor


def _doctor() -> int:
    from grokfast import doctor as report

    console = Console()
    table = Table.grid(padding=(0, 2))
    for what, found in report.machine():
        table.add_row(what, Text(found))
    console.print(table, highlight=False)
    console.print()
    table = Table("operation", "where", "implementation", box=None, pad_edge=False)
    for row in report.operations():
        table.add_row(*map(Text, row))
    console.print(table, highlight=False)
    return 0
