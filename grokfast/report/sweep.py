"""The page of a sweep, or of an ablation: what was varied, what happened where, and every run."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

from grokfast.report import cells, tables
from grokfast.report.again import repeated_ablation, repeated_sweep
from grokfast.report.page import Figure, Section, render
from grokfast.report.swept import Swept, gather
from grokfast.store import RunStore
from grokfast.sweeps import AblationResult
from grokfast.text import one_line

_Parts = dict[str, Callable[[], Figure | None]]
RUNS = 200  # that are in the page
REPORT = "report.html"  # of a run, in its directory


def page(store: RunStore, sweep_id: str) -> str:
    """The HTML page of a stored sweep, as far as it has come: the phase diagram or, of an ablation, the forest plot,
    Kaplan-Meier curves, the tables, and its first RUNS runs, each with its sentence, curves and last values; those that
    have a page of their own are linked to it.

    What cannot be drawn is left out, with the reason at the end. Raises UnknownRunError, which names the nearest, where
    there is no such sweep.
    """
    swept = gather(store, sweep_id)
    notes: list[str] = []
    happened = [
        Section("cells", "What happened where", tables.COUNTED, _made(_pictures(swept), notes)),
        Section("times", "How soon", cells.KAPLAN_MEIER, _made(_times(swept), notes)),
    ]
    n = len(swept.table["run_id"])
    runs = swept.runs(range(min(n, RUNS)))
    each = [run.figure(_address(swept, run.stored.run_id)) for run in runs]
    if n > RUNS:
        notes.append(f"{n - RUNS:,} of {n:,} runs: the table has them, grokfast report RUN makes the page of one")
    every = [
        Section("varied", "What was varied", "", [tables.varied(swept)]),
        *(section for section in happened if section.figures),
        Section("table", "All runs", "A click on a column sorts by it, one on a run goes to it.", [
            tables.runs(swept, {run.stored.run_id: run.anchor for run in runs})
        ]),
        Section("runs", "Run by run", "Each opens: curves of accuracy, and what was measured at the end.", each),
    ]  # fmt: skip
    return render(sweep_id, tables.lead(swept), _command(swept), every, notes=notes)


def _pictures(swept: Swept) -> _Parts:
    if not swept.has_ended:
        return {}
    if isinstance(swept.result, AblationResult):
        return {"forest plot": partial(cells.forest, swept), "arms": partial(tables.arms, swept)}
    found: _Parts = {"table of cells": partial(tables.of_cells, swept)}
    if len(swept.wide) in (2, 3):
        found = {"phase diagram": partial(cells.phase_diagram, swept)} | found
    return found


def _times(swept: Swept) -> _Parts:
    if not swept.has_ended:
        return {}
    if isinstance(swept.result, AblationResult):
        return {"Kaplan-Meier curves": partial(cells.survival, swept)}
    found: _Parts = {f"Kaplan-Meier curves by {key}": partial(cells.shares, swept, key) for key in swept.wide}
    if not found:
        found = {"Kaplan-Meier curve": partial(cells.shares, swept, None)}
    return found | {"scaling": partial(cells.scaling, swept), "accuracy": partial(cells.bands, swept)}


def _made(parts: _Parts, notes: list[str]) -> list[Figure]:
    """Those that there are; of those that fail the reasons go to the notes."""
    made = []
    for name, part in parts.items():
        try:
            figure = part()
        except (ValueError, TypeError) as error:
            notes.append(f"{name}: {one_line(error)}")
        else:
            made += [figure] if figure is not None else []
    return made


def _address(swept: Swept, run_id: str) -> str:
    """Of the run's own page, from the sweep's directory, if there is one."""
    page = swept.store.directory(run_id) / REPORT
    return os.path.relpath(page, swept.result.directory) if page.exists() else ""


def _command(swept: Swept) -> str:
    if isinstance(swept.result, AblationResult):
        return repeated_ablation(swept.stored, swept.result.ablation)
    return repeated_sweep(swept.stored, swept.experiment)
