"""The curves of a sweep by cell: what `plots.plot_bands` takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from grokfast.analysis.table import ENDED, cells, columns


def curves_by(
    table: Any, curves: Mapping[str, np.ndarray], by: Sequence[str]
) -> dict[str, list[dict[str, np.ndarray]]]:
    """The curves of each cell that the columns `by` of `table` span, by its values in words ("weight_decay 0.3").

    `curves` is long-form, as `RunStore.all_curves` gives it: `run`, the row in the table, and a column for each field
    of a record. Runs that failed or have not ended, or have no record, are left out, cells without a run, too.

    Raises ValueError for a column that is not there, with the nearest name, for an empty table, or for rows in
    `curves` that the table does not have; TypeError if `by` is a string.
    """
    if isinstance(by, str):
        raise TypeError(f"by must be a sequence of column names, got the string {by!r}")
    found = columns(table, (*by, "status"))
    runs, n = np.asarray(curves["run"]), len(found["status"])
    if len(runs) and (runs.min() < 0 or runs.max() >= n):
        raise ValueError(f"curves must be of the {n} runs of the table, got rows {runs.min()} to {runs.max()}")
    order = np.argsort(runs, kind="stable")
    ends = np.searchsorted(runs[order], np.arange(n + 1))
    fields = {name: np.asarray(column)[order] for name, column in curves.items() if name != "run"}
    grouped: dict[str, list[dict[str, np.ndarray]]] = {}
    for cell, rows in (cells([found[name] for name in by]) if by else {(): np.arange(n)}).items():
        parts = [{name: column[ends[i] : ends[i + 1]] for name, column in fields.items()} for i in rows]
        if parts := [part for part, i in zip(parts, rows) if ends[i] < ends[i + 1] and found["status"][i] in ENDED]:
            words = (f"{name.rpartition('.')[2]} {'none' if v is None else v}" for name, v in zip(by, cell))
            grouped[", ".join(words) or "all runs"] = parts
    return grouped
