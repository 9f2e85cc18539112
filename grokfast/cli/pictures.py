"""The pictures of a sweep that fit what was varied."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from grokfast.training.sweep import SweepResult

ENDED = ("finished", "diverged")
COLORS = 7  # groups in one picture


def draw(result: SweepResult, table: dict[str, np.ndarray], axes: Sequence[str]) -> dict[str, Path]:
    """Draw into the sweep's directory: a phase diagram where two or three columns vary, the time to generalise against
    a positive number, the curves of at most seven cells. `axes` are columns of `table`. Returns the paths by title."""
    from grokfast.analysis import curves_by
    from grokfast.plots import plot_bands, plot_phase_diagram, plot_scaling

    if not np.isin(table["status"], ENDED).any():
        return {}
    wide = [key for key in axes if len(np.unique(table[key])) > 1]
    directory = result.directory
    directory.mkdir(exist_ok=True)
    drawn: dict[str, Path] = {}
    if len(wide) in (2, 3):
        y, x, by = wide[0], wide[1], wide[2] if len(wide) == 3 else None
        path = directory / "phase_diagram.png"
        drawn["phase diagram"] = plot_phase_diagram(table, path, x=x, y=y, by=by, title=result.sweep_id)
    numbers = [key for key in wide if _is_positive(table[key])]
    if numbers and len(wide) <= 2:
        x, others = numbers[-1], [key for key in wide if key != numbers[-1]]
        if not others or len(np.unique(table[others[0]])) <= COLORS:
            by = others[0] if others else None
            drawn["scaling"] = plot_scaling(table, directory / "scaling.png", x=x, by=by, title=result.sweep_id)
    if len(set(zip(*(table[key].tolist() for key in wide)))) <= COLORS:
        groups = curves_by(table, result.curves(), wide)
        drawn["curves"] = plot_bands(groups, directory / "curves.png", title=result.sweep_id)
    return drawn


def _is_positive(column: np.ndarray) -> bool:
    return column.dtype.kind in "if" and bool((column > 0).all())
