"""The launches of a planned transformer's gradient, forward and backward by hand: no autograd, no copy, no zero-fill.

One for the rows that enter, one for each level, in the last of which forward and backward meet; on the way back two for
each table, one for each level; one for all gradients of weights, and one for what is left to sum. An evaluation has the
forward's. With wide models the last level has three, and the others two on the way back.
"""

from __future__ import annotations

import triton
from torch import Tensor

from grokfast.models.transformer.ensemble_plan import EnsembleRows
from grokfast.models.transformer.fused import kernels, layout
from grokfast.models.transformer.fused.model import Model
from grokfast.models.transformer.fused.scratch import GradientScratch, Scratch
from grokfast.ops.batch import BatchRows
from grokfast.ops.gathered_attention import kernels as attention
from grokfast.ops.kernels import launch
from grokfast.ops.read_rows import group_readers
from grokfast.ops.rows import PairIndex


class Launches:
    """Gradient and loss of models of one kind; the gradient's scratch is made once for each size of batch."""

    def __init__(self, model: Model, sinusoids: Tensor | None) -> None:
        self.model = model
        self.sinusoids = None if sinusoids is None else sinusoids.float().contiguous()
        self._scratch: dict[tuple[int, ...], GradientScratch] = {}

    def gradient(
        self, flat: Tensor, grad: Tensor, loss: Tensor, correct: Tensor, rows: EnsembleRows, batch: BatchRows
    ) -> None:
        """As TransformerStep.gradient, for the rows to compute of a batch; `flat` and `grad` with adjacent columns."""
        model, (n_models, n_batch) = self.model, batch.targets.shape
        key = n_models, n_batch, grad.shape[1]
        if key not in self._scratch:
            self._scratch[key] = GradientScratch(model, rows, n_batch, grad.shape[1], flat.device)
        scratch = self._scratch[key]
        self._forward(flat, scratch, rows, batch, trains=True)
        for i in range(model.config.n_layers - 1, -1, -1):
            self._sum_tables(i, scratch, rows)
            for does in layout.launches(model.config.d_model, *layout.WAY_BACK[: 1 + (i > 0)]):
                self._rows(i, flat, scratch, rows, batch, **does)
        self._weights(scratch, grad)
        self._finish(scratch, grad, loss, correct, rows, batch)

    def losses(self, flat: Tensor, rows: EnsembleRows, batch: BatchRows) -> tuple[Tensor, Tensor]:
        """Loss of each row [E, B], and 1 where it is right, else 0; in memory that is this call's only."""
        scratch = Scratch(self.model, rows, batch.targets.shape[1], flat.device)
        self._forward(flat, scratch, rows, batch, trains=False)
        return scratch.values.view(batch.targets.shape), scratch.right.view(batch.targets.shape)

    def _forward(self, flat: Tensor, scratch: Scratch, rows: EnsembleRows, batch: BatchRows, trains: bool) -> None:
        """To the loss, and if `trains` back through the last layer."""
        self._enter(flat, scratch, rows)
        last = self.model.config.n_layers
        for i in range(1, last):
            self._rows(i, flat, scratch, rows, batch, FORWARD=True, PROJECT=True)
        if not trains:
            self._rows(last, flat, scratch, rows, batch, FORWARD=True, CLASSIFY=True)
            return
        for does in layout.launches(self.model.config.d_model, *layout.LAST):
            self._rows(last, flat, scratch, rows, batch, **does)

    def _enter(self, flat: Tensor, scratch: Scratch, rows: EnsembleRows) -> None:
        pairs = rows.pairs.pairs if isinstance(rows.pairs, PairIndex) else rows.pairs.contiguous()
        model, level = self.model, scratch.levels[0]
        constants = model.enter_constants(level)
        if self.sinusoids is None:
            positions, stride = flat[:, model.at["positions"] :], flat.stride(0)
        else:
            positions, stride = self.sinusoids, 0
        columns = triton.cdiv(3 * model.config.d_model, constants["BN"])
        tiles = triton.cdiv(level.n_rows, constants["BM"]) + triton.cdiv(len(scratch.transposes), columns)
        launch(
            kernels.enter_kernel, (tiles, columns, scratch.n_models),
            flat, positions, pairs, scratch.memory[scratch.at[0] :], scratch.memory[scratch.transposed_at :],
            scratch.transposes, level.n_rows, flat.stride(0), stride, pairs.stride(0), model.n_transposed,
            len(scratch.transposes), **constants,
        )  # fmt: skip

    def _rows(self, i: int, flat: Tensor, scratch: Scratch, rows: EnsembleRows, batch: BatchRows, **does: bool) -> None:
        layer, level, table = rows.layers[max(i - 1, 0)], scratch.levels[i], scratch.levels[max(i - 1, 0)]
        own, height = layer.own, scratch.heights[i]
        flags = dict.fromkeys(layout.FLAGS, False) | does
        of_level, of_table = scratch.memory[scratch.at[i] :], scratch.memory[scratch.at[max(i - 1, 0)] :]
        back, back_model = flat, flat.stride(0)
        if self.model.transposed:
            back, back_model = scratch.memory[scratch.transposed_at :], self.model.n_transposed
        launch(
            kernels.rows_kernel, (triton.cdiv(level.n_rows, height), scratch.n_models),
            flat, back, of_table, of_level, layer.keys.index, layer.keys.index if own is None else own.index,
            batch.targets, batch.share, scratch.memory[scratch.logits_at :], scratch.values, scratch.right,
            scratch.memory[scratch.of_norms[i] :], level.n_rows, table.n_rows,
            flat.stride(0), back_model, layer.keys.index.stride(0), 0 if own is None else own.index.stride(0),
            OWN=own is not None, **flags, **self.model.rows_constants(i, scratch.levels, height),
        )  # fmt: skip

    def _sum_tables(self, i: int, scratch: GradientScratch, rows: EnsembleRows) -> None:
        """What the rows of level i get from those of the level above."""
        config, layer, level = self.model.config, rows.layers[i], scratch.levels[i + 1]
        d, size = config.d_model, level.seq_len * config.n_heads
        shape = scratch.n_models, level.n_rows, level.seq_len, config.n_heads
        both = scratch.rows(i + 1, "WEIGHTS", 2 * size)
        weights, of_scores = (
            part.as_strided(shape, (*both.stride()[:2], config.n_heads, 1), part.storage_offset())
            for part in both.split(size, 2)
        )
        attention.sum_tables(
            scratch.rows(i + 1, "OF_HEADS", d), scratch.rows(i + 1, "OF_QUERY", d),
            scratch.rows(i + 1, "OF_Y", d) if config.residual else None, weights, of_scores,
            scratch.rows(i, "QKV", 3 * d), layer.keys, layer.own, scratch.rows(i, "OF_QKV", (3 + config.residual) * d),
            scratch.partials[i],
        )  # fmt: skip

    def _weights(self, scratch: GradientScratch, grad: Tensor) -> None:
        if scratch.is_direct:
            out, apart = grad, (0, grad.stride(0))
        else:
            out, apart = scratch.parts, (scratch.n_models * scratch.n_part, scratch.n_part)
        launch(
            kernels.weights_kernel, (scratch.n_programs, scratch.splits, scratch.n_models),
            scratch.memory, scratch.products, out, *apart,
            **self.model.weights_constants(scratch.chunks // scratch.splits),
        )  # fmt: skip

    def _finish(
        self,
        scratch: GradientScratch,
        grad: Tensor,
        loss: Tensor,
        correct: Tensor,
        rows: EnsembleRows,
        batch: BatchRows,
    ) -> None:
        readers = self._readers(rows.pairs)
        parts = grad if scratch.is_direct else scratch.parts
        launch(
            kernels.finish_kernel, (len(scratch.finish), scratch.n_models),
            scratch.memory, scratch.finish, parts, *readers, scratch.values, scratch.right, batch.counts, batch.share,
            grad, loss, correct, scratch.n_models * scratch.n_part, scratch.n_part, grad.stride(0),
            *(t.stride(0) for t in readers), batch.targets.shape[1],
            **self.model.finish_constants(self.model.config.d_model, scratch.splits),
        )  # fmt: skip

    def _readers(self, pairs: Tensor | PairIndex) -> list[Tensor]:
        """Start and items of the embedding's readers and of the positions'."""
        if isinstance(pairs, PairIndex):
            return pairs.readers
        n_rows = max(self.model.n_tokens, *self.model.tables.values())
        both = group_readers(pairs.permute(2, 0, 1).flatten(0, 1).contiguous(), n_rows)
        (start_a, start_b), (items_a, items_b) = (t.chunk(2) for t in (both.start, both.items))
        return [start_a, items_a, start_b, items_b]
