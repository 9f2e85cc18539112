"""`State`: all that a run needs to go on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from grokfast.store import CheckpointError


@dataclass(frozen=True)
class State:
    """A run after `steps` steps and `seconds`: `Ensemble.checkpoint`'s tensors; diverged_at is -1 where it has not;
    begun has the steps at which parts began that a fork has anew (`FlatOptimizer.begin`)."""

    steps: int
    seconds: float
    tensors: Mapping[str, Tensor]
    diverged_at: int = -1
    begun: Mapping[str, int] = field(default_factory=dict)

    @property
    def meta(self) -> dict[str, Any]:
        """What is stored beside the tensors."""
        meta = {"steps": self.steps, "seconds": self.seconds, "diverged_at": self.diverged_at}
        return {**meta, "begun": dict(self.begun)} if self.begun else meta

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], what: str) -> State:
        """As it was stored. Raises CheckpointError where the meta are none of a state."""
        try:
            begun = {str(part): int(step) for part, step in meta.get("begun", {}).items()}
            return cls(int(meta["steps"]), float(meta["seconds"]), tensors, int(meta.get("diverged_at", -1)), begun)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{what} does not say its steps: {meta!r}") from error
