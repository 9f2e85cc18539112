"""What the run store raises, and what it warns of. Catching `StoreError` catches all that is raised."""

from __future__ import annotations


class StoreError(Exception):
    """The store cannot do what was asked; nothing was changed."""


class UnknownRunError(StoreError, KeyError):
    """No run has this id; the message names the nearest one."""

    __str__ = Exception.__str__  # KeyError would print the message in quotes


class StoreFullError(StoreError):
    """The disk or the quota is full. The call left nothing behind, and what was stored before remains readable."""


class DamagedError(StoreError):
    """What the store has of a run or a sweep is not what was written; the message names it."""


class CheckpointError(StoreError):
    """A file of tensors is missing, cut short, or differs from what was written."""


class DamagedWarning(UserWarning):
    """A run or a sweep that was left out among many, because it is damaged; the message names it."""
