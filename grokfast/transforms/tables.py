"""Hyper-parameters that change with the step, in a ring of tables on the device, ready before their steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

STEPS = 256  # in a ring, unless more are asked for


class Switched(NamedTuple):
    """A column of the tables that has another value after a moment: of each run the value, and the delay in steps."""

    column: int
    moment: int  # 0: it has memorised, 1: generalised
    to: Tensor  # float64 [E]
    delay: Tensor  # int64 [E]


class Program(Protocol):
    """What `grokfast.schedules.program.Program` is: which hyper-parameters change, and how."""

    names: tuple[str, ...]
    switched: Sequence[Switched]
    low: Tensor
    high: Tensor

    def values(self, begin: int, end: int) -> Tensor:
        """float64 [end - begin, E, K], those of `names` at these steps."""

    def keep(self, models: Sequence[int]) -> Program:
        """That of these models."""


class Tables:
    """The values of a program, for E models on a device.

    reached: int64 [2, E], after which steps a run was found to have memorised, and generalised; -1: not yet. They may
    be written at any time: an evaluation on the device writes them there.
    """

    def __init__(self, program: Program, reached: Tensor, most_steps: int = STEPS) -> None:
        self.program, self.reached, self.device = program, reached, reached.device
        models, device = reached.shape[1], reached.device
        self.ring = torch.zeros(most_steps, models, len(program.names), dtype=torch.float64, device=device)
        self._switched = [s._replace(to=s.to.to(device), delay=s.delay.to(device)) for s in program.switched]
        self._held = range(0)
        self._row = torch.empty_like(self.ring[:1])

    def prepare(self, begin: int, steps: int) -> None:
        """Have the values of `steps` steps (as many as the ring holds at most) from `begin` on, without waiting."""
        if begin in self._held and begin + steps - 1 in self._held:
            return
        self._held = range(begin, begin + len(self.ring))
        values = self.program.values(begin, begin + len(self.ring))
        values = values.pin_memory() if self.device.type == "cuda" else values
        at = begin % len(self.ring)
        self.ring[at:].copy_(values[: len(self.ring) - at], non_blocking=True)
        self.ring[:at].copy_(values[len(self.ring) - at :], non_blocking=True)

    def select(self, steps: Tensor) -> Tensor:
        """float64 [E, K] of the step that the device counts in `steps`, int64 [E], the same for all."""
        torch.index_select(self.ring, 0, steps[:1] % len(self.ring), out=self._row)
        values = self._row[0]
        for column, moment, to, delay in self._switched:
            begun = self.reached[moment]
            is_on = (begun >= 0) & (steps >= begun + delay)
            values[:, column] = torch.where(is_on, to, values[:, column])
        return values
