"""What a launch of the fused step asks for: its phases; and those of the kernel that goes through rows of a level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.prediction.work import Launch, Use
from grokfast.models.transformer.fused import layout
from grokfast.models.transformer.fused.layout import Level, padded
from grokfast.models.transformer.model import TransformerConfig

INDEX = 2  # numbers of 4 bytes that an index takes


def distinct(index: Tensor, height: int) -> int:
    """How many different entries the tiles of `height` rows of an index [R, ...] have, together; -1 is none."""
    entries = index.flatten(1) if index.ndim > 1 else index[:, None]
    padding = entries.new_full((-len(entries) % height, entries.shape[1]), -1)
    ordered = torch.cat([entries, padding]).view(-1, height * entries.shape[1]).sort(1).values
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    is_first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return int((is_first & (ordered >= 0)).sum())


class Part:
    """What one launch does for one model, phase after phase, in numbers of 4 bytes."""

    def __init__(self) -> None:
        self.phases: list[dict[str, tuple[int, int, bool, bool]]] = []
        self.products = 0

    def phase(self, products: int = 0) -> None:
        """Begin another, of so many multiplications."""
        self.phases.append({})
        self.products += products

    def load(self, array: str, size: int, asked: int | None = None) -> None:
        self._add(array, size, size if asked is None else asked, True, False)

    def store(self, array: str, size: int) -> None:
        self._add(array, size, size, False, True)

    def _add(self, array: str, size: int, asked: int, loads: bool, stores: bool) -> None:
        before = self.phases[-1].get(array, (0, 0, loads, False))
        self.phases[-1][array] = max(size, before[0]), asked + before[1], before[2], before[3] or stores

    def launch(
        self, name: str, kernel: str, programs: int, n_models: int, passes: int, count: int, of_largest: float
    ) -> Launch:
        phases = tuple(
            tuple(Use(a, 4 * n_models * size, 4 * n_models * asked, *how) for a, (size, asked, *how) in phase.items())
            for phase in self.phases
        )
        average = sum(asked for phase in self.phases for _, asked, *_ in phase.values()) / programs
        flops, largest = 2 * n_models * passes * self.products, max(1.0, of_largest / average)
        return Launch(name, kernel, programs * n_models, phases, flops, count=count, largest=largest)


@dataclass(frozen=True)
class Sizes:
    """What there is of one model.

    Attributes:
        shapes: of its parameters.
        levels, heights: of each level, and of its tiles.
        indices: of each layer, the keys [R, S] and the own rows [R] of its rows.
    """

    config: TransformerConfig
    shapes: Mapping[str, torch.Size]
    n_outputs: int
    precision: str
    levels: Sequence[Level]
    heights: Sequence[int]
    indices: Sequence[tuple[Tensor, Tensor | None]]

    def rows_tile(self, i: int) -> dict[str, int]:
        """That of rows_kernel on level i."""
        return layout.tiles("rows", self.precision, self.config, self.n_outputs, self.heights[i])

    @property
    def transposes(self) -> bool:
        """Whether the way back has weights of its own."""
        return layout.transposes(self.precision, self.config)

    def transposed(self, name: str) -> str:
        return f"transposed {name}" if self.transposes else name

    def place(self, level: int, name: str) -> str:
        """Names for one place in a row are one array."""
        places = self.levels[level].places
        return f"level {level} {min(other for other in places if places[other] == places[name])}"


class Rows:
    """Phases of rows_kernel on the rows of a level: the methods are its flags, in their order."""

    def __init__(self, sizes: Sizes, i: int) -> None:
        self.sizes, self.i, self.level, self.config = sizes, i, sizes.levels[i], sizes.config
        self.n, self.height, self.part = self.level.n_rows, sizes.heights[i], Part()
        self.tile, self.tiles = sizes.rows_tile(i), -(-self.n // self.height)
        self.d, self.block = self.config.d_model, f"blocks.{i - 1}"
        self.has_norm, self.norm = self.config.norm != "none", self.config.norm
        self.is_one_pass = self.tile["BU"] > 0  # of the MLP: the hidden layer is written, and not read again

    def width(self, name: str) -> int:
        if name in ("Z", "OF_Z"):
            return self.config.d_mlp
        return {"QKV": 3 * self.d, "OF_QKV": 3 * self.d, "WEIGHTS": 2 * self.level.seq_len * self.config.n_heads}.get(
            name, self.d
        )

    def load(self, *names: str) -> None:
        for name in names:
            self.part.load(self.sizes.place(self.i, name), self.n * self.width(name))

    def store(self, *names: str) -> None:
        for name in names:
            self.part.store(self.sizes.place(self.i, name), self.n * self.width(name))

    def weight(self, name: str, is_back: bool = False) -> None:
        size = self.sizes.shapes[name].numel()
        self.part.load(self.sizes.transposed(name) if is_back else name, size, size * self.tiles)

    def product(self, x: str, out: str, weight: str, *beside: str, is_back: bool = False) -> None:
        self.part.phase(self.n * self.sizes.shapes[weight].numel())
        self.load(x, *beside)
        self.weight(weight, is_back)
        self.store(out)

    def normalise(self, x: str, out: str) -> None:
        if self.has_norm:
            self.part.phase()
            self.load(x)
            self.store(out)

    def normalise_back(self, out: str, *loaded: str) -> None:
        self.part.phase()
        self.load(*loaded)
        self.store(out)
        self.part.store("norms", -(-self.n // self.tile["BR"]) * 2 * self.d)

    def attend(self, products: int) -> None:
        """What both directions read: queries, keys and values of the table, and which."""
        table, reads = self.sizes.levels[self.i - 1], self.n * self.level.seq_len
        keys, own = self.sizes.indices[self.i - 1]
        of_table = 2 * distinct(keys, self.tile["BA"]) + self.own_rows(self.tile["BA"])
        size = 2 * table.n_rows + self.own_rows(self.n)
        self.part.phase(products * reads * self.d)
        self.part.load(f"keys {self.i}", (reads + (0 if own is None else self.n)) * INDEX)
        self.part.load(self.sizes.place(self.i - 1, "QKV"), size * self.d, of_table * self.d)

    def own_rows(self, height: int | None = None) -> int:
        """Different rows of the table that are a row's own, of every tile."""
        own = self.sizes.indices[self.i - 1][1]
        return self.n if own is None else distinct(own, self.height if height is None else height)

    def stats(self) -> tuple[str, int]:
        return self.sizes.place(self.i, "STATS"), self.n * 2 * self.config.n_heads

    def forward(self) -> None:
        self.attend(2)
        self.store("HEADS")
        self.part.store(*self.stats())
        self.product("HEADS", "Y", f"{self.block}.w_o")
        if self.config.residual:
            skip = "X" if self.norm == "pre" else "INNER"
            self.part.load(self.sizes.place(self.i - 1, skip), self.own_rows(self.n) * self.d, self.own_rows() * self.d)
        self.normalise("Y", "MLP_IN")
        skips = ["MLP_IN" if self.norm == "post" else "Y"] * self.config.residual
        self.mlp("MLP_IN", "Z", "X", f"{self.block}.w_in", f"{self.block}.w_out", [], skips, is_back=False)
        self.normalise("X", "INNER")

    def mlp(
        self, x: str, hidden: str, out: str, first: str, second: str, beside: list[str], skips: list[str], is_back: bool
    ) -> None:
        """Both products of the MLP, forward or back."""
        self.product(x, hidden, first, *beside, is_back=is_back)
        if self.is_one_pass:
            self.part.products += self.n * self.sizes.shapes[second].numel()
            self.weight(second, is_back)
            self.load(*skips)
            self.store(out)
        else:
            self.product(hidden, out, second, *skips, is_back=is_back)

    def classify(self) -> None:
        n, stored = self.n, padded(self.sizes.n_outputs)
        self.part.phase()
        self.load("INNER")
        self.unembedding(-(-n // self.tile["BL"]), is_back=False)
        self.part.load("targets of rows", n * (INDEX + 1))
        self.part.store("loss of rows", 2 * n)
        self.part.store("logits", n * stored)
        if stored > self.tile["BV"]:
            self.part.phase()
            self.part.load("logits", n * stored)
            self.part.store("logits", n * stored)

    def turn(self) -> None:
        self.part.phase()
        self.part.load("logits", self.n * self.sizes.n_outputs)
        self.unembedding(self.tiles, is_back=True)
        self.store("OF_INNER")

    def unembedding(self, times: int, is_back: bool) -> None:
        """A product with it, for which it is read so many times."""
        size, name = self.sizes.n_outputs * self.d, "embedding" if self.config.tied else "unembedding"
        self.part.products += self.n * size
        self.part.load(self.sizes.transposed(name) if is_back else name, size, times * size)

    def above(self) -> None:
        self.product("OF_QKV", "OF_INNER", f"blocks.{self.i}.w_qkv", is_back=True)
        if self.config.residual and self.norm != "pre":
            self.skip_of_above()

    def skip_of_above(self) -> None:
        """What the row got as a skip connection, next to the gradient of its queries, keys and values."""
        self.part.load(self.sizes.place(self.i, "OF_QKV"), self.n * 4 * self.d, self.n * self.d)

    def to_x(self, from_above: bool) -> None:
        if self.level.places["OF_X"] != self.level.places["OF_INNER"]:
            self.normalise_back("OF_X", "X", "OF_INNER")
            if from_above and self.config.residual and self.norm == "pre":
                self.skip_of_above()

    def back(self) -> None:
        w_in, w_out, residual = f"{self.block}.w_in", f"{self.block}.w_out", self.config.residual
        skips = ["OF_X"] * (residual and self.norm in ("none", "post"))
        self.mlp("OF_X", "OF_Z", "OF_MLP_IN", w_out, w_in, ["Z"], skips, is_back=True)
        if self.has_norm:
            self.normalise_back("OF_Y", "Y", "OF_MLP_IN", *(["OF_X"] * (residual and self.norm != "post")))
        self.product("OF_Y", "OF_HEADS", f"{self.block}.w_o", is_back=True)
        self.attend(3)
        self.load("OF_HEADS", "HEADS")
        self.part.load(*self.stats())
        self.store("OF_QUERY", "WEIGHTS")
