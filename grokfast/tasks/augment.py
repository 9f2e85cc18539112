"""Augmentation of a table: rows whose answers follow from those of training rows, added to the training set."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

AUGMENTS = ("none", "swap", "negate", "swap+negate")


class Made(NamedTuple):
    """A training set with what augmentation makes of it.

    rows: [m] row numbers, ascending. sources: [m], of which training row each is made; of training rows themselves.
    is_negated: [m] bool, whether the answer is the negative of the source's.
    """

    rows: Tensor
    sources: Tensor
    is_negated: Tensor


def augmented(train: Tensor, operands: Tensor, augment: str, negatives: Tensor) -> Made:
    """The orbits of the training rows: all orders of the operands ("swap"), all operands negated ("negate"), or both.

    train: row numbers. operands: [n, k], the table. negatives: -a of each symbol a. Rows that the table leaves out are
    not made. Where a row follows from several training rows, the first of these is its source.
    """
    n = len(operands)
    own = _numbers(operands, len(negatives), augment)
    orbit = own if "negate" not in augment else own.minimum(_numbers(negatives[operands], len(negatives), augment))
    orbit = orbit.unique(return_inverse=True)[1]
    first = torch.full((n,), n).scatter_reduce(0, orbit[train], train, "amin")  # of each orbit; n: none
    sources = first[orbit]
    sources[train] = train
    rows = (sources < n).nonzero()[:, 0]
    sources = sources[rows]
    return Made(rows, sources, own[rows] != own[sources])


def check_answers(name: str, operands: Tensor, answers: Tensor, augment: str, negatives: Tensor) -> None:
    """Raise ValueError, which shows two rows, unless the answers [n] of a whole table [n, k] are as augmentation says.

    name: what the operation is called.
    """
    if "swap" in augment:
        of = _numbers(operands, len(negatives), augment).unique(return_inverse=True)[1]
        rows = torch.arange(len(of))
        first = torch.full_like(of, len(of)).scatter_reduce(0, of, rows, "amin")[of]
        _same(name, operands, answers, first, answers[first], "swap", "the same answer in any order of its operands")
    if "negate" in augment:
        own, mirrored = (_numbers(rows, len(negatives)) for rows in (operands, negatives[operands]))
        other = torch.searchsorted(own, mirrored).clamp(max=len(own) - 1)
        wanted = torch.where(own[other] == mirrored, negatives[answers[other]], answers)
        _same(name, operands, answers, other, wanted, "negate", "the negative answer for negative operands")


def _same(
    name: str, operands: Tensor, answers: Tensor, other: Tensor, wanted: Tensor, augment: str, needs: str
) -> None:
    if (wrong := (answers != wanted).nonzero()[:, 0]).numel():
        row = int(wrong[0])
        one, two = (
            f"{', '.join(map(str, operands[at].tolist()))} is {int(answers[at])}" for at in (int(other[row]), row)
        )
        raise ValueError(f"augment {augment!r} needs an operation that has {needs}: of {name!r} {one}, {two}")


def _numbers(operands: Tensor, base: int, augment: str = "none") -> Tensor:
    """A number for each row, ascending as rows are; with "swap" the same one for all orders of its operands."""
    operands = operands.sort(1).values if "swap" in augment else operands
    number = torch.zeros_like(operands[:, 0])
    for column in operands.unbind(1):
        number = number * base + column
    return number
