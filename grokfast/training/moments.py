"""When a run is found to have memorised and generalised, on the device: what changes after a moment waits for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from grokfast.training.experiment import Experiment
from grokfast.training.outcome import Outcome


def established(outcomes: Sequence[Outcome]) -> Tensor:
    """int64 [2, E], after which steps each run was found to have memorised, and generalised; -1: not yet."""
    found = [(o.memorizing.established, o.crossing.established) for o in outcomes]
    return torch.tensor([[-1 if at is None else at for at in own] for own in zip(*found)], dtype=torch.int64)


class Moments:
    """Follows the evaluations of E runs as Outcome does, and writes `begun`, int64 [2, E], where it lies."""

    def __init__(self, experiments: Sequence[Experiment], outcomes: Sequence[Outcome], begun: Tensor) -> None:
        self.begun = begun
        begun.copy_(established(outcomes))
        streaks = [[o.memorizing.streak for o in outcomes], [o.crossing.streak for o in outcomes]]
        self._streak = torch.tensor(streaks, dtype=torch.int64).to(begun.device)
        self._threshold = torch.tensor([e.criteria.threshold for e in experiments], dtype=torch.float64).to(
            begun.device
        )
        self._sustain = torch.tensor([e.criteria.sustain for e in experiments], dtype=torch.int64).to(begun.device)

    def update(self, memorizing: Tensor, generalizing: Tensor, steps: Tensor) -> None:
        """Take an evaluation after `steps`, int64 [E], into account: two accuracies [E]."""
        accuracy = torch.stack([memorizing, generalizing]).double()
        self._streak.copy_(torch.where(accuracy >= self._threshold, self._streak + 1, 0))
        self.begun.copy_(torch.where((self.begun < 0) & (self._streak == self._sustain), steps, self.begun))
