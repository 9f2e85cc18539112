"""A planned transformer as the fused step's kernels are compiled for it: where its parameters lie, tiles, flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton

from grokfast.models.transformer.fused import layout
from grokfast.models.transformer.fused.layout import Level, padded
from grokfast.models.transformer.model import TransformerConfig


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
        self.unit = layout.unit(config)
        self.transposed, self.n_transposed = (
            layout.transposed(self.products) if layout.transposes(precision, config) else ({}, 0)
        )
        self.tables = {"embedding": self.n_tokens}
        if "positions" in shapes:
            self.tables["positions"] = shapes["positions"][0]
        self.tiles = {name: layout.tiles(name, precision, config, n_outputs) for name in ("enter", "weights")}

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
            "D": self.config.d_model, "TRANSPOSES": self.n_transposed > 0, "UNIT": self.unit,
            "PRECISION": self.precision, **{name: level.places[name] for name in ("X", "INNER", "QKV")},
            **self.tiles["enter"],
        }  # fmt: skip

    def rows_tile(self, height: int, trains: bool = True) -> dict[str, int]:
        return layout.tiles("rows", self.precision, self.config, self.n_outputs, height, trains)

    def evaluation_levels(self, levels: Sequence[Level]) -> list[Level]:
        """Those of an evaluation, with as many rows."""
        has_hidden = self.rows_tile(layout.HEIGHTS[1])["BU"] == 0
        return [
            Level.of_evaluation(self.config, i, level.n_rows, level.seq_len, has_hidden=has_hidden)
            for i, level in enumerate(levels)
        ]

    def rows_constants(self, i: int, levels: list[Level], height: int) -> dict[str, Any]:
        """Those of level i in tiles of so many rows, without what it does."""
        config, below, above = self.config, f"blocks.{i - 1}", f"blocks.{i}"
        d_head, tile = config.d_model // config.n_heads, self.rows_tile(height, levels[i].has_gradients)
        weights = {
            "W_O": f"{below}.w_o", "B_O": f"{below}.b_o", "W_IN": f"{below}.w_in", "B_IN": f"{below}.b_in",
            "W_OUT": f"{below}.w_out", "B_OUT": f"{below}.b_out", "W_QKV": f"{above}.w_qkv", "B_QKV": f"{above}.b_qkv",
            "GAIN": self.gain(i, inner=True), "GAIN_Y": self.gain(i, inner=False),
        }  # fmt: skip
        back = self.transposed or self.at
        ways_back = {
            "O_BACK": f"{below}.w_o", "IN_BACK": f"{below}.w_in", "OUT_BACK": f"{below}.w_out",
            "QKV_BACK": f"{above}.w_qkv",
        }  # fmt: skip
        unembedding = self.at["embedding" if config.tied else "unembedding"]
        table = levels[max(i - 1, 0)]
        names = (
            "HEADS", "STATS", "Y", "MLP_IN", "Z", "X", "INNER", "QKV", "OF_QKV", "OF_INNER", "OF_X", "OF_Z",
            "OF_MLP_IN", "OF_Y", "OF_HEADS", "OF_QUERY", "WEIGHTS",
        )  # fmt: skip
        return {
            **{name: self.place(parameter) for name, parameter in weights.items()},
            **{name: levels[i].places.get(name, -1) for name in names},
            **{name: back.get(parameter, -1) for name, parameter in ways_back.items()},
            "TRANSPOSED": bool(self.transposed), "UNEMBEDDING": unembedding,
            "UNEMBEDDING_BACK": back.get("unembedding", unembedding),
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
