"""Augmentation: the operands of a share of the rows change places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from grokfast import checks
from grokfast.parts import register
from grokfast.schedules.base import Change
from grokfast.tasks.data import Data


@register("swap_operands")
@dataclass(frozen=True, kw_only=True)
class SwapOperands(Change):
    """Of every batch, `share` of the rows are shown as b, a instead of a, b: other ones at every step.

    For tokens a b, a b = and a ∘ b =, and tasks whose answer does not depend on the order. What it shows must be no row
    of another split: task.augment="swap" takes these out of the test set.
    """

    varies: ClassVar[frozenset[str]] = frozenset()

    share: float = 0.5

    def __post_init__(self) -> None:
        checks.Fields(self, "swap_operands.").real("share", minimum=0, maximum=1)

    def augment(self, inputs: Tensor, targets: Tensor, step: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        second = _second(inputs.shape[-1])
        row = torch.arange(inputs.shape[1], device=inputs.device)
        is_swapped = uniform(seeds[:, None], step[:, None], row) < self.share  # [E, B]
        columns = list(range(inputs.shape[-1]))
        columns[0], columns[second] = second, 0
        swapped = torch.stack([inputs[..., column] for column in columns], -1)
        return torch.where(is_swapped[..., None], swapped, inputs), targets

    def check(self, data: Data) -> None:
        inputs, targets = data.train.inputs, data.train.targets
        if inputs.dtype is not torch.int64 or inputs.ndim != 2 or inputs.shape[1] not in (2, 3, 4):
            raise ValueError(
                f"swap_operands takes rows of 2 to 4 tokens, a b, a b = or a ∘ b =, got {inputs.dtype} "
                f"{list(inputs.shape)}"
            )
        own = dict(zip(map(tuple, inputs.tolist()), targets.tolist()))
        wrong = set() if data.corrupted is None else set(map(tuple, inputs[data.corrupted].tolist()))
        swapped = {row: self._swapped(row) for row in own}
        for row, other in swapped.items():
            if other in own and own[other] != own[row] and not {row, other} & wrong:
                raise ValueError(
                    f"swap_operands needs a task whose answer does not depend on the order: {_said(row)} is "
                    f"{own[row]}, {_said(other)} is {own[other]}"
                )
        for name, split in data.splits.items() if self.share > 0 else ():
            if name != "train" and (found := {*swapped.values()} & {*map(tuple, split.inputs.tolist())}):
                raise ValueError(
                    f"swap_operands shows rows of {name!r} in training, {len(found):,} of {len(split):,}, such as "
                    f"{_said(min(found))}: with task.augment=swap the test set has none of them"
                )

    def _swapped(self, row: tuple[int, ...]) -> tuple[int, ...]:
        found, second = list(row), _second(len(row))
        found[0], found[second] = found[second], found[0]
        return tuple(found)


def _said(row: tuple[int, ...]) -> str:
    return f"{row[0]}, {row[_second(len(row))]}"


def _second(length: int) -> int:
    """Where the second operand is: a b, a b =, a ∘ b =."""
    return 2 if length == 4 else 1


def uniform(*counters: Tensor) -> Tensor:
    """A number in [0, 1) for each combination of counters, int64 tensors that broadcast: the same on every device, and
    in a graph, which no generator of the host reaches. The mixing function of splitmix64 (Steele et al. 2014), on the
    counters one after the other."""
    state = torch.zeros((), dtype=torch.int64, device=counters[0].device)
    for counter in counters:
        state = (state ^ counter) + _GOLDEN
        state = (state ^ _shifted(state, 30)) * _FIRST
        state = (state ^ _shifted(state, 27)) * _SECOND
        state = state ^ _shifted(state, 31)
    return _shifted(state, 11).double() / 2**53


def _shifted(t: Tensor, bits: int) -> Tensor:
    """The bits moved down, zeros coming in, as of an unsigned number."""
    return (t >> bits) & ((1 << (64 - bits)) - 1)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >= 1 << 63 else number


_GOLDEN, _FIRST, _SECOND = map(_signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
