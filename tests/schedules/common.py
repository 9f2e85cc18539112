"""Experiments with changes."""


def changed(experiment, changes, **fields):
    """The experiment with these `schedule.changes`, and other fields."""
    return experiment.override({"schedule.changes": tuple(changes), **fields})
