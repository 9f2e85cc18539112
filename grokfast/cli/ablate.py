"""`grokfast ablate`: what each technique of a preset does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Column, Table

from grokfast.cli.common import Screen
from grokfast.cli.pictures import attempt
from grokfast.cli.sweep import finite, interval, runner_of, train
from grokfast.store.words import written
from grokfast.sweeps import ARMS, Ablation, SweepResult, try_arms
from grokfast.sweeps.arms import USUAL
from grokfast.sweeps.text import parse_changes
from grokfast.text import command
from grokfast.training import Experiment

_ARMS = f"of {', '.join(ARMS)}; or all; default: {', '.join(USUAL)}. It says which are left out, and why."


def ablate_command(args: Sequence[str]) -> Callable[..., Callable[[], int]]:
    """`ablate`, which knows how it was called."""

    def ablate(
        preset: tyro.conf.Positional[str] = "quick",
        *,
        seeds: int = 8,
        arms: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME,NAME", help=_ARMS)] = (),
        set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE")] = (),
        out: Path = Path("runs"),
        processes: int | None = None,
        json: bool = False,
    ) -> Callable[[], int]:
        """Turn each technique of a preset off, on, up or down in turn, and say what that does to when it generalises.

        The same seeds in each arm. The same command again does nothing twice; an interrupted one goes on.

        Args:
            preset: quick, nanda, s5, ... (grokfast run --list shows them all).
            seeds: of each arm, from the preset's on.
            set: what all arms have otherwise than the preset, KEY=VALUE, as often as wanted; also whole parts.
            out: directory of the run store.
            processes: worker processes; default one per core, or one per GPU.
            json: print the result as one JSON object on the last line.
        """
        named = Experiment.preset(preset)
        experiment = named.override(parse_changes(named, set))
        names = [name for text in arms for name in text.split(",") if name]
        ablation = try_arms(experiment, seeds, [*ARMS] if names == ["all"] else names or None)
        begin = partial(ablation.plan, store=out, runner=runner_of(processes, None))
        return partial(train, begin, as_json=json, tell=partial(report, ablation, command("grokfast", *args)))

    return ablate


def report(ablation: Ablation, said: str, result: SweepResult, screen: Screen) -> dict[str, Any]:
    """Print the arms of an ablation, draw their picture, and return what was found as JSON values."""
    from grokfast.analysis import compare_arms

    experiment = ablation.experiment
    column = f"{experiment.criteria.generalize}_accuracy"
    runs = ablation.result(result)
    arms = compare_arms(runs.table(), accuracy=column)
    numbers = ("generalised, 95%", "median step, 95%", "× base, 95%", "p", "test")
    wide = (Column(name, no_wrap=True) for name in numbers)
    shown = Table("arm", Column("what differs", overflow="fold"), *wide, box=None, pad_edge=False)
    cells: list[dict[str, Any]] = []
    for one in arms:
        (arm, _), runs_of, differs = ablation.arms[one.arm], one.runs, ablation.differences(one.arm)
        low, high = runs_of.probability_interval
        words = zip(differs, written([*differs.values()]))
        shown.add_row(
            one.arm,
            ", ".join(f"{key.rpartition('.')[2]}={word}" for key, word in words),
            *one.words().values(),
        )
        cells.append(
            {
                "arm": one.arm,
                "group": arm.group,
                "about": arm.about,
                "differs": differs,
                "n": runs_of.n,
                "generalized": runs_of.generalized,
                "probability_interval": [low, high],
                "t_generalize": [finite(t) for t in (runs_of.t_generalize.median, *interval(runs_of.t_generalize))],
                "ratio": None if one.ratio is None else {
                    "value": finite(one.ratio.value), "interval": [finite(one.ratio.low), finite(one.ratio.high)],
                    "text": str(one.ratio), "seeds": one.ratio.n, "both_generalized": one.ratio.pairs,
                },
                "p": None if one.p is None else finite(one.p),
                "p_holm": None if one.p_holm is None else finite(one.p_holm),
                "accuracy": finite(one.accuracy),
                "phases": runs_of.phases,
                "failed": runs_of.failed,
                "unfinished": runs_of.unfinished,
                "runs": [run_id for run_id, own in runs.arm_of.items() if own == one.arm],
            }
        )  # fmt: skip
    screen.print(shown)
    tests = sum(cell["p"] is not None for cell in cells)
    for name, why in ablation.left_out.items():
        screen.say(f"left out: {name}: {why}")
    schedule, seeds = experiment.schedule, [experiment.seed + i for i in range(ablation.seeds)]
    stops = "" if schedule.stop_after is None else f", stopped {schedule.stop_after:,} after generalising"
    for line in (
        f"{experiment.name}, seeds {seeds[0]} to {seeds[-1]}, at most {schedule.steps:,} steps{stops}; generalised: "
        f"{experiment.criteria.threshold:.0%} of {experiment.criteria.generalize}.",
        "Medians are Kaplan and Meier's, of runs that did not generalise, too. × base: their quotient, bootstrap over "
        "seeds, a seed's two runs together; >, < and ∞: the median was not reached.",
        f"p: log-rank test against base, Holm's correction for {tests} arms. test: median accuracy at the end.",
        said,
    ):
        screen.say(line)
    pictures = attempt(partial(_draw, arms, result.directory, f"{experiment.name}: {len(seeds)} seeds"), screen)
    return {
        "sweep_id": result.sweep_id,
        "command": said,
        "preset": experiment.name,
        "seeds": seeds,
        "steps": schedule.steps,
        "stop_after": schedule.stop_after,
        "threshold": experiment.criteria.threshold,
        "arms": cells,
        "left_out": ablation.left_out,
        "pictures": {what: str(path) for what, path in pictures.items()},
    }


def _draw(arms: Sequence[Any], directory: Path, title: str) -> dict[str, Path]:
    from grokfast.plots import plot_forest

    directory.mkdir(exist_ok=True)
    return {"forest plot": plot_forest(arms, directory / "forest.png", title=title)}
