"""`Program`: the changes of runs that train together as tables of hyper-parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from grokfast import checks, parts
from grokfast.schedules.base import Change
from grokfast.transforms.base import MOMENTS
from grokfast.transforms.tables import Switched

PORTION = 1 << 16  # steps whose values are checked at a time


class Program:
    """What E runs change of their hyper-parameters.

    `changes` has those of each run, `current` the values of each run's own fields by name, `steps` how many the runs
    take. `same` says which names mean one hyper-parameter, by that one's own: "alpha" and "ema.alpha".
    `names` are those that change, `switched` those that a moment of the run changes; low and high, [E, K], are their
    extremes.

    Raises ValueError for an unknown hyper-parameter (and names the nearest), for two changes of one that overlap (what
    is to hold then is not for us to guess), for values that are not finite, and where runs have other kinds.
    """

    def __init__(
        self,
        changes: Sequence[Sequence[Change]],
        current: Sequence[Mapping[str, float]],
        steps: int,
        same: Mapping[str, str] | None = None,
    ) -> None:
        self.changes, self.steps, self._same = [tuple(own) for own in changes], steps, dict(same or {})
        self._current = [{**own, "steps": float(steps)} for own in current]
        kinds = [[(type(one), getattr(one, "of", None), one.after) for one in own] for own in self.changes]
        for i, own in enumerate(kinds):
            if own != kinds[0]:
                raise ValueError(f"the changes of run {i} must be of the same kinds as run 0's, {self.changes[0]}, "
                                 f"got {self.changes[i]}")  # fmt: skip
        known = [name for name in current[0] if name != "steps"]
        found: dict[str, list[Change]] = {}
        for one in self.changes[0]:
            for name in self._values(one, 0, 1, _Any(known, one)):
                if name not in known:
                    raise ValueError(
                        f"{parts.name_of(one)} changes {name!r}, which is none of {', '.join(map(repr, known))}"
                        f"{checks.nearest(name, known)}"
                    )
                found.setdefault(self._own(name), []).append(one)
        self.names = tuple(found)
        self.switched: Sequence[Switched] = [self._switched(one) for one in self.changes[0] if one.after is not None]
        for name, several in found.items():
            if len(several) > 1 and any(one.after is not None for one in several):
                raise ValueError(f"changes of {name!r} must not overlap, but when {_those(several)} begin is not known")
        self.low = torch.full((len(self.changes), len(self.names)), torch.inf, dtype=torch.float64)
        self.high = -self.low
        for begin in range(0, steps if self.names else 0, PORTION):
            values = self.values(begin, min(begin + PORTION, steps))
            self.low, self.high = self.low.minimum(values.amin(0)), self.high.maximum(values.amax(0))
        for column, _, to, _ in self.switched:
            self.low[:, column], self.high[:, column] = (
                self.low[:, column].minimum(to),
                self.high[:, column].maximum(to),
            )

    def keep(self, models: Sequence[int]) -> Program:
        """That of these runs only."""
        return Program(
            [self.changes[i] for i in models], [self._current[i] for i in models], self.steps, self._same
        )  # fmt: skip

    def values(self, begin: int, end: int) -> Tensor:
        """float64 [end - begin, E, K], of each run the values of `names` at these steps, but for `switched`."""
        known: dict[tuple[object, ...], Tensor] = {}
        columns = []
        for changes, current in zip(self.changes, self._current):
            key = (changes, *current.values())
            if key not in known:
                known[key] = self._of_run(changes, current, begin, end)
            columns.append(known[key])
        return torch.stack(columns, 1)

    def _of_run(self, changes: Sequence[Change], current: Mapping[str, float], begin: int, end: int) -> Tensor:
        """[end - begin, K]."""
        found = torch.full((len(self.names), end - begin), torch.nan, dtype=torch.float64)
        for one in changes:
            for name, values in self._values(one, begin, end, current).items() if one.after is None else ():
                own = self._own(name)
                row, changed = found[self.names.index(own)], ~values.isnan()
                if bool((changed & ~row.isnan()).any()):
                    step = begin + int((changed & ~row.isnan()).nonzero()[0])
                    both = [other for other in changes if name in self._values(other, 0, 1, current)]
                    raise ValueError(f"changes of {own!r} must not overlap, but {_those(both)} do at step {step}")
                if bool(values.isinf().any()):
                    raise ValueError(f"{parts.name_of(one)} makes {own!r} infinite at a step from {begin} to {end - 1}")
                row[changed] = values[changed]
        own_values = torch.tensor([current[name] for name in self.names], dtype=torch.float64)[:, None]
        return torch.where(found.isnan(), own_values, found).T

    def _values(self, one: Change, begin: int, end: int, current: Mapping[str, float]) -> dict[str, Tensor]:
        found = {}
        for name, values in one.values(begin, end, current).items():
            if not isinstance(values, Tensor) or values.shape != (end - begin,):
                said = checks.shown(values) if not isinstance(values, Tensor) else f"shape {list(values.shape)}"
                raise ValueError(f"{parts.name_of(one)}.values[{name!r}] must have shape [{end - begin}], got {said}")
            found[name] = values.double()
        return found

    def _switched(self, one: Change) -> Switched:
        i = self.changes[0].index(one)
        own = [changes[i] for changes in self.changes]
        (name,) = self._values(one, 0, 1, self._current[0])
        to = [float(c.values(0, 1, current)[name]) for c, current in zip(own, self._current)]
        return Switched(
            self.names.index(self._own(name)),
            MOMENTS.index(checks.choice("after", one.after, MOMENTS)),
            torch.tensor(to, dtype=torch.float64),
            torch.tensor([c.delay for c in own]),
        )

    def _own(self, name: str) -> str:
        return self._same.get(name, name)


def changed(changes: Sequence[Change]) -> set[str]:
    """The names of what these change."""
    return {name for one in changes for name in one.values(0, 1, _Any((), one))}


class _Any(dict[str, float]):
    """Values for any name, so that a change can be asked which it changes before it is known whether they are there."""

    def __init__(self, known: Sequence[str], change: Change) -> None:
        super().__init__(dict.fromkeys([*known, "steps"], 1.0))

    def __missing__(self, name: str) -> float:
        return 1.0


def _those(changes: Sequence[Change]) -> str:
    return " and ".join(map(repr, changes))
