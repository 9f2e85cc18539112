"""The ways to compute a PairMLP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from grokfast.models.autograd import Autograd
from grokfast.models.base import FUSED, OPERATIONS, Need, PerSplit, Spec
from grokfast.models.pair_mlp.model import PairMLPConfig
from grokfast.models.runs import Runs
from grokfast.ops.pair_step import Layout, PairStep, plan
from grokfast.ops.pair_step import cpu as pair_rows
from grokfast.ops.pair_step.reference import Parameters


class Kernels(PerSplit):
    """Triton's kernels: an ensemble's loss and gradient in two launches."""

    def __init__(self, runs: Runs) -> None:
        most = {split: runs.largest if split == "train" else 0 for split in runs.rows}  # rows of a gradient
        steps = {split: self._step(runs, split, largest) for split, largest in most.items()}
        super().__init__(runs, steps)
        self.splits = steps["train"].splits

    @staticmethod
    def _step(runs: Runs, split: str, largest: int | None) -> PairStep:
        rows, spec = runs.rows[split], runs.spec
        config: Any = spec.model
        return PairStep(
            _layout(runs), rows.inputs, rows.targets, n_models=len(runs.flat), activation=config.activation,
            loss=spec.loss_op or "", precision=runs.products, n_rows=rows.counts, max_batch=largest, **_sizes(spec),
        )  # fmt: skip

    @classmethod
    def why_not(cls, spec: Spec) -> str:
        sizes = {"n_tokens": spec.data.n_tokens, "n_answers": spec.data.n_answers}
        if spec.changes_rows:
            return "rows are changed before they are shown"
        if spec.loss_op is None and not spec.why_no_triton:
            return "the loss is not in the kernels"
        return spec.why_no_triton or PairStep.fits(spec.model, spec.loss_op or "", **sizes, dtype=spec.dtype)

    @classmethod
    def words(cls, spec: Spec, obstacles: Sequence[str]) -> tuple[str, str]:
        return FUSED, "Triton"

    @classmethod
    def memory(cls, spec: Spec, *, n_parameters: int, rows: Mapping[str, int], batch: int, products: str) -> Need:
        return Need(24 * sum(rows.values()), plan.memory(1, batch, **_sizes(spec), precision=products))


class Pieces(Autograd):
    """The C++ extension, a few rows at a time, while they are in the cache; with a relu only where a unit is active."""

    def __init__(self, runs: Runs) -> None:
        super().__init__(runs)
        self._layout, self._sizes = _layout(runs), _sizes(runs.spec)

    @classmethod
    def why_not(cls, spec: Spec) -> str:
        config: Any = spec.model
        if why := spec.why_no_extension:
            return why
        if spec.changes_rows:
            return "rows are changed before they are shown"
        if config.depth != 1 or spec.loss_op is None:
            return f"depth {config.depth}" if config.depth != 1 else "the loss is not in the extension"
        is_active = pair_rows.only_active(config.activation, spec.data.n_answers)
        is_alone = torch.get_num_threads() == 1 and config.activation in pair_rows.ACTIVATIONS
        return "" if is_active or is_alone else f"{config.activation} in pieces is for one thread"

    @classmethod
    def words(cls, spec: Spec, obstacles: Sequence[str]) -> tuple[str, str]:
        config: Any = spec.model
        if pair_rows.only_active(config.activation, spec.data.n_answers):
            return FUSED, "C++ extension, only where a unit is active"
        return FUSED, "C++ extension, a few rows at a time"

    def of_model(self, e: int, split: str, batch: Tensor | None, grad: Tensor | None) -> tuple[Tensor, Tensor]:
        pairs, targets, _ = self.runs.chosen_of(e, split, batch)
        a, b = pairs.T.contiguous()
        flat, config, op = self.runs.flat, self.runs.spec.model, self.runs.spec.loss_op
        results = pair_rows.gradient(
            self._weights(flat[e]), None if grad is None else self._weights(grad[e]), a, b, targets,
            activation=config.activation, loss=op or "",  # type: ignore[attr-defined]
        )  # fmt: skip
        loss, accuracy = torch.tensor(results, dtype=flat.dtype).split(1)
        return loss, accuracy

    def _weights(self, row: Tensor) -> Parameters:
        """The parameters, or their gradients, in a model's row [P]."""
        return self._layout.parameters(row, **self._sizes)


class Operations(Autograd):
    """Autograd; the first layer is a fused operation, where there is one."""

    @classmethod
    def words(cls, spec: Spec, obstacles: Sequence[str]) -> tuple[str, str]:
        if not spec.why_no_extension:
            return OPERATIONS, "C++ extension"
        if spec.kernels == "triton" and spec.dtype is torch.float32:
            return OPERATIONS, obstacles[0]
        on_cpu = spec.device.type == "cpu" and not spec.is_reference
        return super().words(spec, [spec.why_no_extension] if on_cpu and spec.kernels is None else obstacles)


def _layout(runs: Runs) -> Layout:
    return Layout.of(dict(zip(runs.layout.names, runs.layout.shapes)))


def _sizes(spec: Spec) -> dict[str, int]:
    config: Any = spec.model
    return {"n_tokens": spec.data.n_tokens, "n_answers": spec.data.n_answers, "width": config.width}


PairMLPConfig.ways = (Kernels, Pieces, Operations)
