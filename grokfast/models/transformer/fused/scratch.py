"""Memory in which the fused step's launches hand one another rows and partial sums, and which programs sum them."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from grokfast.models.transformer.ensemble_plan import EnsembleRows
from grokfast.models.transformer.fused import kernels, layout
from grokfast.models.transformer.fused.layout import Level, padded
from grokfast.models.transformer.fused.model import Model
from grokfast.ops.read_rows.readers import n_slots
from grokfast.ops.rows import PairIndex


class Scratch:
    """Memory of one size of batch for E models, of a forward pass: rows of each level, loss and rightness of each row.

    Attributes:
        levels, heights: of each level, and of its tiles.
        at: where the rows of each level begin in `memory`.
        values, right: of the batch's rows [E n_batch].
        transposes: a line for each tile of a weight that is transposed.
    """

    def __init__(self, model: Model, rows: EnsembleRows, n_batch: int, device: torch.device) -> None:
        self._lay_out(model, rows, n_batch, trains=False)
        self._allocate(device)
        self.transposes = torch.empty(0, kernels.TRANSPOSE.value, dtype=torch.int64, device=device)

    def _lay_out(self, model: Model, rows: EnsembleRows, n_batch: int, *, trains: bool) -> None:
        self.model, self.n_batch = model, n_batch
        self.n_models, _, _ = rows.layers[0].keys.shape
        entering = (rows.pairs.pairs if isinstance(rows.pairs, PairIndex) else rows.pairs).shape[1]
        sizes = [(entering, 0), *(layer.keys.shape[1:] for layer in rows.layers)]
        self.levels = [Level.of(model.config, i, *size) for i, size in enumerate(sizes)]
        self.levels = self.levels if trains else model.evaluation_levels(self.levels)
        self.heights = [layout.ENTERING] + [layout.HEIGHTS[1]] * (len(self.levels) - 1)
        self._end = 0
        self.at = [self._reserve(self.n_models, level.n_rows, level.stride) for level in self.levels]
        self._of_rows = [self._reserve(self.n_models, n_batch) for _ in range(2)]
        # Which a forward pass has not:
        self.logits_at, self.transposed_at, self.of_norms = 0, 0, [0] * len(self.levels)

    def _reserve(self, *sizes: int) -> int:
        """Where so many numbers begin."""
        begin = self._end
        self._end += padded(torch.Size(sizes).numel())
        return begin

    def _allocate(self, device: torch.device) -> None:
        self.memory = torch.empty(self._end, dtype=torch.float32, device=device)
        self.values, self.right = (self.memory[at : at + self.n_models * self.n_batch] for at in self._of_rows)

    def rows(self, i: int, place: str, width: int) -> Tensor:
        """[E, n_rows, width], those numbers of the rows of level i."""
        level = self.levels[i]
        size = self.n_models, level.n_rows, width
        return self.memory.as_strided(
            size, (level.n_rows * level.stride, level.stride, 1), self.at[i] + level.places[place]
        )


class GradientScratch(Scratch):
    """The same of forward and backward pass, and which programs sum what of it."""

    def __init__(self, model: Model, rows: EnsembleRows, n_batch: int, n_columns: int, device: torch.device) -> None:
        self._lay_out(model, rows, n_batch, trains=True)
        config = model.config
        d = config.d_model
        for i, level in enumerate(self.levels[1:], 1):
            self.heights[i] = layout.height(model.precision, d, level.n_rows, self.n_models)
        self.norm_blocks = [
            triton.cdiv(level.n_rows, model.rows_tile(height)["BR"]) for level, height in zip(self.levels, self.heights)
        ]
        tile = model.tiles["weights"]
        self.chunks = layout.n_chunks(max(level.n_rows for level in self.levels))
        self.n_programs = sum(
            triton.cdiv(p.n_out, tile["BO"]) * triton.cdiv(p.n_in, tile["BN"]) for p in model.products
        )
        self.splits = layout.n_splits(self.chunks, self.n_programs, self.n_models)
        self.is_direct = self.splits == 1 and not config.tied
        self.n_part = padded(model.n_parameters) + (model.n_outputs * d if config.tied else 0)

        self.classes = padded(model.n_outputs)
        self.logits_at = self._reserve(self.n_models, n_batch, self.classes)
        has_norm = config.norm != "none"
        self.of_norms = [self._reserve(self.n_models, n, 4 * d) if has_norm else 0 for n in self.norm_blocks]
        self.transposed_at = self._reserve(self.n_models, model.n_transposed)
        parts = self._reserve(0 if self.is_direct else self.splits, self.n_models, self.n_part)
        slots = [n_slots(layer.keys.shape[1:].numel(), layer.keys.n_rows) for layer in rows.layers]
        partial = self._reserve(self.n_models, max(slots), (3 + config.residual) * d)
        self._allocate(device)
        self.parts = self.memory[parts:]
        self.partials = [
            self.memory[partial:][: self.n_models * n * (3 + config.residual) * d].view(self.n_models, n, -1)
            for n in slots
        ]
        self.products = torch.tensor(self._product_programs(), device=device)
        self.transposes = torch.tensor(self._transpose_programs(), dtype=torch.int64, device=device)
        self.finish = torch.tensor(self._finish_programs(n_columns), device=device)

    def _product_programs(self) -> list[list[int]]:
        """A line for each program of weights_kernel."""
        tile, unit, lines = self.model.tiles["weights"], self.model.unit, []
        for p in self.model.products:
            level, base = self.levels[p.level], self.at[p.level]
            size = level.n_rows * level.stride
            if p.grad == "logits":
                grad = self.logits_at, self.n_batch * self.classes, self.classes
            else:
                grad = base + level.places[p.grad], size, level.stride
            to = padded(self.model.n_parameters) if p.weight not in self.model.at else self.model.at[p.weight]
            places = [*grad, base + level.places[p.x], size, level.stride]
            per_chunk = layout.rows_per_chunk(level.n_rows, self.chunks, tile["BM"])
            n_load = self.classes if p.grad == "logits" else p.n_out
            lines += [
                [
                    *(place // unit for place in places), level.n_rows, per_chunk, int(p.is_hidden), p.n_out,
                    n_load // unit, p.n_in // unit, o, i, to, self.model.place(p.bias),
                ]
                for o in range(triton.cdiv(p.n_out, tile["BO"]))
                for i in range(triton.cdiv(p.n_in, tile["BN"]))
            ]  # fmt: skip
        return lines

    def _transpose_programs(self) -> list[list[int]]:
        """A line for each tile of a weight that enter_kernel transposes."""
        model, unit, side = self.model, self.model.unit, layout.SIDE
        return [
            [
                model.at.get(p.weight, model.at["embedding"]) // unit, model.transposed[p.weight] // unit,
                p.n_out, p.n_in // unit, padded(p.n_out) // unit, o, i, 0,
            ]
            for p in model.products
            if p.weight in model.transposed
            for o in range(triton.cdiv(p.n_out, side))
            for i in range(triton.cdiv(p.n_in, side))
        ]  # fmt: skip

    def _finish_programs(self, n_columns: int) -> list[list[int]]:
        """A line for each program of finish_kernel."""
        model, config = self.model, self.model.config
        d, at = config.d_model, self.model.at
        lines = [[4, model.n_parameters, n_columns - model.n_parameters, 0, 0, 0, 0, 0]]
        for i, blocks in enumerate(self.norm_blocks):
            for inner, place in ((True, 0), (False, 2 * d)):
                gain = model.gain(i, inner)
                if gain is not None:
                    lines.append([3, at[gain], blocks, 0, self.of_norms[i] + place, 0, blocks * 4 * d, 0])
        entering = self.levels[0]
        of_x, size = self.at[0] + entering.places["OF_X"], entering.n_rows * entering.stride
        columns = model.finish_constants(d, 1)["BD"]
        for kind, (name, n) in enumerate(model.tables.items()):
            for key in range(n):
                tied = config.tied and kind == 0 and key < model.n_outputs
                extra = padded(model.n_parameters) + key * d if tied else -1
                lines += [
                    [kind, at[name], key, first, of_x, entering.stride, size, extra] for first in range(0, d, columns)
                ]
        if not self.is_direct:
            wanted = [name for p in model.products for name in (p.weight, p.bias) if name in at]
            block = kernels.BLOCK.value
            starts = sorted([*at.values(), model.n_parameters])
            for name in wanted:
                end = starts[starts.index(at[name]) + 1]
                lines += [[2, i, min(block, end - i), 0, 0, 0, 0, 0] for i in range(at[name], end, block)]
        return lines
