"""Axes of a grid as they are written on a command line: `optimizer.weight_decay=0.1,0.3,1`, `seed=0:7:8`."""

from __future__ import annotations

import ast
import re
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from grokfast.training.experiment import Experiment
from grokfast.training.sweep.grid import as_filtered, axes_of, check_key

_RANGE = re.compile(r"([^:]+):([^:]+):(\d+)(log)?")
_COMMA = re.compile(r",(?![^(]*\))")  # not inside of parentheses
_BOOLEANS = {"true": True, "false": False}


def parse_axes(
    experiment: Experiment, texts: Sequence[str], others: Mapping[str, Sequence[Any]] | None = None
) -> dict[str, list[Any]]:
    """The axes of several texts, each KEY=V1,V2,...: a key of the experiment and values of its type.

    A value of numbers may be a range, FIRST:LAST:N, N of them evenly spaced, or FIRST:LAST:Nlog, evenly in the
    logarithm. A pair is written in parentheses, what is absent as "none". With filter=none,ema,ma, or such an axis
    among `others`, the fields of these filters are keys, too.
    Raises ValueError naming what is wrong.
    """
    split = [_split(text) for text in texts]
    keys = [key for key, _ in split]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"the grid has the key {key!r} twice")
    axes = dict[str, list[Any]]()
    filters = axes_of(experiment, {"filter": (others or {}).get("filter", [None])})["filter"]
    for key, values in sorted(split, key=lambda axis: axis[0] != "filter"):  # others may be about its fields
        axes[key] = _parse_values(as_filtered(experiment, filters, key), key, values)
        filters = axes.get("filter", filters)
    return {key: axes[key] for key in keys}


def _split(text: str) -> tuple[str, str]:
    key, equals, values = text.partition("=")
    if not equals or not values.strip():
        raise ValueError(f"a grid is written KEY=V1,V2,..., got {text!r}")
    return key.strip().replace("-", "_"), values


def _parse_values(experiment: Experiment, key: str, values: str) -> list[Any]:
    parts = [part.strip() for part in _COMMA.split(values)]
    if key == "filter":
        return axes_of(experiment, {key: parts})[key]
    check_key(experiment, key)
    kinds = _kinds(experiment, key)
    return [value for part in parts for value in _parse(key, part, kinds)]


def _kinds(experiment: Experiment, key: str) -> list[Any]:
    """The types that a value may have, of a union each."""
    *path, name = key.split(".")
    node: Any = experiment
    for part in path:
        node = getattr(node, part)
    hint = get_type_hints(type(node))[name]
    return list(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else [hint]


def _parse(key: str, text: str, kinds: list[Any]) -> list[Any]:
    if text.lower() == "none" and type(None) in kinds:
        return [None]
    if bool in kinds and text.lower() in _BOOLEANS:
        return [_BOOLEANS[text.lower()]]
    span = _RANGE.fullmatch(text)
    for kind in kinds:
        if kind is str or get_origin(kind) is Literal:
            return [text]
        try:
            if kind in (int, float):
                return _range(kind, *span.groups()) if span else [kind(text)]
            if get_origin(kind) is tuple:
                return [ast.literal_eval(text)]
        except (ValueError, SyntaxError) as error:
            if span:
                raise ValueError(f"grid[{key!r}] cannot take the range {text!r}: {error}") from error
            raise ValueError(f"grid[{key!r}] must have values of {_name(kinds)}, got {text!r}") from error
    raise ValueError(f"grid[{key!r}] must have values of {_name(kinds)}, got {text!r}")


def _range(kind: type, first: str, last: str, n: str, logarithmic: str | None) -> list[Any]:
    space = np.geomspace if logarithmic else np.linspace
    numbers = [float(f"{number:.12g}") for number in space(float(first), float(last), int(n))]
    if kind is int:
        whole = [int(number) for number in numbers]
        if whole != numbers:
            raise ValueError("a range of integers must meet integers")
        return whole
    return numbers


def _name(kinds: list[Any]) -> str:
    names = {type(None): "none", bool: "true or false", int: "an integer", float: "a number"}
    return "type " + " or ".join(names.get(kind, str(kind).replace("typing.", "")) for kind in kinds)
