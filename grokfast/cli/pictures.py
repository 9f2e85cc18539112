"""The pictures of runs and sweeps, which are drawn when the result is stored and said: one that fails costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from grokfast.cli.common import Screen, why
from grokfast.store.records import records_of
from grokfast.store.run import DONE

if TYPE_CHECKING:
    from grokfast.sweeps import SweepResult
    from grokfast.training import Experiment

COLORS = 7  # groups in one picture


def attempt(draw: Callable[[], Mapping[str, Path]], screen: Screen) -> dict[str, Path]:
    """Draw, and say where the pictures are, by their titles, or why there are none, whatever it is that fails."""
    try:
        pictures = dict(draw())
    except Exception as error:
        screen.say(f"no picture: {why(error)}")
        return {}
    for what, path in pictures.items():
        screen.say(f"{what}: {path}")
    return pictures


def draw_all(
    experiment: Experiment, curves: Mapping[str, np.ndarray], directory: Path, screen: Screen, *, has_ended: bool
) -> bool:
    """Attempt all pictures of a run; whether each is there."""
    pictures = (
        partial(draw_data, experiment, directory),
        partial(draw_run, experiment, curves, directory, has_ended=has_ended),
    )
    drawn = [attempt(picture, screen) for picture in pictures]  # each, whatever becomes of the others
    return all(drawn)


def draw_data(experiment: Experiment, directory: Path) -> dict[str, Path]:
    """Draw what a run is shown and asked into its directory, unless it is there: it stays the same."""
    from grokfast import parts
    from grokfast.plots import plot_data

    path, task, seed = directory / "data.png", experiment.task, experiment.seed
    if not path.exists():
        plot_data(task.build(seed=seed), path, title=parts.shown(task), labels=task.labels(seed=seed))
    return {"data": path}


def draw_run(
    experiment: Experiment, curves: Mapping[str, np.ndarray], directory: Path, *, has_ended: bool
) -> dict[str, Path]:
    """Draw the curves of a run, as far as they go, into its directory, which has its id as name."""
    from grokfast.plots import plot_curves
    from grokfast.training.outcome import Outcome

    outcome = Outcome(experiment.criteria)
    for record in records_of(curves):
        outcome.update(record)
    path = plot_curves(
        curves,
        directory / "curves.png",
        title=f"{directory.name}: {outcome.phase if has_ended else outcome.stage}",
        t_memorize=outcome.t_memorize,
        t_generalize=outcome.t_generalize,
        threshold=experiment.criteria.threshold,
        memorize=experiment.criteria.memorize,
        generalize=experiment.criteria.generalize,
    )
    return {"curves": path}


def draw(result: SweepResult, table: dict[str, np.ndarray], axes: Sequence[str]) -> dict[str, Path]:
    """Draw into the sweep's directory: a phase diagram where two or three columns vary, the time to generalise against
    a positive number, the curves of at most seven cells. `axes` are columns of `table`. Returns the paths by title."""
    from grokfast.analysis import curves_by
    from grokfast.plots import plot_bands, plot_phase_diagram, plot_scaling

    if not np.isin(table["status"], DONE).any():
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
