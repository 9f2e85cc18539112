"""The Step of fully connected layers in the C++ extension: one call for a model, a tile of rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from grokfast.models.autograd import Autograd
from grokfast.models.base import FUSED, Spec
from grokfast.models.dense import Dense, Network
from grokfast.models.mlp import MLPConfig
from grokfast.models.runs import Runs
from grokfast.ops.mlp_rows import cpu


class Tiles(Dense):
    """One model after the other; tables that are embeddings' products are made and led back by torch."""

    def __init__(self, runs: Runs) -> None:
        super().__init__(runs)
        spec = runs.spec
        config: Any = spec.model
        self.activation, self.kind = config.activation, spec.loss.of_rows(spec.data) or ""
        self._own = [None if net.embed else self._parameters(net) for net in self.weights]
        self._to: dict[int, tuple[int, Network, cpu.Parameters]] = {}  # of each model's gradient, and where that lies

    @classmethod
    def why_not(cls, spec: Spec) -> str:
        config: Any = spec.model
        if why := spec.why_no_extension or cpu.why_not():
            return why
        if spec.has_dropout or config.residual:
            return "dropout and skip connections are not in the extension"
        if config.depth == 0:
            return "there is no hidden layer"
        if spec.loss.of_rows(spec.data) is None:
            return "the loss is not in the extension"
        n_in = 0 if spec.data.n_tokens else spec.data.seq_len
        n_weights = config.width * (n_in + (config.depth - 1) * config.width + spec.data.n_answers)
        if config.activation != "relu" and n_weights > cpu.MOST_DENSE:
            return f"{n_weights:,} weights without a relu's zeros are torch's"
        n_weights += config.width * config.width if spec.data.n_tokens else 0
        return "" if n_weights <= cpu.MOST_WEIGHTS else f"{n_weights:,} weights are more than the cache holds"

    @classmethod
    def words(cls, spec: Spec, obstacles: Sequence[str]) -> tuple[str, str]:
        return FUSED, "C++ extension, a tile of rows at a time"

    def of_model(self, e: int, split: str, batch: Tensor | None, grad: Tensor | None) -> tuple[Tensor, Tensor]:
        x, targets = self._shown(e, split, batch, trains=grad is not None)
        if self.offsets is not None:
            x = x + self.offsets
        if self.kind == "signs":
            targets = targets.long().flatten()
        own = self._own[e] or self._parameters(self.weights[e], self.weights[e].tables())
        net, to = (None, None) if grad is None else self._gradients(e, grad[e])
        found = cpu.gradient(
            own, to, x.contiguous(), targets.contiguous(), activation=self.activation, loss=self._loss(e)
        )
        if net is not None and to is not None and net.embed:
            self.through_tables(self.weights[e], net, to.weights[0])
        loss, accuracy = torch.tensor(found, dtype=torch.float32).split(1)
        return loss, accuracy

    def _loss(self, e: int) -> cpu.Loss:
        """As it is of this model at this step."""
        if self.kind != "cross_entropy":
            return cpu.Loss(self.kind)
        loss: Any = self.loss
        changed = {name: float(values) for name, values in self._of_loss(slice(e, e + 1)).items()}
        temperature = changed.get("temperature", loss.temperature)
        return cpu.Loss(self.kind, temperature, changed.get("label_smoothing", loss.label_smoothing))

    @staticmethod
    def _parameters(net: Network, tables: Tensor | None = None) -> cpu.Parameters:
        weights = [w for w, _ in net.layers if w is not None]
        if net.first:
            weights = [net.tables() if tables is None else tables, *weights]
        return cpu.Parameters(weights, [b for _, b in net.layers])

    def _gradients(self, e: int, row: Tensor) -> tuple[Network, cpu.Parameters]:
        """Views of a model's row [P], and room for the gradient of tables that are embeddings' products."""
        known = self._to.get(e)
        if known is None or known[0] != row.data_ptr():
            net = self._network(row)
            tables = None
            if net.embed:
                tables = row.new_empty(len(net.pairs()) * len(net.embed[0]), len(net.first[0]))
            known = self._to[e] = row.data_ptr(), net, self._parameters(net, tables)
        return known[1:]


MLPConfig.ways = (Tiles, Dense, Autograd)
