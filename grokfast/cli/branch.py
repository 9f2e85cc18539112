"""`grokfast branch`: one run goes on in many ways."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from grokfast import checks
from grokfast.cli.common import UsageError
from grokfast.cli.sweep import runner_of, train
from grokfast.store import RunStore
from grokfast.sweeps import PlannedSweep, plan_branch
from grokfast.sweeps.branching import forked
from grokfast.sweeps.text import parse_axes, parse_changes
from grokfast.training.experiment import FAMILIES


def branch(
    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")],
    *,
    at: tuple[int, ...] = (),
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE")] = (),
    grid: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=V1,V2,...")] = (),
    zip: bool = False,
    random: int | None = None,
    seeds: int | None = None,
    out: Path = Path("runs"),
    processes: int | None = None,
    ensemble: int | None = None,
    ray: str | None = None,
    json: bool = False,
    weights: bool = True,
    checkpoint_every: float = 10.0,
) -> Callable[[], int]:
    """Fork a run after some of its steps into many arms: same weights and state, other options from there on.

    The same command again does nothing twice; an interrupted one goes on with grokfast sweep --resume.

    Args:
        run: the id of a run that has full snapshots (--schedule.snapshots, --schedule.full-snapshots).
        at: the step, or several: each has its arms then.
        set: what all arms have otherwise than the run, KEY=VALUE, as often as wanted; also whole parts, filter=ema.
        grid: what to vary, as for grokfast sweep.
        zip: the first values of all keys, the second, ..., instead of all combinations.
        random: so many of the combinations, drawn at random.
        seeds: repeat everything with so many seeds: of what comes, the weights are the run's.
        out: directory of the run store.
        processes: worker processes; default one per core, or one per GPU.
        ensemble: arms that train together at most; default 1 on a CPU, 1024 on a GPU.
        ray: train on a Ray cluster: its address, or local.
        json: print the result as one JSON object on the last line.
        weights: keep the final weights of every arm.
        checkpoint_every: seconds between checkpoints.
    """
    if not at:
        raise UsageError("--at STEP says after which of the run's steps to fork it (grokfast show RUN names them)")
    options: dict[str, Any] = {
        "zip": zip, "random": random, "seeds": seeds, "runner": runner_of(processes, ray), "ensemble": ensemble,
        "keep_weights": weights, "checkpoint_every": checks.real("--checkpoint-every", checkpoint_every, minimum=0),
    }  # fmt: skip
    return partial(train, partial(_plan, run, at, set, grid, out, options), as_json=json)


def _plan(
    run: str, at: tuple[int, ...], set: tuple[str, ...], grid: tuple[str, ...], out: Path, options: dict[str, Any]
) -> PlannedSweep:
    with RunStore(out, create=False) as store:
        parent = forked(store, run, at[0])
        changes = parse_changes(parent, set)
        parts = {key: value for key, value in changes.items() if key in FAMILIES}
        axes = parse_axes(parent.override(parts), grid)
        return plan_branch(run, at, changes, axes, store=store, **options)
