"""What changes do to the batches of runs that train together: which rows are shown, and how."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from grokfast.schedules.base import Change
from grokfast.tasks.data import Data

Shown = Callable[[int, int], Tensor]  # from a step up to another -> bool [steps, N]


def shown(changes: Sequence[Change], data: Data) -> Shown | None:
    """Which rows of a training set may be shown; None: all, always."""
    chosen = [one for one in changes if type(one).rows is not Change.rows]

    def rows(begin: int, end: int) -> Tensor:
        found = torch.ones(end - begin, len(data.train.targets), dtype=torch.bool)
        for one in chosen:
            own = one.rows(begin, end, data)
            if own is not None and (own.dtype is not torch.bool or own.shape != found.shape):
                raise ValueError(
                    f"{type(one).__name__}.rows must be bool {list(found.shape)}, got {own.dtype} {list(own.shape)}"
                )
            found = found if own is None else found & own
        return found

    return rows if chosen else None


def is_augmented(changes: Sequence[Change]) -> bool:
    """Whether rows are shown in another way than they stand in the training set."""
    return any(type(one).augment is not Change.augment for one in changes)


def follows(changes: Sequence[Change]) -> list[Change]:
    """Those that follow the evaluations."""
    return [one for one in changes if type(one).following is not Change.following]


def has_batches(changes: Sequence[Change]) -> bool:
    """Whether rows are named at every step, even where all of them are shown."""
    return is_augmented(changes) or any(type(one).rows is not Change.rows for one in changes)


def augmented(
    changes: Sequence[Change], inputs: Tensor, targets: Tensor, step: Tensor, seeds: Tensor
) -> tuple[Tensor, Tensor]:
    """A batch [E, B, ...] as it is shown at `step` to runs of these `seeds`, int64 [E] both."""
    for one in changes:
        shapes = inputs.shape, targets.shape
        inputs, targets = one.augment(inputs, targets, step, seeds)
        if (inputs.shape, targets.shape) != shapes:
            raise ValueError(
                f"{type(one).__name__}.augment must keep shapes {[list(s) for s in shapes]}, it made "
                f"{[list(inputs.shape), list(targets.shape)]}"
            )
    return inputs, targets
