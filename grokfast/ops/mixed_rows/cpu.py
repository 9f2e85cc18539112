"""Rows mixed of tables' rows by the C++ extension (csrc/cpu/mixed_rows.cpp), forward and backward, without autograd."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from grokfast import backend
from grokfast.ops.rows import RowIndex, threads_for


class Mixture(NamedTuple):
    """What is mixed for each row: see reference.mixed_rows. All contiguous, of fp32 and int64 on a CPU."""

    tables: Tensor
    scores: Tensor
    base: Tensor
    keys: RowIndex
    query: Tensor | None
    common: int | None
    rate: float

    @property
    def arguments(self) -> tuple[object, ...]:
        return (*self[:3], self.keys.index, self.query, -1 if self.common is None else self.common, self.rate)

    def threads(self) -> int:
        n_heads, _, width = self.tables.shape
        return threads_for(self.keys.index, n_heads * width)


def forward(rows: Mixture, hidden: Tensor, linear: Tensor) -> Tensor:
    """Write what is mixed: hidden [R, n], the relu of its first n columns, linear [R, W − n]. Returns what `backward`
    needs, the softmax [R, S, H]."""
    weights = hidden.new_empty(*rows.keys.shape, len(rows.tables))
    backend.load_extension().mixed_rows_forward(*rows.arguments, hidden, linear, weights, rows.threads())
    return weights


class Kept(NamedTuple):
    """Of folded rows' forward pass: the softmax, the relu's output in an order of its own, and to_logits [units, C]."""

    weights: Tensor
    hidden: Tensor
    to_logits: Tensor


def folded_forward(rows: Mixture, to_logits: Tensor, hidden: Tensor, logits: Tensor) -> Kept:
    """Write logits [R, C], the mixed columns beyond the units and the relu's output times to_logits; hidden [R, units]
    is room for what `folded_backward` needs."""
    weights = hidden.new_empty(*rows.keys.shape, len(rows.tables))
    backend.load_extension().folded_rows_forward(*rows.arguments, to_logits, hidden, logits, weights, rows.threads())
    return Kept(weights, hidden, to_logits)


def folded_backward(rows: Mixture, kept: Kept, grad: Tensor, scratch: Tensor, to: tuple[Tensor, ...]) -> None:
    """Write the gradients of tables, scores, base and to_logits to `to`, from that of the logits.
    scratch: [threads, R, 64]."""
    backend.load_extension().folded_rows_backward(*rows.arguments, *rows.keys.readers, *kept, grad, scratch, *to)


def backward(
    rows: Mixture, weights: Tensor, grad_hidden: Tensor, grad_linear: Tensor, to: tuple[Tensor, Tensor, Tensor]
) -> None:
    """Write the gradients of tables, scores and base to `to`. grad_hidden: of what goes into the relu."""
    backend.load_extension().mixed_rows_backward(
        *rows.arguments, *rows.keys.readers, weights, grad_hidden, grad_linear, *to, rows.threads()
    )
