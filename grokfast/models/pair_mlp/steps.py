"""The ways to compute a PairMLP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from grokfast.models.autograd import Autograd
from grokfast.models.base import FUSED, OPERATIONS, Need, PerSplit, Spec
from grokfast.models.dense import Dense
from grokfast.models.pair_mlp.model import PairMLPConfig
from grokfast.models.runs import Runs
from grokfast.models.tiles import Tiles
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
        if spec.model.embed and not spec.why_no_triton:  # type: ignore[attr-defined]
            return "embeddings are not in the kernels"
        if (spec.has_dropout or spec.model.residual) and not spec.why_no_triton:  # type: ignore[attr-defined]
            return "dropout and skip connections are not in the kernels"
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
    """One hidden relu layer in the C++ extension, a few rows at a time, only where a unit is active."""

    def __init__(self, runs: Runs) -> None:
        super().__init__(runs)
        self._embed = runs.spec.model.embed  # type: ignore[attr-defined]
        self._layout, self._sizes = None if self._embed else _layout(runs), _sizes(runs.spec)

    @classmethod
    def why_not(cls, spec: Spec) -> str:
        config: Any = spec.model
        if why := spec.why_no_extension:
            return why
        if config.depth != 1 or spec.loss_op is None or spec.has_dropout:
            what = "dropout" if spec.has_dropout else "the loss"
            return f"depth {config.depth}" if config.depth != 1 else f"{what} is not in the extension"
        fits = pair_rows.only_active(config.activation, spec.data.n_answers)
        return "" if fits else "only a relu's units are passed over, and only with few classes"

    @classmethod
    def words(cls, spec: Spec, obstacles: Sequence[str]) -> tuple[str, str]:
        return FUSED, "C++ extension, only where a unit is active"

    def of_model(self, e: int, split: str, batch: Tensor | None, grad: Tensor | None) -> tuple[Tensor, Tensor]:
        pairs, targets = self._shown(e, split, batch, trains=grad is not None)
        a, b = pairs.T.contiguous()
        flat, op = self.runs.flat, self.runs.spec.loss_op
        weights = self._weights(flat[e])
        grads = None if grad is None else self._weights(grad[e], is_gradient=True)
        results = pair_rows.gradient(weights, grads, a, b, targets.contiguous(), loss=op or "")
        if grad is not None and grads is not None and self._embed:
            self._through_embeddings(flat[e], grad[e], grads)
        loss, accuracy = torch.tensor(results, dtype=flat.dtype).split(1)
        return loss, accuracy

    def _weights(self, row: Tensor, *, is_gradient: bool = False) -> Parameters:
        """The parameters, or their gradients, in a model's row [P]; with embeddings the tables are made of them, or are
        room for their gradients."""
        if self._layout is not None:
            return self._layout.parameters(row, **self._sizes)
        own = self._named(row)
        tables = [
            torch.empty(self._sizes["n_tokens"], self._sizes["width"]) if is_gradient
            else own[f"embed_{side}"] @ own[f"in_{side}"].T
            for side in "ab"
        ]  # fmt: skip
        return Parameters(tables[0], tables[1], own.get("b_in"), own["out.weight"], own.get("out.bias"))

    def _through_embeddings(self, row: Tensor, grad: Tensor, of_tables: Parameters) -> None:
        """Write the gradients of embeddings and of the first layer, whose product each table is."""
        own, to = self._named(row), self._named(grad)
        for side, table in (("a", of_tables.w_a), ("b", of_tables.w_b)):
            torch.mm(table, own[f"in_{side}"], out=to[f"embed_{side}"])
            torch.mm(table.T, own[f"embed_{side}"], out=to[f"in_{side}"])

    def _named(self, row: Tensor) -> dict[str, Tensor]:
        return {name: t[0] for name, t in self.runs.layout.views(row[None]).items()}


class Layers(Dense):
    """Several hidden layers without autograd; also one, where the extension has no first layer that is faster."""

    @classmethod
    def why_not(cls, spec: Spec) -> str:
        is_one = spec.model.depth == 1 and not spec.why_no_extension  # type: ignore[attr-defined]
        return super().why_not(spec) or ("the first layer is in the extension" if is_one else "")


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


PairMLPConfig.ways = (Kernels, Pieces, Tiles, Layers, Operations)
