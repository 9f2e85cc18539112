"""The search space of an arm, and its points: the arm's own values, the published ones, then Sobol's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grokfast import checks
from grokfast.seeds import generator

DIMENSIONS = 8  # of the sequence, whatever a space has: arms with the same first axes meet the same values of them
DRAWS = 64  # for each point that is wanted, at most


@dataclass(frozen=True)
class Log:
    """Real numbers of three digits, uniform in the logarithm from low to high; with `relative` these are multiples of
    what the arm has untuned. Raises TypeError or ValueError unless 0 < low < high."""

    low: float
    high: float
    relative: bool = False

    def __post_init__(self) -> None:
        fields = checks.Fields(self, "Log.")
        fields.real("low", "high", minimum=0, open_minimum=True)
        fields.boolean("relative")
        if self.low >= self.high:
            raise ValueError(f"Log.high must be above Log.low, {self.low:g}, got {self.high:g}")

    def around(self, own: Any) -> Log:
        """The axis of an arm that has `own` untuned, with limits that are not relative."""
        if not self.relative:
            return self
        own = checks.real("own", own, minimum=0, open_minimum=True)
        return Log(float(f"{self.low * own:.3g}"), float(f"{self.high * own:.3g}"))

    def at(self, share: float) -> float:
        """The value of which `share`, in [0, 1), of the axis lies below."""
        return float(f"{self.low * math.exp(share * math.log(self.high / self.low)):.3g}")

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}, log"


@dataclass(frozen=True, init=False)
class Among:
    """A few values, each as likely as the others. Raises ValueError unless they are two or more different ones."""

    values: tuple[Any, ...]

    def __init__(self, *values: Any) -> None:
        if len(set(values)) < max(len(values), 2):
            raise ValueError(f"Among must have two or more different values, got {checks.shown(values)}")
        object.__setattr__(self, "values", values)

    def around(self, own: Any) -> Among:
        return self

    def at(self, share: float) -> Any:
        """The value of which `share`, in [0, 1), of the others lies below."""
        return self.values[int(share * len(self.values))]

    def __str__(self) -> str:
        return " or ".join(map(str, self.values))


Axis = Log | Among
Space = Mapping[str, Axis]


def points(
    space: Space, own: Mapping[str, Any], n: int, *, given: Sequence[Mapping[str, Any]] = (), seed: int = 0
) -> list[dict[str, Any]]:
    """n different points of `space`, whose axes are not relative: a value for each of its keys.

    The first is `own`, what the arm has untuned; then those `given`, which take what they do not say from `own`; then
    Sobol's sequence (1967), scrambled by `seed` (Owen 1998), as scipy.stats.qmc has it. Equal axes in equal places of
    two spaces get equal values.

    Raises ValueError where n is below 1, or more than a space of few values has.
    """
    n = checks.integer("n", n, minimum=1)
    if not 1 <= len(space) <= DIMENSIONS:
        raise ValueError(f"space must have 1 to {DIMENSIONS} axes, got {len(space)}")
    first = {key: own[key] for key in space}
    found = {repr(point): point for point in (first, *({**first, **one} for one in given))}
    draws = 1
    while len(found) < n:
        if draws > DRAWS * n:
            raise ValueError(f"space has {len(found)} different points, {n} are wanted")
        draws *= 2
        for row in _sobol(draws, seed):
            point = {key: axis.at(share) for (key, axis), share in zip(space.items(), row)}
            found.setdefault(repr(point), point)
    return list(found.values())[:n]


def _sobol(n: int, seed: int) -> list[list[float]]:
    """The first n rows, a power of 2, of the scrambled sequence, numbers in [0, 1)."""
    import numpy as np
    from scipy.stats import qmc

    source = np.random.default_rng(generator(seed, "search").initial_seed())
    rows: list[list[float]] = qmc.Sobol(DIMENSIONS, scramble=True, seed=source).random(n).tolist()
    return rows
