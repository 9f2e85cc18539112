"""The Step of a transformer on a CPU with the extension: forward and backward of the planned rows written out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from grokfast import backend
from grokfast.models.base import OPERATIONS, Spec
from grokfast.models.runs import Runs
from grokfast.models.transformer.plan import Plan, PlannedRows
from grokfast.models.transformer.planned_cpu import ATTENTION, Written, asked, row_accuracy
from grokfast.models.transformer.rows_pass import RowsPass
from grokfast.ops.rows import RowIndex


class RowsStep(Written):
    """What is written out is rows_pass.py; under autocast and on the reference backend it is Planned's."""

    def __init__(self, runs: Runs, plans: dict[str, list[Plan]] | None = None) -> None:
        super().__init__(runs, plans)
        self._tables: dict[tuple[str, int], tuple[Tensor, RowIndex, RowIndex]] = {}

    def keep(self, models: Sequence[int]) -> RowsStep:
        return RowsStep(self.runs, {split: [plans[i] for i in models] for split, plans in self.plans.items()})

    @classmethod
    def why_not(cls, spec: Spec) -> str:
        config: Any = spec.model
        if spec.why_no_extension:
            return spec.why_no_extension
        if config.attention_rate != 1:
            return ATTENTION
        if spec.has_dropout or spec.changes_rows:
            return "written out is what neither drops anything nor changes rows"
        return ""

    @classmethod
    def words(cls, spec: Spec, obstacles: Sequence[str]) -> tuple[str, str]:
        return OPERATIONS, "C++ extension, each distinct prefix once, backward written out"

    def of_model(self, e: int, split: str, batch: Tensor | None, grad: Tensor | None) -> tuple[Tensor, Tensor]:
        if backend.current() == "reference" or torch.is_autocast_enabled("cpu"):
            with torch.set_grad_enabled(grad is not None):
                return super().of_model(e, split, batch, grad)
        _, targets, own = self.runs.chosen_of(e, split, batch)
        rows = self.plans[split][e].rows(own)
        computed = RowsPass(self.config, self.weights[e], rows, *self._pairs(e, split, rows))
        logits = computed.logits(trains=grad is not None)
        those = asked(targets)
        answers = targets if those is None else targets[those]  # each as a row of its own
        of_logits = None if grad is None else torch.empty_like(logits)
        loss, accuracy = self._classify(e, logits, answers, of_logits)
        if those is not None and len(answers) > len(targets):  # a row is right where all are
            accuracy = row_accuracy(logits, answers, those)
        if grad is not None and of_logits is not None:
            computed.backward(of_logits, self._named(grad[e]))
        return loss, accuracy

    def _pairs(self, e: int, split: str, rows: PlannedRows) -> tuple[RowIndex, RowIndex]:
        """The tokens and positions that enter; where these are the same for all batches, made once."""
        held = self._tables.get((split, e))
        if held is None or held[0] is not rows.pairs:
            tokens = RowIndex.trusted(rows.pairs[:, 0], len(self.weights[e]["embedding"]))
            positions = RowIndex.trusted(rows.pairs[:, 1], self.plans[split][e].tokens.shape[1])
            held = self._tables[split, e] = rows.pairs, tokens, positions
        return held[1:]
