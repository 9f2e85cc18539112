"""What a TransformerStep's gradient asks of a GPU, launch by launch: counted from its kernels, phase by phase."""

from __future__ import annotations

import torch
from torch import Tensor

from grokfast.nn.fused import layout
from grokfast.nn.fused.layout import Level, padded
from grokfast.nn.transformer_step import TransformerStep
from grokfast.ops.read_rows import n_slots
from grokfast.ops.rows import PairIndex
from grokfast.ops.work import Launch, Use

INDEX = 2  # numbers of 4 bytes that an index takes


def cost(step: TransformerStep, n_batch: int | None = None) -> list[Launch]:
    """Of `gradient` on n_batch rows of each data set (None: on all); the optimizer's launches are not among them.

    FLOPs are those of the products and of attention, without padding; a product in three passes counts three times.
    Bytes are those that every program asks for: a matrix once for every tile of rows; what one product reads again,
    block after block, and a row of the table that several of a tile's rows attend to, are taken to be in the program's
    own cache from then on, not what another phase wrote. Who attends to what is taken from the first model.
    Arrays have the names of parameters, or those of `layout` with their level. Counts for the kernels, whatever device
    the step is on.
    Raises ValueError where rows of the data set are equal, which takes other launches.
    """
    config, n_models = step.config, step.n_models
    batch = None
    if n_batch is not None:  # rows all over the data set
        spread = torch.arange(n_batch, device=step.targets.device) * step.targets.shape[1] // n_batch
        batch = spread.expand(n_models, -1)
    rows = step.plan.rows(batch)
    if rows.output is not None:
        raise ValueError("step must have a data set whose rows are different, or more rows in a batch")
    entering = (rows.pairs.pairs if isinstance(rows.pairs, PairIndex) else rows.pairs).shape[1]
    levels = [Level.of(config, 0, entering, 0)]
    levels += [Level.of(config, i + 1, *layer.keys.shape[1:]) for i, layer in enumerate(rows.layers)]
    indices = [(layer.keys.index[0], None if layer.own is None else layer.own.index[0]) for layer in rows.layers]
    count = _Count(step, levels, indices)
    if n_batch is not None:
        count.choose(n_batch)
        for i, layer in enumerate(rows.layers, 1):
            if layer.keys.index.stride(0) != 0:
                count.read_tokens(i)
        if not isinstance(rows.pairs, PairIndex):
            count.pairs(step.plan.own_positions(n_batch))
    count.enter()
    for i in range(1, config.n_layers):
        count.rows(i, "forward", FORWARD=True, PROJECT=True)
    count.rows(config.n_layers, "last", FORWARD=True, CLASSIFY=True, BACK=True)
    for i in range(config.n_layers - 1, -1, -1):
        count.sum_tables(i)
        count.rows(i, "back" if i else "entering", ABOVE=True, BACK=i > 0)
    count.finish(count.weights())
    return count.launches


def distinct(index: Tensor, height: int) -> int:
    """How many different entries the tiles of `height` rows of an index [R, ...] have, together; -1 is none."""
    entries = index.flatten(1) if index.ndim > 1 else index[:, None]
    padding = entries.new_full((-len(entries) % height, entries.shape[1]), -1)
    ordered = torch.cat([entries, padding]).view(-1, height * entries.shape[1]).sort(1).values
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    is_first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return int((is_first & (ordered >= 0)).sum())


class _Part:
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


class _Count:
    """The launches so far."""

    def __init__(self, step: TransformerStep, levels: list[Level], indices: list[tuple[Tensor, Tensor | None]]) -> None:
        """indices: of each layer, one model's keys [R, S] and own rows [R]."""
        self.step, self.config, self.levels, self.indices = step, step.config, levels, indices
        self.launches: list[Launch] = []
        self.tiles = {
            name: layout.tiles(name, step.precision, step.config, step.n_outputs)
            for name in ("enter", "rows", "weights")
        }
        self.n_rows = levels[-1].n_rows
        self.passes = 3 if step.precision == "tf32x3" else 1

    def add(self, name: str, kernel: str, programs: int, part: _Part, count: int = 1, of_largest: float = 0) -> None:
        """of_largest: numbers that the largest of a model's programs asks for."""
        self.launches.append(part.launch(name, kernel, programs, self.step.n_models, self.passes, count, of_largest))

    def height(self, level: int) -> int:
        """Rows of a tile of rows_kernel."""
        return 16 if level == 0 else self.tiles["rows"]["BM"]

    def place(self, level: int, name: str) -> str:
        """Names for one place in a row are one array."""
        places = self.levels[level].places
        return f"level {level} {min(other for other in places if places[other] == places[name])}"

    def choose(self, n: int) -> None:
        part = _Part()
        part.phase()
        part.load("batch", n * INDEX, 2 * n * INDEX)
        part.load("targets", n * INDEX)
        part.store("chosen", n * (2 * INDEX + 2))
        self.add("choose", "choose_kernel", 1, part)

    def read_tokens(self, i: int) -> None:
        """The index of a level's rows, and who reads each row of the table: every program looks through all of it."""
        level, table = self.levels[i], self.levels[i - 1].n_rows
        reads = level.n_rows * level.seq_len
        part = _Part()
        part.phase()
        part.load("chosen", level.n_rows * INDEX)
        part.load("tokens", reads * INDEX)
        part.store(f"keys {i}", (reads + level.n_rows) * INDEX)
        self.add(f"keys {i}", "read_tokens_kernel", -(-level.n_rows // 256), part)
        part, programs = _Part(), -(-(table + 1) // 4)
        part.phase()
        part.load(f"keys {i}", reads * INDEX, programs * reads * INDEX)
        part.store(f"readers {i}", (reads + 2 * table) * INDEX)
        self.add(f"readers {i}", "group_readers_kernel", programs, part)

    def pairs(self, own_positions: int) -> None:
        """Tokens, the pairs of each position that is no table, all pairs, their readers: small launches of torch's."""
        n, keys = self.levels[0].n_rows, max(self.step.plan.tables)
        part = _Part()
        part.phase()
        part.load("tokens", n * INDEX)
        part.store("pairs", 2 * n * INDEX)
        self.add("pairs", "", -(-n // 256), part, count=3 + own_positions)
        part, programs = _Part(), -(-(keys + 1) // 4)
        part.phase()
        part.load("pairs", 2 * n * INDEX, 2 * programs * n * INDEX)
        part.store("readers of pairs", 2 * (n + 2 * keys) * INDEX)
        self.add("readers of pairs", "group_readers_kernel", 2 * programs, part)

    def enter(self) -> None:
        tile, d, n, part = self.tiles["enter"], self.config.d_model, self.levels[0].n_rows, _Part()
        columns, tiles = -(-3 * d // tile["BN"]), -(-n // tile["BM"])
        part.phase(3 * n * d * d)
        part.load("pairs", 2 * n * INDEX, 2 * n * INDEX * columns)
        for name, size in zip(("embedding", "positions"), self.step.plan.tables):
            part.load(name, size * d, n * d * columns)
        part.load("blocks.0.w_qkv", 3 * d * d, tiles * 3 * d * d)
        part.store(self.place(0, "X"), n * d)
        if self.place(0, "INNER") != self.place(0, "X"):
            part.store(self.place(0, "INNER"), n * d)
        part.store(self.place(0, "QKV"), n * 3 * d)
        self.add("enter", "enter_kernel", tiles * columns, part)

    def rows(self, i: int, name: str, **does: bool) -> None:
        rows = _Rows(self, i)
        if does.get("FORWARD"):
            rows.forward()
        if does.get("PROJECT"):
            rows.product("INNER", "QKV", f"blocks.{i}.w_qkv")
        if does.get("CLASSIFY"):
            rows.classify()
        if does.get("ABOVE"):
            rows.above()
        if does.get("CLASSIFY") or does.get("ABOVE"):
            rows.to_x(bool(does.get("ABOVE")))
        if does.get("BACK"):
            rows.back()
        self.add(f"rows {i}, {name}", "rows_kernel", rows.tiles, rows.part)

    def sum_tables(self, i: int) -> None:
        table, level, d, heads = self.levels[i], self.levels[i + 1], self.config.d_model, self.config.n_heads
        parts, n, reads = 3 + self.config.residual, level.n_rows, level.n_rows * level.seq_len
        slots, columns, part = n_slots(reads, table.n_rows), -(-d // min(128, d)), _Part()
        part.phase(2 * reads * d)
        part.load(f"readers {i + 1}", (reads + 2 * slots) * INDEX)
        part.load(self.place(i + 1, "OF_HEADS"), n * d, reads * d)
        part.load(self.place(i + 1, "WEIGHTS"), 2 * reads * heads)
        own = self.indices[i][1]
        queries = table.n_rows if own is None else distinct(own, n)
        part.load(self.place(i, "QKV"), queries * d, min(reads, slots * queries) * d)
        part.load(self.place(i + 1, "OF_QUERY"), n * d)
        if self.config.residual:
            part.load(self.place(i + 1, "OF_Y"), n * d)
        part.store("partial", slots * parts * d)
        self.add(f"sum tables {i}", "gathered_attention_bwd_table_kernel", slots * columns, part)
        part = _Part()
        part.phase()
        part.load("partial", slots * parts * d)
        part.store(self.place(i, "OF_QKV"), table.n_rows * parts * d)
        self.add(f"sum chunks {i}", "sum_chunks_kernel", table.n_rows * -(-parts * d // min(128, parts * d)), part)

    def weights(self) -> int:
        """How many parts of the gradient there are to sum, or none."""
        tile, part = self.tiles["weights"], _Part()
        products = layout.products(self.config, list(self.step.shapes), self.step.n_outputs)
        cut = [(-(-p.n_out // tile["BO"]), -(-p.n_in // tile["BN"])) for p in products]
        n_programs = sum(outer * inner for outer, inner in cut)
        chunks = layout.n_chunks(max(level.n_rows for level in self.levels))
        splits = layout.n_splits(chunks, n_programs, self.step.n_models)
        is_direct = splits == 1 and not self.config.tied
        part.phase(sum(self.levels[p.level].n_rows * p.n_out * p.n_in for p in products))
        of_programs = []
        for p, (outer, inner) in zip(products, cut):
            n = self.levels[p.level].n_rows
            grad = "logits" if p.grad == "logits" else self.place(p.level, p.grad)
            width = padded(p.n_out) if p.grad == "logits" else p.n_out
            part.load(grad, n * width, n * width * inner)
            part.load(self.place(p.level, p.x), n * p.n_in, n * p.n_in * outer)
            of_programs.append(n * (width / outer + p.n_in / inner) / splits + p.n_out * p.n_in / (outer * inner))
        part.store("grad" if is_direct else "parts", splits * sum(p.n_out * p.n_in for p in products))
        self.add("weights", "weights_kernel", n_programs * splits, part, of_largest=max(of_programs))
        return 0 if is_direct else splits

    def finish(self, splits: int) -> None:
        d, entering, shapes, part = self.config.d_model, self.levels[0].n_rows, self.step.shapes, _Part()
        tables = {name: shapes[name][0] for name in ("embedding", "positions") if name in shapes}
        block = min(128, d)
        programs = 1 + sum(tables.values()) * -(-d // block)
        of_largest = max(4 * self.n_rows, *(entering / keys * block for keys in tables.values()))
        part.phase()
        part.load("readers of pairs", len(tables) * entering * INDEX)
        part.load(self.place(0, "OF_X"), entering * d, len(tables) * entering * d)
        part.load("loss of rows", 4 * self.n_rows)
        part.store("grad", sum(tables.values()) * d)
        if splits:
            products = layout.products(self.config, list(shapes), self.step.n_outputs)
            sizes = [shapes[name].numel() for p in products for name in (p.weight, p.bias) if name in shapes]
            part.load("parts", splits * sum(sizes))
            part.store("grad", sum(sizes))
            programs += sum(-(-size // 1024) for size in sizes)
        if self.config.norm != "none":
            tiles = [-(-level.n_rows // self.height(i)) for i, level in enumerate(self.levels)]
            part.load("norms", 4 * d * sum(tiles))
            programs += sum(name.endswith("weight") for name in shapes)
        self.add("finish", "finish_kernel", programs, part, of_largest=of_largest)


class _Rows:
    """Phases of rows_kernel on the rows of a level: the methods are its flags, in their order."""

    def __init__(self, count: _Count, i: int) -> None:
        self.count, self.i, self.level, self.config = count, i, count.levels[i], count.config
        self.n, self.height, self.part = self.level.n_rows, count.height(i), _Part()
        self.tiles = -(-self.n // self.height)
        self.d, self.block = self.config.d_model, f"blocks.{i - 1}"
        self.has_norm, self.norm = self.config.norm != "none", self.config.norm
        self.is_one_pass = count.tiles["rows"]["BU"] > 0  # of the MLP: the hidden layer is written, and not read again

    def width(self, name: str) -> int:
        if name in ("Z", "OF_Z"):
            return self.config.d_mlp
        return {"QKV": 3 * self.d, "OF_QKV": 3 * self.d, "WEIGHTS": 2 * self.level.seq_len * self.config.n_heads}.get(
            name, self.d
        )

    def load(self, *names: str) -> None:
        for name in names:
            self.part.load(self.count.place(self.i, name), self.n * self.width(name))

    def store(self, *names: str) -> None:
        for name in names:
            self.part.store(self.count.place(self.i, name), self.n * self.width(name))

    def weight(self, name: str) -> None:
        size = self.count.step.shapes[name].numel()
        self.part.load(name, size, size * self.tiles)

    def product(self, x: str, out: str, weight: str, *beside: str) -> None:
        self.part.phase(self.n * self.count.step.shapes[weight].numel())
        self.load(x, *beside)
        self.weight(weight)
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
        self.part.store("norms", self.tiles * 2 * self.d)

    def attend(self, products: int) -> None:
        """What both directions read: queries, keys and values of the table, and which."""
        table, reads = self.count.levels[self.i - 1], self.n * self.level.seq_len
        keys, own = self.count.indices[self.i - 1]
        of_table = 2 * distinct(keys, self.height) + self.own_rows()
        size = 2 * table.n_rows + self.own_rows(self.n)
        self.part.phase(products * reads * self.d)
        self.part.load(f"keys {self.i}", (reads + (0 if own is None else self.n)) * INDEX)
        self.part.load(self.count.place(self.i - 1, "QKV"), size * self.d, of_table * self.d)

    def own_rows(self, height: int | None = None) -> int:
        """Different rows of the table that are a row's own, of every tile."""
        own = self.count.indices[self.i - 1][1]
        return self.n if own is None else distinct(own, self.height if height is None else height)

    def stats(self) -> tuple[str, int]:
        return self.count.place(self.i, "STATS"), self.n * 2 * self.config.n_heads

    def forward(self) -> None:
        self.attend(2)
        self.store("HEADS")
        self.part.store(*self.stats())
        self.product("HEADS", "Y", f"{self.block}.w_o")
        if self.config.residual:
            skip = "X" if self.norm == "pre" else "INNER"
            self.part.load(self.count.place(self.i - 1, skip), self.own_rows(self.n) * self.d, self.own_rows() * self.d)
        self.normalise("Y", "MLP_IN")
        skips = ["MLP_IN" if self.norm == "post" else "Y"] * self.config.residual
        self.mlp("MLP_IN", "Z", "X", f"{self.block}.w_in", f"{self.block}.w_out", [], skips)
        self.normalise("X", "INNER")

    def mlp(self, x: str, hidden: str, out: str, first: str, second: str, beside: list[str], skips: list[str]) -> None:
        """Both products of the MLP, forward or back."""
        self.product(x, hidden, first, *beside)
        if self.is_one_pass:
            self.part.products += self.n * self.count.step.shapes[second].numel()
            self.weight(second)
            self.load(*skips)
            self.store(out)
        else:
            self.product(hidden, out, second, *skips)

    def classify(self) -> None:
        step, n, stored = self.count.step, self.n, padded(self.count.step.n_outputs)
        weight = "embedding" if self.config.tied else "unembedding"
        size = step.n_outputs * self.d
        self.part.phase(2 * n * size)
        self.load("INNER")
        self.part.load(weight, size, self.tiles * size)
        self.part.load("targets of rows", n * (INDEX + 1))
        self.part.store("loss of rows", 2 * n)
        self.part.store("logits", n * stored)
        if stored > self.count.tiles["rows"]["BV"]:
            self.part.phase()
            self.part.load("logits", n * stored)
            self.part.store("logits", n * stored)
        self.part.phase()
        self.part.load("logits", n * stored)
        self.part.load(weight, size, self.tiles * size)
        self.store("OF_INNER")

    def above(self) -> None:
        self.product("OF_QKV", "OF_INNER", f"blocks.{self.i}.w_qkv")
        if self.config.residual and self.norm != "pre":
            self.skip_of_above()

    def skip_of_above(self) -> None:
        """What the row got as a skip connection, next to the gradient of its queries, keys and values."""
        self.part.load(self.count.place(self.i, "OF_QKV"), self.n * 4 * self.d, self.n * self.d)

    def to_x(self, from_above: bool) -> None:
        if self.level.places["OF_X"] != self.level.places["OF_INNER"]:
            self.normalise_back("OF_X", "X", "OF_INNER")
            if from_above and self.config.residual and self.norm == "pre":
                self.skip_of_above()

    def back(self) -> None:
        w_in, w_out, residual = f"{self.block}.w_in", f"{self.block}.w_out", self.config.residual
        skips = ["OF_X"] * (residual and self.norm in ("none", "post"))
        self.mlp("OF_X", "OF_Z", "OF_MLP_IN", w_out, w_in, ["Z"], skips)
        if self.has_norm:
            self.normalise_back("OF_Y", "Y", "OF_MLP_IN", *(["OF_X"] * (residual and self.norm != "post")))
        self.product("OF_Y", "OF_HEADS", f"{self.block}.w_o")
        self.attend(3)
        self.load("OF_HEADS", "HEADS")
        self.part.load(*self.stats())
        self.store("OF_QUERY", "WEIGHTS")
