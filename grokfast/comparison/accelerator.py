"""`Accelerator`: an arm of a comparison: a change of plain AdamW, what is searched of it, and what its paper has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from grokfast import checks, parts
from grokfast.comparison.space import Axis, Space, points
from grokfast.sweeps import Arm
from grokfast.training.experiment import FAMILIES, Experiment

# What every arm begins with: the task's recipe with AdamW and nothing else; runs end when they have generalised.
PLAIN = {"optimizer": "adamw", "optimizer.weight_decay": 1.0, "filter": None, "schedule.stop_after": 0}

_ARGUMENTS = re.compile(r"\([^()]*\)")


@dataclass(frozen=True, kw_only=True)
class Accelerator(Arm):
    """A named change of plain AdamW, `PLAIN`, and the space of what is searched; without one it is taken as it is.

    Args:
        space: axes by dotted name.
        published: the paper's own values, where they differ from what the kinds have untuned: a point of the search.
    """

    space: Mapping[str, Axis] = field(default_factory=dict)
    published: Mapping[str, Any] = field(default_factory=dict)

    def of(self, experiment: Experiment) -> Experiment:
        """The experiment of this arm, untuned. Raises ValueError where it does not apply."""
        return super().of(experiment.override(PLAIN))

    def check_kinds(self, experiment: Experiment) -> None:
        """Raise ValueError unless each kind of part that it names is registered."""
        changes = self.changes(experiment) if callable(self.changes) else self.changes
        for key, family in {**FAMILIES, "schedule.changes": "change"}.items():
            for kind in re.findall(r"(?:^|[+,])\s*([\w.:]+)", _ARGUMENTS.sub("", str(changes.get(key) or "none"))):
                if kind != "none" and ":" not in kind and kind not in parts.kinds(family):
                    near = checks.nearest(kind, parts.kinds(family))
                    raise ValueError(f"arm {self.name!r} needs the {family} {kind!r}, which is not registered{near}")

    def space_of(self, untuned: Experiment) -> Space:
        """The space around what the untuned arm has. Raises ValueError for an axis of what it has not."""
        own = untuned.flat()
        for key in self.space:
            if key not in own:
                raise ValueError(f"arm {self.name!r} has an axis of {key!r}, which is not there{untuned.hint(key)}")
        return {key: axis.around(own[key]) for key, axis in self.space.items()}

    def points(self, untuned: Experiment, n: int, *, seed: int = 0) -> list[dict[str, Any]]:
        """Where the arm is tried: n points of its space, `{}` alone where it has none. Raises as `space.points`."""
        if not self.space:
            return [{}]
        own = untuned.flat()
        given = [self.published] if self.published else []
        try:
            return points(self.space_of(untuned), own, n, given=given, seed=seed)
        except ValueError as error:
            raise ValueError(f"arm {self.name!r}: {error}") from error
