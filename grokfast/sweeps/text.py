"""Axes of a grid as they are written on a command line: `optimizer.weight_decay=0.1,0.3,1`, `seed=0:7:8`."""

from __future__ import annotations

import ast
import re
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from grokfast import checks, parts
from grokfast.sweeps.grid import as_chosen, axes_of, check_count, check_key
from grokfast.training.experiment import FAMILIES, Experiment

_RANGE = re.compile(r"([^:]+):([^:]+):(\d+)(log)?")
_NOT_READ = (ValueError, SyntaxError, TypeError, OverflowError, MemoryError, RecursionError)  # literal_eval's, mostly
_BOOLEANS = {"true": True, "false": False}


def parse_axes(
    experiment: Experiment, texts: Sequence[str], others: Mapping[str, Sequence[Any]] | None = None
) -> dict[str, list[Any]]:
    """The axes of several texts, each KEY=V1,V2,...: a key of the experiment and values of its type.

    A value of numbers may be a range, FIRST:LAST:N, N of them evenly spaced, or FIRST:LAST:Nlog, evenly in the
    logarithm. A pair is written in parentheses, what is absent as "none". With an axis of whole parts, such as
    filter=none,ema,ma(window_size=50), here or among `others`, the fields of these are keys, too.
    Raises ValueError naming what is wrong.
    """
    split = [_split(text) for text in texts]
    keys = [key for key, _ in split]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"the grid has the key {key!r} twice")
    axes = axes_of(experiment, {key: values for key, values in (others or {}).items() if key in FAMILIES})
    for key, values in sorted(split, key=lambda axis: axis[0].count(".")):  # others may be about a part's fields
        axes[key] = _parse_values(as_chosen(experiment, axes, key), key, values)
    return {key: axes[key] for key in keys}


def parse_changes(experiment: Experiment, texts: Sequence[str]) -> dict[str, Any]:
    """What several texts KEY=VALUE set, values written as in `parse_axes`. Raises ValueError naming what is wrong."""
    changes: dict[str, Any] = {}
    for text in sorted(texts, key=lambda text: text.partition("=")[0].count(".")):
        key, value = _split(text, "a change is written KEY=VALUE")
        if key in changes:
            raise ValueError(f"the changes have the key {key!r} twice")
        current = experiment.override({own: one for own, one in changes.items() if own in FAMILIES})
        if key not in current.flat():
            raise ValueError(f"unknown option {checks.shown(key)}{current.hint(key)}")
        changes[key] = value.strip() if key in FAMILIES else _parse(key, value.strip(), None, _kinds(current, key))[0]
    return changes


def _split(text: str, form: str = "a grid is written KEY=V1,V2,...") -> tuple[str, str]:
    key, equals, values = text.partition("=")
    if not equals or not values.strip():
        raise ValueError(f"{form}, got {checks.shown(text)}")
    return key.strip().replace("-", "_"), values


def _parse_values(experiment: Experiment, key: str, values: str) -> list[Any]:
    written = [one.strip() for one in parts.apart(values, ",")]
    if key in FAMILIES:
        return axes_of(experiment, {key: written})[key]
    check_key(experiment, key)
    kinds = _kinds(experiment, key)
    axis: list[Any] = []
    for part in written:
        span = _RANGE.fullmatch(part)
        check_count(key, len(axis) + (_number_of(key, span) if span else 1))
        axis += _parse(f"grid[{key!r}]", part, span, kinds)
    return axis


def _number_of(key: str, span: re.Match[str]) -> int:
    """The values that a range is to have."""
    digits = span[3].lstrip("0") or "0"
    return int(digits) if len(digits) < 20 else sys.maxsize


def _kinds(experiment: Experiment, key: str) -> list[Any]:
    """The types that a value may have, of a union each."""
    *path, name = key.split(".")
    node: Any = experiment
    for part in path:
        node = _within(node, part)
    hint = get_type_hints(type(node))[name]
    return list(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else [hint]


def _within(node: Any, name: str) -> Any:
    """A field's value; of several parts the one of that name."""
    if isinstance(node, parts.Part) and node.inline:
        node = getattr(node, node.inline)
    return parts.named(node)[name] if isinstance(node, tuple) else getattr(node, name)


def _parse(argument: str, text: str, span: re.Match[str] | None, kinds: list[Any]) -> list[Any]:
    if text.lower() == "none" and type(None) in kinds:
        return [None]
    if bool in kinds and text.lower() in _BOOLEANS:
        return [_BOOLEANS[text.lower()]]
    for kind in kinds:
        if kind is str or get_origin(kind) is Literal:
            return [text]
        try:
            if kind in (int, float):
                return _RANGES[kind](*span.groups()) if span else [kind(text)]
            if get_origin(kind) is tuple:
                return [ast.literal_eval(text)]
        except _NOT_READ as error:
            if span:
                raise ValueError(f"{argument} cannot take the range {checks.shown(text)}: {error}") from error
            raise ValueError(f"{argument} must have values of {_name(kinds)}, got {checks.shown(text)}") from error
    raise ValueError(f"{argument} must have values of {_name(kinds)}, got {checks.shown(text)}")


def _floats(first: str, last: str, n: str, logarithmic: str | None) -> list[float]:
    """In decimals as they are written: 0.3:0.5:3 is 0.3, 0.4, 0.5."""
    space = np.geomspace if logarithmic else np.linspace
    with np.errstate(all="ignore"):  # what is no number the experiment refuses
        return [float(f"{number:.12g}") for number in space(float(first), float(last), int(n))]


def _integers(first: str, last: str, n: str, logarithmic: str | None) -> list[int]:
    """Exactly, however large. Raises ValueError where they are none."""
    begin, end, steps = _integer(first), _integer(last), int(n) - 1
    if steps < 1:
        return [begin][: int(n)]
    if not logarithmic:
        step, rest = divmod(end - begin, steps)
        if rest:
            raise ValueError("a range of integers must meet integers")
        return [begin + i * step for i in range(steps + 1)]
    low, high = sorted((begin, end))
    if low < 1:
        raise ValueError("a logarithmic range of integers must begin and end above 0")
    ratio = Fraction(round(low * (high / low) ** (1 / steps)), low)
    numbers = [Fraction(low)]
    while len(numbers) <= steps and numbers[-1].denominator == 1 and numbers[-1] <= high:
        numbers.append(numbers[-1] * ratio)
    if len(numbers) <= steps or numbers[-1] != high or any(number.denominator > 1 for number in numbers):
        raise ValueError("a range of integers must meet integers")
    return [int(number) for number in (numbers if begin == low else reversed(numbers))]


def _integer(text: str) -> int:
    """Also as 1e3."""
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if not (number.is_integer() and abs(number) <= checks.LARGEST_INTEGER):
            raise ValueError(f"{checks.shown(text)} is no integer, or not exactly known") from None
        return int(number)


_RANGES: dict[Any, Callable[..., list[Any]]] = {int: _integers, float: _floats}


def _name(kinds: list[Any]) -> str:
    names = {type(None): "none", bool: "true or false", int: "an integer", float: "a number"}
    return "type " + " or ".join(names.get(kind, str(kind).replace("typing.", "")) for kind in kinds)
