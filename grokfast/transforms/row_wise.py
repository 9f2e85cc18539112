"""What of an ensemble's transforms the one pass of CPU fp32 tensors computes beside a filter: csrc/cpu/row_wise.h."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from grokfast.transforms.base import Layout
from grokfast.transforms.filters import Filter
from grokfast.transforms.one_pass import BEFORE, numbers
from grokfast.transforms.operations import Operation


class RowWise:
    """The projection and penalties just before the filter, or the update, and the clip just after it, if there are any.

    n_before, n_after: how many of the operations before and after the update are these.
    pieces: a model's parameters, the first place and the length of each. A window of gradients has whole models in its
    rows, so that with one there is nothing.
    """

    def __init__(
        self, before: Sequence[Operation], after: Sequence[Operation], fused: Filter | None, layout: Layout
    ) -> None:
        self._own: dict[str, Operation] = {}
        self.n_before = self.n_after = 0
        if fused is None or fused.window == 1:
            following = len(BEFORE)
            for one in reversed(before):
                role = one.transform.role
                if one.span is not None or role not in BEFORE[:following]:
                    break
                self._own[role], following = one, BEFORE.index(role)
            self.n_before = len(self._own)
            for one in after[:1]:
                if one.span is None and one.transform.role == "clip" and not one.transform.is_of_all:
                    self._own["clip"], self.n_after = one, 1
        self.layout = layout
        self.pieces = [(at, shape.numel()) for at, shape in zip(layout.offsets, layout.shapes)]
        self._strengths: list[list[float]] = []
        self._numbers = array("d")

    def __bool__(self) -> bool:
        return bool(self._own)

    def numbers(self, models: int) -> array[float]:
        """`one_pass.numbers` of every parameter of every model, at their strengths now."""
        strengths = [one.hyper[one.transform.role_field][:, 0].tolist() for one in self._own.values()]
        if strengths != self._strengths:
            transforms = {role: one.transform for role, one in self._own.items()}
            self._strengths, self._numbers = strengths, array("d")
            for of_model in zip(*strengths):
                self._numbers.extend(numbers(self.layout, transforms, dict(zip(transforms, of_model))))
        return self._numbers
