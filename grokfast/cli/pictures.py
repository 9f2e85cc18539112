"""The pictures of runs and sweeps, which are drawn when the result is stored and said: one that fails costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from grokfast.cli.common import Screen, why
from grokfast.store.records import records_of

if TYPE_CHECKING:
    from grokfast.sweeps import SweepResult
    from grokfast.training import Experiment


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
    """Draw the curves of a run, as far as they go, and its progress measures, if a probe has them, into its directory,
    which has its id as name."""
    from grokfast.plots import plot_curves, plot_progress
    from grokfast.training.outcome import Outcome

    outcome = Outcome(experiment.criteria)
    for record in records_of(curves):
        outcome.update(record)
    title = f"{directory.name}: {outcome.phase if has_ended else outcome.stage}"
    moments = {"t_memorize": outcome.t_memorize, "t_generalize": outcome.t_generalize}
    path = plot_curves(
        curves,
        directory / "curves.png",
        title=title,
        **moments,
        threshold=experiment.criteria.threshold,
        memorize=experiment.criteria.memorize,
        generalize=experiment.criteria.generalize,
    )
    if "restricted_loss" not in curves:
        return {"curves": path}
    return {"curves": path, "progress": plot_progress(curves, directory / "progress.png", title=title, **moments)}


def draw(result: SweepResult, table: dict[str, np.ndarray]) -> dict[str, Path]:
    """Draw all that `plots.results` has of a sweep into its directory. Returns the paths by title."""
    from grokfast.plots.results import sweep_pictures

    found = sweep_pictures(result, table)
    if found:
        result.directory.mkdir(exist_ok=True)
    return {title: picture(result.directory / f"{title.replace(' ', '_')}.png") for title, picture in found.items()}
