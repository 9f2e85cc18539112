"""Sweeps: many experiments as one, grouped, trained wherever there is room, stored, resumable."""

from grokfast.training.sweep.runner import Event, Group, Runner
from grokfast.training.sweep.worker import give_up, train_group

__all__ = ["Event", "Group", "Runner", "give_up", "train_group"]
