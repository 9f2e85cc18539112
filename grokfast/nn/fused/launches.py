"""The launches of a planned transformer's gradient, forward and backward by hand: no autograd, no copy, no zero-fill.

One for the rows that enter, one for each level, in the last of which forward and backward meet; on the way back two for
each table, one for each level; one for all gradients of weights, and one for what is left to sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
from torch import Tensor

from grokfast.nn.ensemble_plan import EnsembleRows
from grokfast.nn.fused import kernels, layout
from grokfast.nn.fused.layout import Level, padded
from grokfast.nn.transformer import TransformerConfig
from grokfast.ops.batch import Rows
from grokfast.ops.gathered_attention import kernels as attention
from grokfast.ops.kernels import launch
from grokfast.ops.read_rows import group_readers, n_slots
from grokfast.ops.rows import PairIndex


class Model:
    """What the kernels know of a model when they are compiled."""

    def __init__(
        self, config: TransformerConfig, shapes: Mapping[str, torch.Size], n_outputs: int, loss: str, precision: str
    ) -> None:
        self.config, self.n_outputs, self.loss, self.precision = config, n_outputs, loss, precision
        self.n_tokens = shapes["embedding"][0]
        self.at = layout.offsets(shapes)
        self.n_parameters = sum(shape.numel() for shape in shapes.values())
        self.products = layout.products(config, list(shapes), n_outputs)
        self.unit = 1 if config.d_model % 16 or config.d_mlp % 16 else 16  # of rows' strides and widths, in numbers
        self.tables = {"embedding": self.n_tokens}
        if "positions" in shapes:
            self.tables["positions"] = shapes["positions"][0]
        self.tiles = {name: layout.tiles(name, precision, config, n_outputs) for name in ("enter", "rows", "weights")}

    def gain(self, level: int, inner: bool) -> str | None:
        """The gain of the LayerNorm that gives INNER, or MLP_IN, at a level."""
        norm, last = self.config.norm, self.config.n_layers
        if norm == "none" or (level == 0 and (norm == "post" or not inner)):
            return None
        if norm == "post":
            return f"blocks.{level - 1}.{'ln2' if inner else 'ln1'}.weight"
        if not inner:
            return f"blocks.{level - 1}.ln2.weight"
        return "final_norm.weight" if level == last else f"blocks.{level}.ln1.weight"

    def place(self, name: str | None) -> int:
        """Where a parameter begins; -1: there is none."""
        return -1 if name is None else self.at.get(name, -1)

    def enter_constants(self, level: Level) -> dict[str, Any]:
        gain = self.place(self.gain(0, inner=True))
        return {
            "EMBEDDING": self.at["embedding"], "GAIN": gain, "GAIN_BIAS": gain + self.config.d_model,
            "W_QKV": self.at["blocks.0.w_qkv"], "B_QKV": self.place("blocks.0.b_qkv"), "STRIDE": level.stride,
            "D": self.config.d_model, "PRECISION": self.precision,
            **{name: level.places[name] for name in ("X", "INNER", "QKV")}, **self.tiles["enter"],
        }  # fmt: skip

    def rows_constants(self, i: int, levels: list[Level]) -> dict[str, Any]:
        """Those of level i, without what it does."""
        config, below, above = self.config, f"blocks.{i - 1}", f"blocks.{i}"
        d_head, tile = config.d_model // config.n_heads, dict(self.tiles["rows"])
        if i == 0:  # few rows, and a short way
            tile["BM"] = 16
        tile |= {name: min(tile[name], tile["BM"]) for name in ("BR", "BA")}
        weights = {
            "W_O": f"{below}.w_o", "B_O": f"{below}.b_o", "W_IN": f"{below}.w_in", "B_IN": f"{below}.b_in",
            "W_OUT": f"{below}.w_out", "B_OUT": f"{below}.b_out", "W_QKV": f"{above}.w_qkv", "B_QKV": f"{above}.b_qkv",
            "GAIN": self.gain(i, inner=True), "GAIN_Y": self.gain(i, inner=False),
        }  # fmt: skip
        table = levels[max(i - 1, 0)]
        names = (
            "HEADS", "STATS", "Y", "MLP_IN", "Z", "X", "INNER", "QKV", "OF_QKV", "OF_INNER", "OF_X", "OF_Z",
            "OF_MLP_IN", "OF_Y", "OF_HEADS", "OF_QUERY", "WEIGHTS",
        )  # fmt: skip
        return {
            **{name: self.place(parameter) for name, parameter in weights.items()},
            **{name: levels[i].places.get(name, -1) for name in names},
            "UNEMBEDDING": self.at["embedding" if config.tied else "unembedding"],
            "TABLE": table.stride, "TABLE_QKV": table.places.get("QKV", -1),
            "TABLE_SKIP": table.places["X" if config.norm == "pre" else "INNER"], "STRIDE": levels[i].stride,
            "D": config.d_model, "HIDDEN": config.d_mlp, "H": config.n_heads, "DH": d_head,
            "S": max(levels[i].seq_len, 1), "V": self.n_outputs, "VS": padded(self.n_outputs), "SCALE": d_head**-0.5,
            "NORM": config.norm, "RESIDUAL": config.residual, "ACTIVATION": config.activation, "LOSS": self.loss,
            "PRECISION": self.precision, **tile,
        }  # fmt: skip

    def weights_constants(self, chunks: int) -> dict[str, Any]:
        """`chunks` are those of one program."""
        return {
            "CHUNKS": chunks, "UNIT": self.unit,
            "ACTIVATION": self.config.activation, "BIAS": any(p.bias for p in self.products),
            "PRECISION": self.precision, **self.tiles["weights"],
        }  # fmt: skip

    @staticmethod
    def finish_constants(d: int, splits: int) -> dict[str, Any]:
        return {"D": d, "SPLITS": splits, "BM": 16, "BD": min(128, max(16, triton.next_power_of_2(d))), "num_warps": 4}


class Scratch:
    """Memory of one size of batch for E models, and which programs read and write what of it."""

    def __init__(self, model: Model, rows: EnsembleRows, n_batch: int, n_columns: int, device: torch.device) -> None:
        config, self.model = model.config, model
        d = config.d_model
        self.n_models, _, _ = rows.layers[0].keys.shape
        entering = (rows.pairs.pairs if isinstance(rows.pairs, PairIndex) else rows.pairs).shape[1]
        self.levels = [Level.of(config, 0, entering, 0)]
        for i, layer in enumerate(rows.layers):
            _, n_rows, seq_len = layer.keys.shape
            self.levels.append(Level.of(config, i + 1, n_rows, seq_len))
        self.row_tiles = [
            triton.cdiv(level.n_rows, model.rows_constants(i, self.levels)["BM"]) for i, level in enumerate(self.levels)
        ]
        tile = model.tiles["weights"]
        self.chunks = layout.n_chunks(max(level.n_rows for level in self.levels))
        self.n_programs = sum(
            triton.cdiv(p.n_out, tile["BO"]) * triton.cdiv(p.n_in, tile["BN"]) for p in model.products
        )
        self.splits = layout.n_splits(self.chunks, self.n_programs, self.n_models)
        self.is_direct = self.splits == 1 and not config.tied
        self.n_part = padded(model.n_parameters) + (model.n_outputs * d if config.tied else 0)

        self._end = 0
        self.at = [self._reserve(self.n_models, level.n_rows, level.stride) for level in self.levels]
        classes = padded(model.n_outputs)
        logits = self._reserve(self.n_models, n_batch, classes)
        of_rows = [self._reserve(self.n_models, n_batch) for _ in range(2)]
        has_norm = config.norm != "none"
        self.of_norms = [self._reserve(self.n_models, n, 4 * d) if has_norm else 0 for n in self.row_tiles]
        parts = self._reserve(0 if self.is_direct else self.splits, self.n_models, self.n_part)
        slots = [n_slots(layer.keys.shape[1:].numel(), layer.keys.n_rows) for layer in rows.layers]
        partial = self._reserve(self.n_models, max(slots), (3 + config.residual) * d)
        self.memory = torch.empty(self._end, dtype=torch.float32, device=device)
        self.logits, self.parts = self.memory[logits:], self.memory[parts:]
        self.values, self.right = (self.memory[at : at + self.n_models * n_batch] for at in of_rows)
        self.partials = [
            self.memory[partial:][: self.n_models * n * (3 + config.residual) * d].view(self.n_models, n, -1)
            for n in slots
        ]
        self.logits_at, self.classes, self.n_batch = logits, classes, n_batch
        self.products = torch.tensor(self._product_programs(), device=device)
        self.finish = torch.tensor(self._finish_programs(n_columns), device=device)

    def _reserve(self, *sizes: int) -> int:
        """Where so many numbers begin."""
        begin = self._end
        self._end += padded(torch.Size(sizes).numel())
        return begin

    def rows(self, i: int, place: str, width: int) -> Tensor:
        """[E, n_rows, width], those numbers of the rows of level i."""
        level = self.levels[i]
        size = self.n_models, level.n_rows, width
        return self.memory.as_strided(
            size, (level.n_rows * level.stride, level.stride, 1), self.at[i] + level.places[place]
        )

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

    def _finish_programs(self, n_columns: int) -> list[list[int]]:
        """A line for each program of finish_kernel."""
        model, config = self.model, self.model.config
        d, at = config.d_model, self.model.at
        lines = [[4, model.n_parameters, n_columns - model.n_parameters, 0, 0, 0, 0, 0]]
        for i, tiles in enumerate(self.row_tiles):
            for inner, place in ((True, 0), (False, 2 * d)):
                gain = model.gain(i, inner)
                if gain is not None:
                    lines.append([3, at[gain], tiles, 0, self.of_norms[i] + place, 0, tiles * 4 * d, 0])
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


class Launches:
    """The gradient of models of one kind; scratch is made once for each number of models and size of batch."""

    def __init__(self, model: Model, sinusoids: Tensor | None) -> None:
        self.model = model
        self.sinusoids = None if sinusoids is None else sinusoids.float().contiguous()
        self._scratch: dict[tuple[int, ...], Scratch] = {}

    def gradient(
        self, flat: Tensor, grad: Tensor, loss: Tensor, correct: Tensor, rows: EnsembleRows, batch: Rows
    ) -> None:
        """As TransformerStep.gradient, for the rows to compute of a batch; `flat` and `grad` with adjacent columns."""
        model, (n_models, n_batch) = self.model, batch.targets.shape
        key = n_models, n_batch, grad.shape[1]
        if key not in self._scratch:
            self._scratch[key] = Scratch(model, rows, n_batch, grad.shape[1], flat.device)
        scratch, config = self._scratch[key], model.config
        pairs = rows.pairs.pairs if isinstance(rows.pairs, PairIndex) else rows.pairs.contiguous()
        self._enter(flat, pairs, scratch)
        for i in range(1, config.n_layers):
            self._rows(i, flat, scratch, rows, batch, FORWARD=True, PROJECT=True)
        self._rows(config.n_layers, flat, scratch, rows, batch, FORWARD=True, CLASSIFY=True, BACK=True)
        for i in range(config.n_layers - 1, -1, -1):
            self._sum_tables(i, scratch, rows)
            self._rows(i, flat, scratch, rows, batch, ABOVE=True, BACK=i > 0)
        self._weights(scratch, grad)
        self._finish(scratch, grad, loss, correct, rows, batch)

    def _enter(self, flat: Tensor, pairs: Tensor, scratch: Scratch) -> None:
        model, level = self.model, scratch.levels[0]
        constants = model.enter_constants(level)
        if self.sinusoids is None:
            positions, stride = flat[:, model.at["positions"] :], flat.stride(0)
        else:
            positions, stride = self.sinusoids, 0
        columns = triton.cdiv(3 * model.config.d_model, constants["BN"])
        launch(
            kernels.enter_kernel, (triton.cdiv(level.n_rows, constants["BM"]), columns, scratch.n_models),
            flat, positions, pairs, scratch.memory[scratch.at[0] :], level.n_rows, flat.stride(0), stride,
            pairs.stride(0), **constants,
        )  # fmt: skip

    def _rows(self, i: int, flat: Tensor, scratch: Scratch, rows: EnsembleRows, batch: Rows, **does: bool) -> None:
        layer, level, table = rows.layers[max(i - 1, 0)], scratch.levels[i], scratch.levels[max(i - 1, 0)]
        own = layer.own
        flags = dict.fromkeys(("FORWARD", "PROJECT", "CLASSIFY", "ABOVE", "BACK"), False) | does
        launch(
            kernels.rows_kernel, (scratch.row_tiles[i], scratch.n_models),
            flat, scratch.memory[scratch.at[max(i - 1, 0)] :], scratch.memory[scratch.at[i] :], layer.keys.index,
            layer.keys.index if own is None else own.index, batch.targets, batch.share, scratch.logits,
            scratch.values, scratch.right, scratch.memory[scratch.of_norms[i] :], level.n_rows, table.n_rows,
            flat.stride(0), layer.keys.index.stride(0), 0 if own is None else own.index.stride(0),
            OWN=own is not None, **flags, **self.model.rows_constants(i, scratch.levels),
        )  # fmt: skip

    def _sum_tables(self, i: int, scratch: Scratch, rows: EnsembleRows) -> None:
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

    def _weights(self, scratch: Scratch, grad: Tensor) -> None:
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
        self, scratch: Scratch, grad: Tensor, loss: Tensor, correct: Tensor, rows: EnsembleRows, batch: Rows
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
