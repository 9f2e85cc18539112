"""What one evaluation of one run leaves behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from grokfast import checks

# What every run of a task with the splits train and test has: the columns of all runs of older stores.
STANDARD = ("train_loss", "test_loss", "train_accuracy", "test_accuracy", "weight_norm")


@dataclass(frozen=True, slots=True)
class Record:
    """One evaluation: the step it was made after, and what was measured, by column.

    The columns of a run are the same, in the same order, in all its records: losses and accuracies of every split,
    ‖weights‖₂ ("weight_norm"), then accuracies by answer position, and what probes measure.
    """

    step: int
    values: Mapping[str, float]

    def __getitem__(self, column: str) -> float:
        """A value. KeyError names the nearest column."""
        try:
            return self.values[column]
        except KeyError:
            raise KeyError(f"there is no column {column!r}{checks.nearest(column, [*self.values])}") from None


def records_of(curves: Mapping[str, np.ndarray]) -> list[Record]:
    """Columns, `step` first, as records."""
    names = [name for name in curves if name != "step"]
    rows = zip(curves["step"].tolist(), *(curves[name].tolist() for name in names))
    return [Record(step, dict(zip(names, values))) for step, *values in rows]


def columns(records: Sequence[Record]) -> dict[str, np.ndarray]:
    """Records of one run as arrays: step int64, the others float64."""
    names = records[0].values if records else {}
    curves = {name: np.array([record.values[name] for record in records], dtype=np.float64) for name in names}
    return {"step": np.array([record.step for record in records], dtype=np.int64), **curves}


def now() -> str:
    """The time in UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
