"""The Step of a one-layer transformer without LayerNorm on a CPU: what is linear folded into tables (folding.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from grokfast import backend
from grokfast.models.base import OPERATIONS, Spec
from grokfast.models.runs import Runs
from grokfast.models.transformer.folding import FoldedRows, fold, unfold
from grokfast.models.transformer.model import TransformerConfig
from grokfast.models.transformer.plan import Plan
from grokfast.models.transformer.planned_cpu import Written
from grokfast.ops.mixed_rows import cpu as mixed_rows
from grokfast.ops.products import product


class FoldedStep(Written):
    """Of tables straight to hidden units and logits."""

    prefix = "blocks.0."

    def __init__(self, runs: Runs, plans: dict[str, list[Plan]] | None = None) -> None:
        super().__init__(runs, plans)
        self._whole: dict[tuple[str, int], tuple[FoldedRows, Tensor]] = {}
        self._held: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def keep(self, models: Sequence[int]) -> FoldedStep:
        return FoldedStep(self.runs, {split: [plans[i] for i in models] for split, plans in self.plans.items()})

    @classmethod
    def why_not(cls, spec: Spec) -> str:
        config: Any = spec.model
        if spec.why_no_extension:
            return spec.why_no_extension
        if config.n_layers > 1 or config.norm != "none":
            return "what a layer gives is linear in its tables only in one layer without LayerNorm"
        if config.activation != "relu" or not config.residual:
            return "folded are relu networks with skip connections"
        if spec.has_dropout or spec.changes_rows or spec.data.n_positions:
            return "folded are the answers of one position, without dropout, of rows as they are"
        n = len(spec.data.train)
        folded, planned = work(
            config, Plan(config, spec.data.train.inputs), min(spec.batch_size or n, n), config.n_outputs(spec.data)
        )
        return "" if folded < planned else f"{folded / planned:.1f} times the multiplications if folded"

    @classmethod
    def words(cls, spec: Spec, obstacles: Sequence[str]) -> tuple[str, str]:
        return OPERATIONS, "C++ extension, folded: tables straight to hidden units and logits"

    def of_model(self, e: int, split: str, batch: Tensor | None, grad: Tensor | None) -> tuple[Tensor, Tensor]:
        if backend.current() == "reference":
            with torch.set_grad_enabled(grad is not None):
                return super().of_model(e, split, batch, grad)
        if torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return self.of_model(e, split, batch, grad)
        rows, targets = self._chosen(e, split, batch)
        folded = fold(self.config, self.weights[e], rows)
        mixture = mixed_rows.Mixture(
            folded.tables, folded.scores, folded.base, rows.keys, rows.query, rows.common, self.config.attention_rate
        )
        n, units, padded = len(targets), self.config.d_mlp, folded.tables.shape[2] - self.config.d_mlp
        hidden, logits = self._room("hidden", n, units), self._room("logits", n, padded)
        kept = None
        if _only_active(units, padded):
            kept = mixed_rows.folded_forward(mixture, folded.to_logits, hidden, logits)
        else:
            weights = mixed_rows.forward(mixture, hidden, logits)
            logits = product(hidden, folded.to_logits.T, skip=logits)
        of_logits = None if grad is None else self._room("of_logits", n, padded)
        loss, accuracy = self._classify(e, logits, targets, of_logits)
        if grad is None or of_logits is None:
            return loss, accuracy
        to = torch.empty_like(folded.tables), torch.empty_like(folded.scores), torch.empty_like(folded.base)
        of_products = torch.empty_like(folded.to_logits)
        if kept is not None:
            scratch = self._room("scratch", mixture.threads(), n, 64)
            mixed_rows.folded_backward(mixture, kept, of_logits, scratch, (*to, of_products))
        else:
            of_hidden = product(of_logits, folded.to_logits)
            of_hidden = torch.ops.aten.threshold_backward(of_hidden, hidden, 0)
            torch.mm(hidden.T, of_logits, out=of_products)
            mixed_rows.backward(mixture, weights, of_hidden, of_logits, to)
        unfold(self.config, self.weights[e], rows, folded, (*to, of_products), self._named(grad[e]))
        return loss, accuracy

    def _chosen(self, e: int, split: str, batch: Tensor | None) -> tuple[FoldedRows, Tensor]:
        """The rows of model e, and their targets in the same order; those of whole splits are kept."""
        if batch is None and (split, e) in self._whole:
            return self._whole[split, e]
        _, targets, own = self.runs.chosen_of(e, split, batch)
        rows = FoldedRows.of(self.plans[split][e], self.runs.spec.data.n_tokens, own)
        found = rows, targets[rows.order]
        if own is None:
            self._whole[split, e] = found
        return found

    def _room(self, name: str, *shape: int) -> Tensor:
        """Zeros at first, to write to: memory that comes anew from the system costs more."""
        key = (name, shape)
        if key not in self._held:
            self._held[key] = self.runs.flat.new_zeros(shape)
        return self._held[key]


def _only_active(units: int, n_logits: int) -> bool:
    """Whether the extension takes units to logits and back, where they are active, while they are in the cache."""
    return backend.load_extension().active_products_fit(n_logits, units)


def work(config: TransformerConfig, plan: Plan, batch: int, n_outputs: int) -> tuple[int, int]:
    """Multiplications of a forward pass, folded and only planned, of the training rows or `batch` of them."""
    rows = plan.rows(torch.arange(batch))
    (layer,) = rows.layers
    n_keys, d, units = layer.keys.n_rows, config.d_model, config.d_mlp
    width, n_queries = units + n_outputs, n_keys - layer.first
    slots = layer.keys.shape[1] - (plan.common_position is not None)
    computed = layer.keys.shape[0]  # rows, or distinct ones
    tables = n_keys * 3 * d * d
    of_tables = d * d * width + n_keys * d * width + n_queries * (n_keys * d + width * d) + units * n_outputs * d
    of_rows = batch * (units * n_outputs + slots * config.n_heads * width)
    planned = computed * (2 * layer.keys.shape[1] * d + d * d + 2 * d * units + d * n_outputs)
    return tables + of_tables + of_rows, tables + planned
