"""A comparison for readers: tables, notes and pictures, and all of it as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from grokfast.analysis import incidence
from grokfast.comparison.arms import BASE, PUBLISHED
from grokfast.comparison.result import TaskResult
from grokfast.units import duration

# Lee et al. 2024, arXiv 2405.20233, multiplication mod 97 to 95%: iterations without a filter, to those with it.
CLAIMS = {"paper-ema": 39_890 / 910, "paper-ma": 39_890 / 790}


def table(task: TaskResult) -> list[dict[str, str]]:
    """A row for each arm, by column."""
    return [one.words() for one in task.arms]


def notes(task: TaskResult) -> list[str]:
    """What a reader needs to know beside the table, a sentence or two each."""
    contest, experiment = task.contest, task.contest.experiment
    n, first, last = len(contest.entries[BASE].points), contest.final_seed, contest.final_seed + contest.seeds - 1
    return [
        f"Search: {n} points of each arm's space, the untuned one among them, on {contest.tuning} "
        f"seed{'s' * (contest.tuning > 1)}: as many runs for tuned AdamW as for all others. The least median step "
        f"wins. Then seeds {first} to {last}. Arms as published are not searched.",
        f"At most {experiment.schedule.steps:,} steps. Generalised: {experiment.criteria.threshold:.0%} of "
        f"{experiment.criteria.generalize}. A run that had not by then is censored there, in medians (Kaplan and "
        "Meier's), quotients and tests alike; >, < and ∞: a median was not reached.",
        "×: how many times sooner, in steps: quotients of medians, bootstrap over seeds, a seed's two runs together.",
        "p: log-rank test against tuned AdamW, Holm's correction.",
        "cost: of a step, to AdamW's, measured in turns.",
        "time: the median step times the seconds of a step, one run alone. "
        f"All runs: {duration(task.seconds)} of a core, or of a GPU.",
    ]


def left_out(task: TaskResult) -> list[str]:
    """Why arms are not there, a sentence each."""
    return [f"Left out: {name}: {why}." for name, why in task.contest.left_out.items()]


def pictures(task: TaskResult) -> dict[str, Callable[..., Any]]:
    """What draws each picture, by title: with a path it writes a PNG there and returns the path, without one it
    returns the figure."""
    from grokfast.plots import plot_forest, plot_speedups, plot_survival

    name, seeds = task.name, task.contest.seeds
    claims = CLAIMS if task.contest.experiment.flat().get("task.operation") == "mul" else {}
    ratios = {one.name: (one.published, one.speedup) for one in task.arms if one.name not in (BASE, PUBLISHED)}
    made: dict[str, Callable[..., Any]] = {
        "forest plot": partial(
            plot_forest, [one.summary for one in task.arms], title=f"{name}: tuned arms, {seeds} seeds"
        ),
        "Kaplan-Meier curves": partial(
            plot_survival, incidence(task.table), base=BASE, title=f"{name}: runs that have generalised"
        ),
    }
    if ratios:
        made["speed-ups"] = partial(
            plot_speedups,
            ratios,
            baselines=("Adam without decay, as published", "tuned AdamW"),
            claims={one: claim for one, claim in claims.items() if one in ratios},
            claimed="published, mod 97, one seed",
            title=f"{name}: how many times sooner",
        )
    return made


def markdown(tasks: Sequence[TaskResult], drawn: Mapping[str, Mapping[str, Path]], command: str) -> str:
    """All tasks as a page: the command, and of each table, notes, and the pictures that are `drawn`, by file name."""
    lines = ["# Accelerators compared", "", "```sh", command, "```", ""]
    for task in tasks:
        rows = table(task)
        lines += [f"## {task.name}", "", _row(rows[0]), _row("---" for _ in rows[0])]
        lines += [_row(row.values()) for row in rows]
        lines += ["", *(f"- {note}" for note in [*notes(task), *left_out(task)]), ""]
        lines += [f"![{task.name}: {title}]({path.name})\n" for title, path in drawn.get(task.name, {}).items()]
    return "\n".join(lines).rstrip() + "\n"


def _row(words: Iterable[str]) -> str:
    return "| " + " | ".join(word.replace("|", r"\|") for word in words) + " |"
