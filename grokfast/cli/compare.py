"""`grokfast compare`: which accelerator helps, with every arm tuned as plain AdamW is."""

from __future__ import annotations

import json as json_module
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Column, Table

from grokfast import checks
from grokfast.cli.common import Screen, UsageError, option, output, registry
from grokfast.cli.pictures import attempt
from grokfast.cli.sweep import runner_of, trained
from grokfast.comparison import ARMS, BASE, Contest, TaskResult, contest, left_out, notes, pictures
from grokfast.comparison.kept import RECORD, Kept
from grokfast.comparison.presets import COMPARISONS, Preset, task
from grokfast.comparison.run import held, measured
from grokfast.store.sweeps import digest
from grokfast.sweeps import PlannedSweep, SweepResult
from grokfast.sweeps.processes import cores
from grokfast.sweeps.text import parse_changes
from grokfast.text import command, shown
from grokfast.units import duration

_ARMS = f"of {', '.join(ARMS)}; default: all, or the preset's; plain and adam are always among them."
_USUAL = Preset(tasks=("quick",), arms=(), budget=24, tuning=3, seeds=8)
_MACHINE = ("--out", "--processes", "--ensemble", "--ray", "--to")  # a resumed one may have others


def compare_command(args: Sequence[str]) -> Callable[..., Callable[[], int]]:
    """`compare`, which knows how it was called."""

    def compare(
        tasks: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="TASK")] = (),
        *,
        preset: str | None = None,
        arms: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME,NAME", help=_ARMS)] = (),
        budget: int | None = None,
        tuning_seeds: int | None = None,
        seeds: int | None = None,
        search_seed: int = 0,
        steps: int | None = None,
        set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE")] = (),
        out: Path = Path("runs"),
        to: Path | None = None,
        processes: int | None = None,
        ensemble: int | None = None,
        ray: str | None = None,
        resume: str | None = None,
        dry_run: bool = False,
        json: bool = False,
    ) -> Callable[[], int]:
        """Tune every accelerator and plain AdamW with one budget of runs, and compare them on fresh seeds.

        The same command again does nothing twice; an interrupted one goes on.

        Args:
            tasks: quick, a5, mul-mlp, ..., presets of grokfast run and small ones; default quick, or the preset's.
            preset: cpu: four tasks, ten arms and a budget for two cores.
            budget: runs of each arm's search, a multiple of the tuning seeds; default 24.
            tuning_seeds: seeds of each point of the search; default 3.
            seeds: fresh ones, for the chosen point of each arm; default 8.
            search_seed: of the points.
            steps: of each run at most; default the task's.
            set: what all arms of all tasks have otherwise, KEY=VALUE, as often as wanted; also whole parts.
            out: directory of the run store.
            to: directory for tables and pictures; default one of the comparison's own in the store.
            processes: worker processes; default one per core, or one per GPU.
            ensemble: runs that train together at most; default 1 on a CPU, 1024 on a GPU.
            ray: train on a Ray cluster: its address, or local.
            resume: go on with this comparison.
            dry_run: say what would be trained, and how long that takes at most; store and train nothing.
            json: print the result as one JSON object on the last line.
        """
        if resume is not None:
            return _resumed(args, resume, out)
        base = _USUAL if preset is None else COMPARISONS[checks.choice("--preset", preset, COMPARISONS)]
        names = [name for text in arms for name in text.split(",") if name] or [*base.arms] or None
        changes = [*set, *([] if steps is None else [f"schedule.steps={steps}"])]
        experiments = []
        for name in dict.fromkeys(tasks or base.tasks):
            experiment = task(name)
            experiments.append(experiment.override(parse_changes(experiment, changes)))
        form = {
            "budget": base.budget if budget is None else budget,
            "tuning": base.tuning if tuning_seeds is None else tuning_seeds,
            "seeds": base.seeds if seeds is None else seeds,
            "search_seed": search_seed,
        }
        contests = [contest(experiment, names, **form) for experiment in experiments]
        runner = runner_of(processes, ray)
        if dry_run:
            return partial(_plan, contests, cores() if runner is None else runner.workers)
        own = digest([[experiment.to_dict() for experiment in experiments], names, form])[:8]
        options = {"store": out, "runner": runner, "ensemble": ensemble}
        return partial(_compare, contests, Kept(f"compare-{own}", out, to), options, args, as_json=json)

    return compare


def _common(args: Sequence[str]) -> list[str]:
    """The arguments without those that say where it is done, and how it is said."""
    kept, words = list[str](), iter(args)
    for word in words:
        if word.partition("=")[0] in _MACHINE:
            if "=" not in word:
                next(words, None)
        elif word not in ("--json", "--no-json"):
            kept.append(word)
    return kept


def _resumed(args: Sequence[str], name: str, out: Path) -> Callable[[], int]:
    """The stored command, with what is said of the machine now."""
    if _common(args) not in (["compare", "--resume", name], ["compare", f"--resume={name}"]):
        raise UsageError("--resume takes the comparison as it was begun: no task and no option of it beside it")
    now = [word for key in _MACHINE if (own := option(args, key)) is not None for word in (key, own)]
    words = [*Kept(name, out).words(), *now, *(["--json"] if "--json" in args else [])]
    begun: Callable[[], int] = tyro.cli(
        compare_command(words), prog="grokfast compare", args=words[1:], registry=registry(),
        config=(tyro.conf.AvoidSubcommands,),
    )  # fmt: skip
    return begun


def _compare(
    contests: Sequence[Contest], kept: Kept, options: Mapping[str, Any], args: Sequence[str], *, as_json: bool
) -> int:
    """Hold the contests one after the other; what is found is written after each of them."""
    screen, said = output(), command("grokfast", *args)
    sweeps: list[SweepResult] = []
    tasks: list[TaskResult] = []
    drawn: dict[str, dict[str, Path]] = {}
    whole: dict[str, Any] = {}

    def train(planned: PlannedSweep) -> SweepResult:
        sweeps.append(trained(planned))
        return sweeps[-1]

    where = [] if kept.root == Path("runs") else ["--out", kept.root]
    kept.begin(_common(args))
    try:
        for one in contests:
            name = one.experiment.name
            tasks.append(held(one, train, costs=kept.costs(name), **options))
            kept.keep_costs(tasks[-1])
            report(tasks[-1], screen)
            drawn[name] = attempt(partial(_draw, tasks[-1], kept.results), screen)
            whole = kept.keep(tasks, drawn, said)
    except KeyboardInterrupt:  # a sweep's, or while steps are timed
        again = command("grokfast", "compare", "--resume", kept.name, *where)
        Screen(stderr=True).say(f"Stopped and saved. Go on with: {again}")
        return 130
    for what, path in (("table", "compare.md"), ("all runs", RECORD)):
        screen.say(f"{what}: {kept.results / path}")
    screen.say(f"a page of it: {command('grokfast', 'report', kept.name, *where)}")
    screen.say(said)
    if as_json:
        print(json_module.dumps(whole))
    return 1 if any(sweep.errors for sweep in sweeps) else 0


def report(task: TaskResult, screen: Screen) -> None:
    """Print the table of one task, and what a reader needs to know."""
    rows = [one.words() for one in task.arms]
    fold = {"chosen": "fold"}
    wide = (Column(name, no_wrap=name not in fold, overflow=fold.get(name, "ellipsis")) for name in rows[0])  # type: ignore[arg-type]
    table = Table(*wide, box=None, pad_edge=False, title=None)
    for row in rows:
        table.add_row(*row.values())
    screen.say("")
    screen.say(shown(task.name))
    screen.print(table)
    for note in [*notes(task), *left_out(task)]:
        screen.say(note)


def _draw(task: TaskResult, folder: Path) -> dict[str, Path]:
    return {
        title: draw(folder / f"{task.name}_{title.replace(' ', '_').lower()}.png")
        for title, draw in pictures(task).items()
    }


def _plan(contests: Sequence[Contest], workers: int) -> int:
    """What would be trained, by counting: runs, steps of each at most, and milliseconds of a step here."""
    screen, total = output(), 0.0
    for one in contests:
        steps, costs = one.experiment.schedule.steps, measured(one)
        table = Table("arm", "runs", "ms/step", "× plain", "at most", "searched", box=None, pad_edge=False)
        seconds = 0.0
        for name, entry in one.entries.items():
            runs = one.seeds + one.tuning * len(entry.points) * entry.is_searched
            own = runs * steps * costs[name].whole
            seconds += own
            space = "; ".join(f"{key} {axis}" for key, axis in entry.arm.space_of(entry.untuned).items())
            table.add_row(
                name,
                str(runs),
                f"{1e3 * costs[name].whole:.3g}",
                str(costs[name]),
                duration(own),
                space or "as published",
            )
        total += seconds
        screen.say(
            f"{one.experiment.name}: {len(one.entries)} arms, {one.tuning} tuning seed{'s' * (one.tuning > 1)} of "
            f"{len(one.entries[BASE].points)} points, {one.seeds} final seeds, {steps:,} steps at most: "
            f"{duration(seconds)} of one core if no run generalised."
        )
        screen.print(table)
        for name, why in one.left_out.items():
            screen.say(f"left out: {name}: {why}")
    screen.say(f"in all at most {duration(total / workers)} on {workers} workers; runs end when they have generalised")
    return 0
