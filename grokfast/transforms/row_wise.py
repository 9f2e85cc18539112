"""What of an ensemble's transforms the one pass of CPU fp32 tensors computes row by row: csrc/cpu/row_wise.h."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from grokfast.transforms.base import Layout
from grokfast.transforms.filters import Filter
from grokfast.transforms.one_pass import numbers
from grokfast.transforms.operations import Operation


class RowWise:
    """The projection just before the filter, or the update, and the clip just after it; None: there is no such.

    pieces: a model's parameters, the first place and the length of each. A window of gradients has whole models in its
    rows, so that with one there is neither.
    """

    def __init__(
        self, before: Sequence[Operation], after: Sequence[Operation], fused: Filter | None, layout: Layout
    ) -> None:
        can_be = fused is None or fused.window == 1
        self.project = _with_role("project", before[-1:] if can_be else [])
        self.clip = _with_role("clip", after[:1] if can_be else [])
        self.layout = layout
        self.pieces = [(at, shape.numel()) for at, shape in zip(layout.offsets, layout.shapes)]
        self._strengths: list[list[float]] = []
        self._numbers = array("d")

    def __bool__(self) -> bool:
        return self.project is not None or self.clip is not None

    def numbers(self, models: int) -> array[float]:
        """`one_pass.numbers` of every parameter of every model, at their strengths now."""
        both = (self.project, self.clip)
        strengths = [
            [0.0] * models if one is None else one.hyper[one.transform.role_field][:, 0].tolist() for one in both
        ]
        if strengths != self._strengths:
            project, clip = (None if one is None else one.transform for one in both)
            self._strengths, self._numbers = strengths, array("d")
            for of_model in zip(*strengths):
                self._numbers.extend(numbers(self.layout, project, clip, of_model))
        return self._numbers


def _with_role(role: str, operations: Sequence[Operation]) -> Operation | None:
    return next((one for one in operations if one.transform.role == role and one.span is None), None)
