"""Reading a table of runs: a mapping from column names to equally long columns, or a data frame; a row is a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from grokfast import checks

ENDED = ("finished", "diverged")  # the statuses of runs whose outcome is known


def names(table: Any) -> list[str]:
    """The columns' names. Raises TypeError if `table` is neither a mapping nor a data frame."""
    found = getattr(table, "columns", None)
    if found is None and hasattr(table, "keys"):
        found = table.keys()
    if found is None or not hasattr(table, "__getitem__"):
        raise TypeError(f"table must be a mapping of columns or a data frame, got {type(table).__name__}")
    return [str(name) for name in found]


def column(table: Any, name: str, argument: str = "table") -> list[Any]:
    """A column as Python values: lists as tuples, NaN as None. ValueError with the nearest name if there is none."""
    available = names(table)
    if name not in available:
        where = "table must have" if argument == "table" else f"{argument} must be a column of the table, not"
        raise ValueError(f"{where} {name!r}{checks.nearest(name, available)}; it has {', '.join(available) or 'none'}")
    return [_plain(value) for value in table[name]]


def columns(table: Any, wanted: Iterable[str]) -> dict[str, list[Any]]:
    """Several columns. Raises ValueError if one is missing, if the lengths differ or if there is no row."""
    found = {name: column(table, name) for name in wanted}
    lengths = {name: len(values) for name, values in found.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"table must have columns of one length, got {lengths}")
    if not all(lengths.values()):
        raise ValueError("table must have at least one run, got none")
    return found


def step_column(name: str, values: Sequence[Any]) -> np.ndarray:
    """A column of steps in float64, None as NaN. Raises ValueError for what is negative or no number."""
    try:
        steps = np.array([math.nan if value is None else float(value) for value in values])
    except (TypeError, ValueError) as error:
        raise ValueError(f"column {name!r} must hold numbers: {error}") from None
    if (steps < 0).any():
        raise ValueError(f"column {name!r} must hold steps of at least 0, got {np.nanmin(steps):g}")
    return steps


def order(values: Iterable[Any]) -> list[Any]:
    """The different values: numbers by size, then the rest by name, None last."""
    return sorted(set(values), key=_rank)


def cells(keys: Sequence[Sequence[Any]]) -> dict[tuple[Any, ...], np.ndarray]:
    """Row numbers by the combination of values in the columns `keys`, in the order of `order` for each."""
    rows: dict[tuple[Any, ...], list[int]] = {}
    for i, cell in enumerate(zip(*keys)):
        rows.setdefault(cell, []).append(i)
    return {cell: np.array(rows[cell]) for cell in sorted(rows, key=lambda cell: [_rank(value) for value in cell])}


def _rank(value: Any) -> tuple[int, float, str]:
    if value is None:
        return (2, 0.0, "")
    if isinstance(value, (int, float)):
        return (0, float(value), "")
    return (1, 0.0, str(value))


def _plain(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, list):
        return tuple(_plain(item) for item in value)
    # NaN and data frames' signs of a missing value do not equal themselves
    return value if value is not None and (value == value) is True else None
