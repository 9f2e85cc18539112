"""Checks at the door of public functions: every message names the argument, what came and what is accepted."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any


def integer(name: str, value: Any, *, minimum: int, maximum: int | None = None) -> int:
    """Return `value` as an int in [minimum, maximum], or raise TypeError/ValueError naming `name`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {value!r} ({type(value).__name__})")
    number = int(value)
    if number < minimum or (maximum is not None and number > maximum):
        accepted = f"at least {minimum}" if maximum is None else f"between {minimum} and {maximum}"
        raise ValueError(f"{name} must be {accepted}, got {number}")
    return number


def real(
    name: str,
    value: Any,
    *,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    open_minimum: bool = False,
    open_maximum: bool = False,
) -> float:
    """Return `value` as a finite float inside the interval, or raise TypeError/ValueError naming `name`."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r} ({type(value).__name__})")
    try:
        number = float(value)
    except OverflowError:  # an integer beyond the largest float
        number = math.inf
    low = number > minimum if open_minimum else number >= minimum
    high = number < maximum if open_maximum else number <= maximum
    if not (math.isfinite(number) and low and high):
        left = "(" if open_minimum or minimum == -math.inf else "["
        right = ")" if open_maximum or maximum == math.inf else "]"
        raise ValueError(f"{name} must be in {left}{minimum}, {maximum}{right}, got {value!r}")
    return number


def boolean(name: str, value: Any) -> bool:
    """Return `value` if it is a bool, or raise TypeError naming `name`."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r} ({type(value).__name__})")
    return value


def choice(name: str, value: Any, choices: Iterable[str]) -> str:
    """Return `value` if it is one of `choices`, or raise ValueError that also names the nearest one."""
    options = list(choices)
    if value not in options:
        accepted = ", ".join(map(repr, options))
        raise ValueError(f"{name} must be one of {accepted}, got {value!r}{nearest(value, options)}")
    return str(value)


def nearest(value: Any, choices: Iterable[str]) -> str:
    """A trailing ` (did you mean 'x'?)`, or an empty string when nothing is near."""
    close = difflib.get_close_matches(str(value), list(choices), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
