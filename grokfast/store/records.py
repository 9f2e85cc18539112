"""What one evaluation of one run leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np


class Record(NamedTuple):
    """One evaluation: the step it was made after, losses and accuracies on both splits, and ‖weights‖₂."""

    step: int
    train_loss: float
    test_loss: float
    train_accuracy: float
    test_accuracy: float
    weight_norm: float


def records_of(curves: Mapping[str, np.ndarray]) -> list[Record]:
    """Columns by the names of Record's fields as records."""
    return [Record(*row) for row in zip(*(curves[name].tolist() for name in Record._fields))]


def now() -> str:
    """The time in UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
