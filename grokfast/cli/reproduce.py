"""`grokfast reproduce`: a paper's figures, and whether they come out here."""

from __future__ import annotations

import json as json_module
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Column, Table

from grokfast.cli.common import Screen, UsageError, output
from grokfast.cli.sweep import runner_of, trained
from grokfast.reproductions import NAMES, Outcome, Trial, last_verdict, named
from grokfast.sweeps import Runner, SweepInterrupted
from grokfast.sweeps.processes import cores
from grokfast.text import command
from grokfast.units import duration


def reproduce(
    name: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="NAME")] = None,
    *,
    seeds: int | None = None,
    quick: bool = False,
    out: Path = Path("runs"),
    processes: int | None = None,
    json: bool = False,
) -> Callable[[], int]:
    """Train what a paper trained, and say whether its figures come out: how sure, and why.

    Without a name: the papers, how long each takes here, and what was found last. The same command again trains
    nothing twice; an interrupted one goes on.

    Args:
        name: of the paper.
        seeds: of every arm; default as many as the paper, or the evidence, needs.
        quick: a version of two minutes at most, with an expectation of its own.
        out: directory of the run store; JSON and picture go to its folder "reproductions".
        processes: worker processes; default one per core, or one per GPU.
        json: print the result as one JSON object on the last line.
    """
    if name is None:
        if seeds is not None or quick or json:
            raise UsageError(f"reproduce needs the name of a paper: {', '.join(NAMES)}")
        return partial(_list, out)
    trial = Trial(reproduction=named(name), root=out, seeds=seeds, quick=quick)
    return partial(_reproduce, trial, runner_of(processes, None), as_json=json)


def _list(out: Path) -> int:
    """A row for each paper, timed for a moment on this machine."""
    screen, n = output(), cores()
    here = f"here, {n} core{'s' if n != 1 else ''}"
    table = Table("name", "paper", Column(here, no_wrap=True), "--quick", "last verdict", box=None, pad_edge=False)
    with Screen(stderr=True).status("timing a few steps of each"):
        for name in NAMES:
            full, quick = (Trial(reproduction=named(name), root=out, quick=is_quick) for is_quick in (False, True))
            times = (duration(trial.seconds(n)) for trial in (full, quick))
            table.add_row(name, full.reproduction.paper, *times, last_verdict(name, out) or "none yet")
    screen.print(table)
    return 0


def _reproduce(trial: Trial, runner: Runner | None, *, as_json: bool) -> int:
    results = {}
    try:
        for arm, planned in trial.plans(runner):
            results[arm] = trained(planned)
    except SweepInterrupted:
        Screen(stderr=True).say(f"Stopped and saved. Go on with: {trial.command}{_out(trial.root)}")
        return 130
    outcome = trial.conclude(results)
    _say(trial, outcome, output())
    if as_json:
        print(json_module.dumps(outcome.record))
    return 0


def _out(root: Path) -> str:
    return "" if root == Path("runs") else f" {command('--out', root)}"


def _say(trial: Trial, outcome: Outcome, screen: Screen) -> None:
    """The findings, quantity by quantity, what is claimed of each, and the verdict."""
    screen.say(f"{trial.reproduction.title} ({trial.reproduction.paper})", style="bold")
    words = [found.words() for found in outcome.findings]
    columns = (Column(name, no_wrap=name not in ("what", "claim")) for name in words[0])
    table = Table(*columns, box=None, pad_edge=False)
    quantity = None
    for found, row in zip(outcome.findings, words):
        if found.quantity != quantity:
            quantity = found.quantity
            table.add_row(f"{quantity}:", style="italic")
        table.add_row(*row.values(), style={"refuted": "red", "reproduced": "green"}.get(found.verdict))
    screen.print(table)
    sources = dict.fromkeys(found.published.source for found in outcome.findings if found.published is not None)
    for line in (
        f"Expected{' of the quick version' if trial.quick else ''}: {trial.version.expectation}.",
        "Reproduced: the 95% interval lies inside of what the claim allows; refuted: outside; undecided: over an end.",
        *([f"Published: {'; '.join(sources)}."] if sources else []),
        f"picture: {outcome.picture}",
        f"JSON: {outcome.path}",
    ):
        screen.say(line)
    screen.say(f"{outcome.name}: {outcome.summary}", style="bold")
