"""Runs as columns: what pandas, polars and the statistics of grok times take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from grokfast.store.records import STANDARD
from grokfast.store.run import config_of, result_of
from grokfast.store.seals import Row
from grokfast.store.words import written

TIMES = ("t_memorize", "t_generalize", "diverged_at")
ALWAYS = ("seed",)  # a column, also where it does not differ


class TableRow:
    """One run: `steps` is that of its last stored evaluation, or -1. Raises DamagedError where it holds no JSON."""

    def __init__(self, row: Row) -> None:
        self.run_id, self.status, self.preset = row.run_id, row.status, row.preset
        self.steps = -1 if row.last_step is None else row.last_step
        self.config, self.result = flat(config_of(row)), result_of(row) or {}


def columns_of(
    rows: Sequence[TableRow], keys: Iterable[str] = (), base: Mapping[str, Any] | None = None
) -> dict[str, np.ndarray]:
    """Columns of one length, by name: see `RunStore.table`. `keys` of the configuration are there in any case.

    `base` is the configuration that was varied.
    """
    table = {name: _text([getattr(row, name) for row in rows]) for name in ("run_id", "status", "preset")}
    wanted = [*keys, *ALWAYS]
    configs = _with_parts([row.config for row in rows], wanted, base or {})
    for key in _varying(configs, wanted):
        table[key] = _column([config.get(key) for config in configs])
    results = [row.result for row in rows]
    table["phase"] = _text([result.get("phase", "") for result in results])
    for name in TIMES:
        table[name] = _number([result.get(name) for result in results])
    table["steps"] = np.array([row.result.get("steps", max(row.steps, 0)) for row in rows], dtype=np.int64)
    table["seconds"] = _number([result.get("seconds") for result in results])
    table["collapsed"] = np.array([bool(result.get("collapsed")) for result in results], dtype=np.bool_)
    finals = [result.get("final") or {} for result in results]
    for name in dict.fromkeys([*STANDARD, *(name for final in finals for name in final if name != "step")]):
        table[name if name not in table else f"final.{name}"] = _number([final.get(name) for final in finals])
    return table


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, by dotted keys."""
    leaves: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            leaves.update(flat(value, f"{prefix}{name}."))
        else:
            leaves[prefix + name] = value
    return leaves


def _with_parts(configs: list[dict[str, Any]], wanted: Sequence[str], base: Mapping[str, Any]) -> list[dict[str, Any]]:
    """With a wanted part, such as the filter, in words, but for those of its fields that are wanted themselves."""
    for key in wanted:
        if not any(f"{key}.kind" in config for config in configs):
            continue
        prefix = f"{key}."
        parts = [
            {name.removeprefix(prefix): value for name, value in config.items() if name.startswith(prefix)} or None
            for config in configs
        ]
        without = {name.removeprefix(prefix) for name in wanted if name.startswith(prefix)}
        words = written(parts, base.get(key), without)
        configs = [{**config, key: own} for config, own in zip(configs, words)]
    return configs


def _varying(configs: Sequence[dict[str, Any]], wanted: Sequence[str]) -> list[str]:
    """The wanted keys that there are, and those whose values are not all the same (an absent key is None)."""
    names = list(dict.fromkeys(name for config in configs for name in config))
    first = {name: configs[0].get(name) for name in names} if configs else {}
    differ = {name for config in configs for name, value in first.items() if config.get(name) != value}
    return [*(name for name in dict.fromkeys(wanted) if name in names), *(n for n in names if n in differ - {*wanted})]


def _column(values: Sequence[Any]) -> np.ndarray:
    kinds = {type(value) for value in values}
    if kinds == {bool}:
        return np.array(values, dtype=np.bool_)
    with suppress(OverflowError):  # an older version took any integer: those stay in words
        if kinds == {int}:
            return np.array(values, dtype=np.int64)
        if kinds <= {int, float, type(None)} and kinds != {type(None)}:
            return _number(values)
    return _text(["" if value is None else word for value, word in zip(values, written(values))])


def _number(values: Sequence[Any]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _text(values: Sequence[str]) -> np.ndarray:
    return np.array(values, dtype=np.str_)
