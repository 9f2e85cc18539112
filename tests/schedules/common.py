"""Experiments with changes."""

import copy


def changed(experiment, changes, **fields):
    """The experiment with these `schedule.changes`, and other fields."""
    schedule = copy.copy(experiment.schedule)
    object.__setattr__(schedule, "changes", tuple(changes))
    experiment = copy.copy(experiment)
    for name, value in {"schedule": schedule, **fields}.items():
        object.__setattr__(experiment, name, value)
    return experiment
