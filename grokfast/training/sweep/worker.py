"""What a worker does with a group of runs: take up each where the store left it, and train it to its end."""

from __future__ import annotations

from pathlib import Path

from grokfast.training.sweep.runner import Group, Report


def train_group(group: Group, root: Path, report: Report) -> None:
    """Train the group's runs to their ends, from their checkpoints where there are; ended ones are left alone.

    An exception of the training (out of memory, a bad device) marks the runs failed, is reported, and is not raised.
    Raises StoreError where the store fails, Interrupted (a KeyboardInterrupt) on SIGTERM or Ctrl-C: then all is saved.
    """
    raise NotImplementedError


def give_up(group: Group, root: Path, why: str, report: Report) -> None:
    """Mark the runs of the group that have not ended as failed, and report them."""
    raise NotImplementedError
