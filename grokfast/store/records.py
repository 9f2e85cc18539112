"""What one evaluation of one run leaves behind."""

from __future__ import annotations

from typing import NamedTuple


class Record(NamedTuple):
    """One evaluation: the step it was made after, losses and accuracies on both splits, and ‖weights‖₂."""

    step: int
    train_loss: float
    test_loss: float
    train_accuracy: float
    test_accuracy: float
    weight_norm: float
