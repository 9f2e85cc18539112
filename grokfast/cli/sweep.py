"""`grokfast sweep`: many experiments as one, from the command line or a TOML file."""

from __future__ import annotations

import json as json_module
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Table

from grokfast import checks
from grokfast.cli.common import Screen, UsageError, base_experiment, output
from grokfast.cli.pictures import attempt, draw
from grokfast.display.sweep import SweepDisplay
from grokfast.parts import name_of
from grokfast.store.words import written
from grokfast.sweeps import PlannedSweep, Processes, Runner, SweepResult, plan, plan_stored
from grokfast.sweeps.estimate import estimate
from grokfast.sweeps.presets import SWEEPS
from grokfast.sweeps.text import parse_axes
from grokfast.sweeps.toml import SweepFile, read_sweep
from grokfast.text import command
from grokfast.training import Experiment
from grokfast.units import duration, memory

ROWS = 60  # of the summary


def merged(args: Sequence[str], option: str = "--grid") -> list[str]:
    """The arguments with all that follows an option, however often it is given, behind one."""
    rest: list[str] = []
    own: list[str] = []
    taking = False
    for arg in args:
        if arg == option or arg.startswith(f"{option}="):
            own += [arg.partition("=")[2]] if "=" in arg else []
            taking = "=" not in arg
        elif taking and not arg.startswith("-"):
            own.append(arg)
        else:
            taking = False
            rest.append(arg)
    return [*rest, option, *own] if own else rest


def sweep_command(args: Sequence[str]) -> Callable[..., Callable[[], int]]:
    """`sweep` with the named preset's, or the file's, values as the defaults of its options."""
    named = args[1] if len(args) > 1 and args[0] == "sweep" and not args[1].startswith("-") else "quick"
    if named.endswith(".toml"):
        file = read_sweep(Path(named))
    else:
        file = SWEEPS[named] if named in SWEEPS else SweepFile(Experiment.preset(named), {})
    base = base_experiment(args, file.experiment)

    def sweep(
        preset: tyro.conf.Positional[str] = "quick",
        *,
        experiment: Annotated[Experiment, tyro.conf.arg(name="")] = base,
        task: str = name_of(base.task),
        model: str = name_of(base.model),
        loss: str = name_of(base.loss),
        optimizer: str = name_of(base.optimizer),
        filter: str = "none" if base.filter is None else name_of(base.filter),
        grid: tuple[str, ...] = (),
        zip: bool = file.options.get("zip", False),
        random: int | None = file.options.get("random"),
        seeds: int | None = file.options.get("seeds"),
        steps: int | None = None,
        out: Path = Path("runs"),
        processes: int | None = None,
        ensemble: int | None = None,
        ray: str | None = None,
        resume: str | None = None,
        json: bool = False,
        weights: bool = True,
        checkpoint_every: float = 10.0,
    ) -> Callable[[], int]:
        """Train an experiment for every combination of values, and say what happened where.

        The same command again does nothing twice: what is done is taken from the store, the rest is trained.

        Args:
            preset: quick, nanda, s5, powerset, ... (grokfast run --list shows them all), or a TOML file; comes first.
            task: the kind of it: its name, name(field=value,...), or a class of yours, package.module:Name.
            model: likewise; the chosen kind's fields are then options, too.
            loss: likewise.
            optimizer: likewise.
            filter: what is done to gradients or weights: none, ema, ma or another kind, likewise.
            grid: what to vary: KEY=V1,V2,... or KEY=FIRST:LAST:N[log], as often as wanted;
                also of whole parts, filter=none,ema,ma(lamb=1).
            zip: the first values of all keys, the second, ..., instead of all combinations.
            random: so many of the combinations, drawn at random.
            seeds: repeat everything with so many seeds.
            steps: short for --schedule.steps.
            out: directory of the run store.
            processes: worker processes; default one per core, or one per GPU.
            ensemble: runs that train together at most; default 1 on a CPU, 1024 on a GPU.
            ray: train on a Ray cluster: its address, or local.
            resume: go on with this sweep.
            json: print the result as one JSON object on the last line.
            weights: keep the final weights of every run.
            checkpoint_every: seconds between checkpoints.
        """
        if preset != named:
            raise UsageError(f"the preset comes first: grokfast sweep {preset} ...")
        if resume is not None:
            if (len(args) > 1 and args[1] == named) or experiment != base or grid or zip or random or seeds is not None:
                raise UsageError("--resume takes the sweep as it was begun: no preset, no option and no grid beside it")
        elif not (grid or file.grid) and seeds is None:
            raise UsageError("nothing varies: --grid KEY=V1,V2,... says what to vary (or --seeds)")
        if steps is not None:
            experiment = experiment.override({"schedule.steps": steps})
        axes = {**file.grid, **parse_axes(experiment, grid, file.grid)}
        options: dict[str, Any] = {
            "store": out, "runner": runner_of(processes, ray), "ensemble": ensemble, "keep_weights": weights,
            "checkpoint_every": checks.real("--checkpoint-every", checkpoint_every, minimum=0),
        }  # fmt: skip
        if resume is not None:
            begin: Callable[[], PlannedSweep] = partial(plan_stored, resume, **options)
        else:
            begin = partial(plan, experiment, axes, zip=zip, random=random, seeds=seeds, **options)
        return partial(train, begin, as_json=json)

    return sweep


def runner_of(processes: int | None, ray: str | None) -> Runner | None:
    """What the options say; None: the default."""
    if ray is None:
        return None if processes is None else Processes(processes)
    if processes is not None:
        raise UsageError("--processes are those of this machine, --ray is a cluster: not both")
    from grokfast.sweeps.on_ray import OnRay

    return OnRay(ray)


def train(
    begin: Callable[[], PlannedSweep],
    *,
    as_json: bool,
    tell: Callable[[SweepResult, Screen], dict[str, Any]] | None = None,
) -> int:
    """Train what is planned, and `tell` (default: `report`) what came out."""
    result = trained(begin())
    summary = (tell or report)(result, output())
    if as_json:
        print(json_module.dumps(summary))
    return 1 if result.errors else 0


def trained(planned: PlannedSweep) -> SweepResult:
    """Say what is planned, train it and show how far it is."""
    screen = Screen(stderr=True)
    _announce(screen, planned)
    display = SweepDisplay(screen)
    try:
        result = planned.train([display])
    finally:
        display.stop()
    if planned.todo:
        print(display.line())
    return result


def _announce(screen: Screen, planned: PlannedSweep) -> None:
    """Runs, groups, where, how much memory and how long."""
    n, todo = len(planned.runs), planned.todo
    done = f", {n - todo:,} of them done already" if n > todo else ""
    text = f"{planned.sweep_id}: {n:,} run{'s' if n != 1 else ''}{done}"
    if todo:
        with screen.status("timing a few steps"):
            first = planned.groups[0]
            expected = estimate([planned.runs[run_id] for run_id in first.runs], first.device)
        workers = min(planned.runner.workers, len(planned.groups))
        steps = sum(planned.runs[run_id].schedule.steps for group in planned.groups for run_id in group.runs)
        seconds = steps * expected.seconds_per_step / workers
        together = "" if todo == len(planned.groups) else f" in {len(planned.groups):,} groups"
        text += (
            f"; {todo:,} to train{together}, on {planned.runner.where()}, "
            f"{memory(workers * expected.worker_bytes)} of memory; {1e3 * expected.seconds_per_step:.3g} ms a step, "
            f"{duration(seconds)} if every run took all its steps. Ctrl-C saves."
        )
    screen.say(text)


def report(result: SweepResult, screen: Screen) -> dict[str, Any]:
    """Print the cells of a sweep, draw its pictures, and return what was found as JSON values."""
    from grokfast.analysis import summarize

    table = result.table()
    axes = [key for key in result.axes if key != "seed" and key in table]
    names = [key.rpartition(".")[2] for key in axes]
    names = names if len(set(names)) == len(names) else axes
    shown = Table(*names, "generalised", "share, 95%", "median step, 95%", "phase", box=None, pad_edge=False)
    cells: list[dict[str, Any]] = []
    for cell in summarize(table, by=axes):
        low, high = cell.probability_interval
        if cell.n and len(cells) < ROWS:
            shown.add_row(*written([cell.cell[key] for key in axes]), *cell.words().values())
        cells.append(
            {
                "cell": cell.cell,
                "n": cell.n,
                "generalized": cell.generalized,
                "probability_interval": [low, high],
                "t_generalize": [finite(t) for t in (cell.t_generalize.median, *interval(cell.t_generalize))],
                "phases": cell.phases,
                "failed": cell.failed,
                "unfinished": cell.unfinished,
            }
        )
    screen.print(shown)
    if len(cells) > ROWS:
        screen.say(f"... and {len(cells) - ROWS:,} more: {command('grokfast', 'export', result.sweep_id)}")
    pictures = attempt(partial(draw, result, table), screen)
    return {"sweep_id": result.sweep_id, "cells": cells, "pictures": {what: str(p) for what, p in pictures.items()}}


def interval(median: Any) -> tuple[float, float]:
    return median.low, median.high


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
