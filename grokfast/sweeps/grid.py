"""From an experiment and what is to vary, the cells of a sweep; each is built and checked before anything starts."""

from __future__ import annotations

import itertools
import math
import random as random_module
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np

from grokfast import checks, parts
from grokfast.seeds import MAX_SEED
from grokfast.store.sweeps import digest
from grokfast.training.experiment import FAMILIES, OPTIONAL, TUPLES, Experiment

MAX_CELLS = 1_000_000


@dataclass(frozen=True)
class Cell:
    """One run of a sweep: what it changes, by dotted key, and the experiment that comes out."""

    values: dict[str, Any]
    experiment: Experiment

    def __str__(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.values.items())


def expand(
    experiment: Experiment,
    grid: Mapping[str, Sequence[Any]],
    *,
    zip: bool = False,
    random: int | None = None,
    seeds: int | None = None,
) -> list[Cell]:
    """The cells of `grid`, which maps dotted keys of `experiment` to the values that they take.

    All combinations, the last key fastest; with `zip` the first values of all keys, the second, ...; with `random` that
    many of the combinations, drawn without repetition by the experiment's seed, in their order. `seeds` repeats each
    cell with that many seeds, from the experiment's on.

    Raises TypeError or ValueError naming the key, or the cell and what is wrong with it.
    """
    axes = axes_of(experiment, grid)
    checks.boolean("zip", zip)
    if random is not None:
        random = checks.integer("random", random, minimum=1)
        if zip:
            raise ValueError(
                "random draws from all combinations, zip takes none but the first with the first: not both"
            )
    if seeds is not None:
        seeds = checks.integer("seeds", seeds, minimum=1)
        if "seed" in axes:
            raise ValueError("seeds cannot be given where the grid has a key 'seed'")
        if experiment.seed + seeds - 1 > MAX_SEED:
            raise ValueError(f"seeds must end at {MAX_SEED} at most, got {seeds:,} from {experiment.seed} on")
    if not axes and seeds is None:
        raise ValueError("grid must have at least one key, got an empty one (or give seeds)")
    _check_size(axes, zip, random, seeds or 1)
    for key, values in axes.items():
        if not zip and (twice := _twice(values)) is not None:
            raise ValueError(f"grid[{key!r}] has the value {checks.shown(values[twice])} twice")
    picked = _zipped(axes) if zip else _product(axes, random, experiment.seed)
    repeats = [{}] if seeds is None else [{"seed": experiment.seed + i} for i in range(seeds)]
    return [_cell(experiment, {**values, **repeat}) for values in picked for repeat in repeats]


def _check_size(axes: Mapping[str, Sequence[Any]], zip: bool, random: int | None, repeats: int) -> None:
    """Count the runs, before any is made. Raises ValueError where there are too many."""
    lengths = {key: len(values) for key, values in axes.items()}
    if zip and len(set(lengths.values())) > 1:
        said = ", ".join(f"{key} has {n}" for key, n in lengths.items())
        raise ValueError(f"zip needs the same number of values for every key: {said}")
    total = max(lengths.values(), default=1) if zip else math.prod(lengths.values())
    if random is not None and not random <= total <= sys.maxsize:
        most = "" if random > total else ", which are too many to draw from"
        raise ValueError(f"random must be at most the {total:,} cells of the grid, got {random:,}{most}")
    n = repeats * (total if random is None else random)
    if n > MAX_CELLS:
        raise ValueError(f"a sweep has at most {MAX_CELLS:,} runs, this one {n:,}: fewer values, or random")


def axes_of(experiment: Experiment, grid: Any) -> dict[str, list[Any]]:
    """The grid with its values as Python's own, each axis checked by itself."""
    if not isinstance(grid, Mapping):
        raise TypeError(f"grid must map dotted keys to their values, got {type(grid).__name__}")
    axes: dict[str, list[Any]] = {}
    for key in sorted(grid, key=_depth):  # whole parts first: other axes may be of their fields
        axes[key] = _values(as_chosen(experiment, axes, key), key, grid[key])
    return {key: axes[key] for key in grid}


def _depth(key: Any) -> int:
    return key.count(".") if isinstance(key, str) else 0


def _values(experiment: Experiment, key: str, values: Any) -> list[Any]:
    """The values of one axis as Python's own, integers as floats where the experiment has a float."""
    if not isinstance(key, str):
        raise TypeError(f"grid must have dotted names as keys, got {checks.shown(key)}")
    check_key(experiment, key)
    if isinstance(values, (str, bytes, Mapping)) or not hasattr(values, "__len__") or not hasattr(values, "__iter__"):
        raise TypeError(f"grid[{key!r}] must be a sequence of values, got {checks.shown(values)}")
    try:
        check_count(key, len(values))
    except OverflowError:  # a range
        check_count(key, MAX_CELLS + 1)
    is_float = isinstance(experiment.flat().get(key), float)
    plain = [_plain(value, is_float) for value in values]
    if not plain:
        raise ValueError(f"grid[{key!r}] must have at least one value, got none")
    if key in FAMILIES:
        return [part_of(experiment, key, value) for value in plain]
    for value in plain:
        try:
            hash(value)
        except TypeError:  # no field takes such a value
            raise TypeError(f"grid[{key!r}] must have plain values, got {checks.shown(value)}") from None
    return plain


def check_count(key: str, n: int) -> None:
    """Raise ValueError where an axis alone has more values than a sweep has runs."""
    if n > MAX_CELLS:
        raise ValueError(f"a sweep has at most {MAX_CELLS:,} runs, grid[{key!r}] has more values")


def _plain(value: Any, is_float: bool = False) -> Any:
    """A number of any kind (NumPy's, a Fraction) as Python's own, a list as a tuple, what else there is as it is."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_plain, value))
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    if isinstance(value, Integral) and not is_float:
        return int(value)
    with suppress(OverflowError):  # the field's own check says that it is too large
        return float(value)
    return value


def part_of(experiment: Experiment, key: str, said: Any) -> Any:
    """A value of an axis of whole parts."""
    argument = f"grid[{key!r}]"
    if key in TUPLES:
        return parts.several(FAMILIES[key], said, getattr(experiment, key), argument)
    part = parts.chosen(FAMILIES[key], said, getattr(experiment, key), argument)
    if part is None and key not in OPTIONAL:
        raise TypeError(f"{argument} must be of {FAMILIES[key]}, got {checks.shown(said)}")
    return part


def as_chosen(experiment: Experiment, axes: Mapping[str, Sequence[Any]], key: str) -> Experiment:
    """The experiment that `key` is to be read by: with the first of an axis of parts that has such a field."""
    name, dot, _ = str(key).partition(".")
    there = [part for part in axes.get(name, ()) if part is not None]
    if not (dot and there):
        return experiment
    has_it = (part for part in there if name in TUPLES or key in dict(parts.leaves(name, part)))
    part = next(has_it, there[0])
    return experiment.override({name: part})


def check_key(experiment: Experiment, key: str) -> None:
    """Raise ValueError, with the nearest name, unless the experiment has a field with this dotted name."""
    if key not in experiment.flat():
        raise ValueError(f"grid has an unknown key {checks.shown(key)}{experiment.hint(key)}")
    part, _, field = key.partition(".")
    own = getattr(experiment, part)
    if isinstance(own, parts.Part) and field in own.consumed:
        raise ValueError(f"grid has the key {key!r}: vary whole parts, {part}={parts.name_of(own)}({field}=...)")


def _zipped(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    rows = [*zip(*axes.values())]
    if (twice := _twice(rows)) is not None:
        raise ValueError(f"zip meets {', '.join(map(repr, rows[twice]))} twice")
    return [dict(zip(axes, row)) for row in rows] or [{}]


def _twice(values: Sequence[Any]) -> int | None:
    """Where a value stands that was there before."""
    seen: set[Any] = set()
    for i, value in enumerate(values):
        if value in seen:
            return i
        seen.add(value)
    return None


def _product(axes: Mapping[str, Sequence[Any]], n: int | None, seed: int) -> list[dict[str, Any]]:
    if n is None:
        return [dict(zip(axes, row)) for row in itertools.product(*axes.values())]
    total = math.prod(len(values) for values in axes.values())
    chosen = sorted(random_module.Random(seed).sample(range(total), n))
    return [{key: axes[key][i] for key, i in zip(axes, _place(axes, number))} for number in chosen]


def _place(axes: Mapping[str, Sequence[Any]], number: int) -> list[int]:
    """Where in each axis the cell `number` of the product stands."""
    place = []
    for values in reversed([*axes.values()]):
        number, i = divmod(number, len(values))
        place.append(i)
    return place[::-1]


def _cell(experiment: Experiment, values: dict[str, Any]) -> Cell:
    try:
        return Cell(values, experiment.override(values))
    except (ValueError, TypeError) as error:
        said = ", ".join(f"{key}={checks.shown(value)}" for key, value in values.items())
        raise type(error)(f"the grid's cell {said}: {error}") from error


def run_hash(experiment: Experiment, version: str, device: str) -> str:
    """Of all that determines the run's result: configuration, versions, kind of device, implementation."""
    from grokfast import backend

    config = {name: value for name, value in identity(experiment).items() if name != "device"}
    extension = backend.current() != "reference" and backend.extension() is not None
    return digest([config, version, device, backend.current(), extension])


def identity(experiment: Experiment) -> dict[str, Any]:
    """A run's configuration as it is hashed: as grokfast 0.1 had it, so that what an older version stored is known."""
    config: dict[str, Any] = parts.identity(experiment)
    for name in ("task", "model", "filter"):
        if config[name] is not None:
            kind, own = config[name]["kind"], type(getattr(experiment, name)).__name__
            config[name] = {**config[name], "kind": kind if ":" in kind else own}
    for name in ("schedule", "criteria"):
        config[name] = {"kind": name.capitalize(), **config[name]}
    if experiment.loss.op is not None:
        config["loss"] = experiment.loss.op
    optimizer, rule = config["optimizer"], config["optimizer"]["kind"]
    if ":" not in rule:
        usual = {"betas": [0.9, 0.999], "eps": 1e-8, "momentum": 0.0, "nesterov": False}
        config["optimizer"] = {**usual, **optimizer, "kind": "OptimizerConfig", "name": rule}
    return config
