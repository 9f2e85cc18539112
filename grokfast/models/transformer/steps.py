"""The ways to compute a transformer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from grokfast.models.autograd import Autograd
from grokfast.models.base import FUSED, Need, PerSplit, Spec
from grokfast.models.runs import Runs
from grokfast.models.transformer.folded_step import FoldedStep
from grokfast.models.transformer.memory import memory
from grokfast.models.transformer.model import TransformerConfig
from grokfast.models.transformer.planned_cpu import ATTENTION, Planned
from grokfast.models.transformer.planned_step import TransformerStep
from grokfast.models.transformer.rows_step import RowsStep

SEVERAL = "several answers a row: every position counts"


class Kernels(PerSplit):
    """Triton's kernels: the planned step of a whole ensemble."""

    def __init__(self, runs: Runs, steps: dict[str, TransformerStep] | None = None) -> None:
        steps = steps or {
            split: TransformerStep(
                runs.module, rows.inputs, rows.targets, n_rows=rows.counts, loss=runs.spec.loss_op or "",
                precision=runs.products,
            )
            for split, rows in runs.rows.items()
        }  # fmt: skip
        super().__init__(runs, steps)

    def keep(self, models: Sequence[int]) -> Kernels:
        return Kernels(self.runs, {split: step.keep(models) for split, step in self._steps.items()})

    @classmethod
    def why_not(cls, spec: Spec) -> str:
        config: Any = spec.model
        if why := spec.why_no_triton:
            return why
        if spec.changes_rows:
            return "rows are changed before they are shown"
        if spec.loss_op is None:
            return "the loss is not in the kernels"
        if spec.has_dropout:
            return "dropout has other masks for equal prefixes"
        if spec.data.n_positions:
            return SEVERAL
        if config.attention_rate != 1:
            return ATTENTION
        return TransformerStep.fits(config, seq_len=spec.data.seq_len, device=spec.device, dtype=spec.dtype)

    @classmethod
    def words(cls, spec: Spec, obstacles: Sequence[str]) -> tuple[str, str]:
        return FUSED, "Triton, each distinct prefix once"

    @classmethod
    def memory(cls, spec: Spec, *, n_parameters: int, rows: Mapping[str, int], batch: int, products: str) -> Need:
        config: Any = spec.model
        data, outputs = spec.data, config.n_outputs(spec.data)
        taken = partial(
            memory, config, n_tokens=data.n_tokens, n_outputs=outputs, n_parameters=n_parameters, precision=products
        )
        train = taken(tokens=data.train.inputs, n_batch=batch if batch < rows["train"] else None)
        tests = [taken(tokens=s.inputs, n_batch=None, trains=False) for n, s in data.splits.items() if n != "train"]
        passing = max(train.gradient, train.measure, *(test.measure for test in tests))
        return Need(train.held + sum(test.held for test in tests), passing)


class Plain(Autograd):
    """Every position of every row."""

    @classmethod
    def words(cls, spec: Spec, obstacles: Sequence[str]) -> tuple[str, str]:
        on_cpu = spec.device.type == "cpu" and spec.kernels is None
        return super().words(spec, obstacles[1:] if on_cpu else obstacles)


TransformerConfig.ways = (Kernels, FoldedStep, RowsStep, Planned, Plain)
