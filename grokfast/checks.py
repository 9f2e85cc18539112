"""Checks at the door of public functions: every message names the argument, what came and what is accepted."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable
from functools import partial
from numbers import Integral, Real
from typing import Any

LARGEST_INTEGER = 2**53 - 1  # curves, tables and the device keep steps and counts as doubles, which end here
LARGEST_REAL = 1e38  # nearly that of fp32, in which parameters are
_SHOWN = 200  # characters of a value in a message


def integer(name: str, value: Any, *, minimum: int, maximum: int | None = None) -> int:
    """Return `value` as an int in [minimum, maximum], or raise TypeError/ValueError naming `name`.

    Where no maximum is given it is LARGEST_INTEGER.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {shown(value)} ({type(value).__name__})")
    number = int(value)
    if number < minimum or number > (LARGEST_INTEGER if maximum is None else maximum):
        limit = f"at least {minimum}" if number < minimum else f"at most {LARGEST_INTEGER}"
        accepted = limit if maximum is None else f"between {minimum} and {maximum}"
        raise ValueError(f"{name} must be {accepted}, got {shown(number)}")
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
        raise TypeError(f"{name} must be a number, got {shown(value)} ({type(value).__name__})")
    try:
        number = float(value)
    except OverflowError:  # an integer beyond the largest float
        number = math.inf
    low = number > minimum if open_minimum else number >= minimum
    high = number < maximum if open_maximum else number <= maximum
    if not (math.isfinite(number) and low and high):
        left = "(" if open_minimum or minimum == -math.inf else "["
        right = ")" if open_maximum or maximum == math.inf else "]"
        raise ValueError(f"{name} must be in {left}{minimum}, {maximum}{right}, got {shown(value)}")
    return number


def boolean(name: str, value: Any) -> bool:
    """Return `value` if it is a bool, or raise TypeError naming `name`."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {shown(value)} ({type(value).__name__})")
    return value


def choice(name: str, value: Any, choices: Iterable[str]) -> str:
    """Return `value` if it is one of `choices`, or raise ValueError that also names the nearest one."""
    options = list(choices)
    if not isinstance(value, str) or value not in options:
        accepted = ", ".join(map(repr, options))
        raise ValueError(f"{name} must be one of {accepted}, got {shown(value)}{nearest(value, options)}")
    return str(value)


def text(name: str, value: Any) -> str:
    """Return `value` if it is a string of 1 to 200 printable characters, or raise an error naming `name`."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {shown(value)} ({type(value).__name__})")
    if not (value.isprintable() and 1 <= len(value) <= _SHOWN):
        raise ValueError(f"{name} must have 1 to {_SHOWN} printable characters, got {shown(value)}")
    return str(value)


def nearest(value: Any, choices: Iterable[str]) -> str:
    """A trailing ` (did you mean 'x'?)`, or an empty string when nothing is near."""
    said = value if isinstance(value, str) else shown(value)
    close = difflib.get_close_matches(said[:_SHOWN], list(choices), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def shown(value: Any) -> str:
    """A value in a message: its repr in one line, which is cut where it is long."""
    try:
        said = repr(value)
    except ValueError:  # an integer of more digits than Python writes
        said = f"about 10^{value.bit_length() * math.log10(2):.0f}" if isinstance(value, int) else type(value).__name__
    except Exception:
        said = f"a {type(value).__name__} that has no repr"
    said = " ".join(said.split())
    return said if len(said) <= _SHOWN else f"{said[: _SHOWN // 2]}... ({len(said):,} characters)"


class Fields:
    """Checks the fields of a frozen dataclass while it is made, and keeps in it what the checks return: plain Python
    values, whatever kind (NumPy's, a Fraction) was given. Messages have `prefix` before a field's name."""

    def __init__(self, part: Any, prefix: str = "") -> None:
        self._part, self._prefix = part, prefix

    def integer(self, *names: str, minimum: int, maximum: int | None = None, optional: bool = False) -> None:
        """Integers; None, too, where they are optional."""
        self._keep(names, partial(integer, minimum=minimum, maximum=maximum), optional)

    def real(self, *names: str, **limits: Any) -> None:
        """Finite numbers within the limits of `checks.real`."""
        self._keep(names, partial(real, **limits))

    def boolean(self, *names: str) -> None:
        """True or False."""
        self._keep(names, boolean)

    def text(self, *names: str) -> None:
        """Printable strings."""
        self._keep(names, text)

    def choice(self, **choices: Iterable[str]) -> None:
        """For each field one of its choices."""
        for name, options in choices.items():
            self._keep([name], partial(choice, choices=options))

    def _keep(self, names: Iterable[str], check: Callable[[str, Any], Any], optional: bool = False) -> None:
        for name in names:
            value = getattr(self._part, name)
            if value is not None or not optional:
                object.__setattr__(self._part, name, check(self._prefix + name, value))
