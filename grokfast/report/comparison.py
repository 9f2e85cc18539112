"""The page of a comparison: of each task the arms, pictures, and what was searched, with every point of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grokfast.analysis import incidence
from grokfast.comparison import TaskResult, left_out, notes, pictures
from grokfast.report.figures import Told, csv, svg, table
from grokfast.report.page import Figure, Section, render
from grokfast.report.tables import value_of, whole
from grokfast.store.words import written
from grokfast.sweeps.ablation import differences
from grokfast.text import one_line

_LEAD = (
    "Accelerators compared on {tasks}: each tuned with one budget of runs, plain AdamW, too, then tried on fresh seeds."
)
_CAPTIONS = {
    "forest plot": "A square is an arm’s median step, the line its 95% interval, an arrow what was not reached.",
    "Kaplan-Meier curves": "A tick is a run that was given up without having generalised. Bands: 95%.",
    "speed-ups": "A square is the quotient of medians, the line its 95% interval, an arrow what it is above or below.",
}


def page(record: Mapping[str, Any]) -> str:
    """The HTML page of what `comparison.kept.read` returns.

    What cannot be drawn is left out, with the reason at the end.
    """
    tasks: list[TaskResult] = record["tasks"]
    reasons: list[str] = []
    sections = [
        Section(f"task-{i}", task.name, " ".join(notes(task)[:2]), _figures(task, reasons))
        for i, task in enumerate(tasks)
    ]
    machine = record["machine"]
    said = [machine.get("gpu") or machine.get("device"), f"torch {machine.get('torch')}", machine.get("date")]
    lead = _LEAD.format(tasks=" and ".join(task.name for task in tasks)) + f" {', '.join(map(str, said))}."
    reasons += [f"{task.name}: {note.removeprefix('Left out: ')}" for task in tasks for note in left_out(task)]
    return render(record["comparison"], lead, record["command"], sections, notes=reasons)


def _figures(task: TaskResult, reasons: list[str]) -> list[Figure]:
    made = [_arms(task)]
    for title, draw in pictures(task).items():
        try:
            body = svg(draw(title=""))
        except ValueError as error:
            reasons.append(f"{title} of {task.name}: {one_line(error)}")
        else:
            own = _curves(task) if title == "Kaplan-Meier curves" else _rows(task)
            alt = f"{title} of {len(task.arms)} arms. {_medians(task)}"
            made.append(Figure(title[0].upper() + title[1:], body, alt, csv(own), _CAPTIONS[title]))
    return [*made, _spaces(task), *_points(task)]


def _rows(task: TaskResult) -> dict[str, list[Any]]:
    """The table of the arms, by column."""
    words = [one.words() for one in task.arms]
    return {name: [row[name] for row in words] for name in words[0]}


def _arms(task: TaskResult) -> Figure:
    rows = _rows(task)
    medians = [one.summary.runs.t_generalize.median for one in task.arms]
    told = rows | {
        "generalised": _by(rows["generalised"], [one.summary.runs.generalized for one in task.arms]),
        "median step": _by(rows["median step"], medians),
        "time": _by(rows["time"], [one.seconds for one in task.arms]),
    }
    return Figure(
        "Arms", table(told, sortable=True), f"A table of {len(task.arms)} arms. {_medians(task)}", csv(rows),
        " ".join(notes(task)[2:]),
    )  # fmt: skip


def _by(said: Sequence[str], by: Sequence[float]) -> list[Any]:
    """Words of a table that are sorted by numbers."""
    return [Told.of(word, own) if own == own else word for word, own in zip(said, by)]


def _curves(task: TaskResult) -> dict[str, list[Any]]:
    """A row for each step at which an arm's share rises."""
    found = [
        (name, step, share)
        for name, curve in incidence(task.table).items()
        for step, share in zip(whole(curve.steps.tolist()), curve.share.tolist())
    ]
    return dict(zip(("arm", "step", "share"), map(list, zip(*found))))


def _spaces(task: TaskResult) -> Figure:
    """What each arm is, and what was searched of it."""
    plain = task.arms[0].entry.untuned
    columns: dict[str, list[str]] = {"arm": [], "about": [], "differs from plain AdamW": [], "searched": []}
    for one in task.arms:
        entry = one.entry
        own = differences(plain, entry.untuned)
        space = entry.arm.space_of(entry.untuned)
        differs = "; ".join(f"{key} = {value}" for key, value in zip(own, written([*own.values()])))
        axes = "; ".join(f"{key} {axis}" for key, axis in space.items()) or "as published"
        for column, word in zip(columns.values(), (one.name, entry.arm.about, differs, axes)):
            column.append(word)
    said = "; ".join(f"{arm}: {axes}" for arm, axes in zip(columns["arm"], columns["searched"]))
    return Figure("Search space", table(columns), said, csv(columns), "log: evenly in the logarithm.")


def _points(task: TaskResult) -> list[Figure]:
    """Every point of every search."""
    found = [(one, i, cell) for one in task.arms for i, cell in enumerate(one.cells)]
    if not found:
        return []
    columns: dict[str, list[Any]] = {
        "arm": [one.name for one, _, _ in found],
        "point": [one.entry.words(i) for one, i, _ in found],
        "chosen": ["yes" if i == one.chosen else "" for one, i, _ in found],
    }
    words = [cell.words() for _, _, cell in found]
    columns |= {name: [row[name] for row in words] for name in words[0]}
    medians = [cell.t_generalize.median for _, _, cell in found]
    shown = columns | {"median step": _by(columns["median step"], medians)}
    keys = dict.fromkeys(key for one in task.arms for point in one.entry.points for key in point)
    values = {
        key: [value_of(one.entry.points[i][key]) if key in one.entry.points[i] else "" for one, i, _ in found]
        for key in keys
    }
    best = min(found, key=lambda own: own[2].t_generalize.median if own[2].n else float("inf"))
    return [
        Figure(
            "Every point of the search", table(shown, sortable=True),
            f"A table of {len(found)} points; the least median step is {best[2].t_generalize}, of {best[0].name}.",
            csv(columns | values), "The chosen one of each arm went to the finals. A click on a column sorts by it.",
        )
    ]  # fmt: skip


def _medians(task: TaskResult) -> str:
    """The arms by their median steps, the soonest first."""
    ordered = sorted(task.arms, key=lambda one: one.summary.runs.t_generalize.median)
    return "Median steps: " + "; ".join(f"{one.name} {one.summary.runs.t_generalize}" for one in ordered) + "."
