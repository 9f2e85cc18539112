"""What a TransformerStep's gradient asks of a GPU, launch by launch: counted from its kernels, phase by phase."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from benchmarks.prediction.transformer_rows import INDEX, Part, Rows, Sizes, distinct
from benchmarks.prediction.work import Launch
from grokfast.models.transformer.fused import layout
from grokfast.models.transformer.fused.layout import SIDE, Level, padded
from grokfast.models.transformer.planned_step import TransformerStep
from grokfast.ops.read_rows.readers import ROWS, Known, n_slots
from grokfast.ops.rows import PairIndex


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
    heights = [layout.height(step.precision, config.d_model, level.n_rows, n_models) for level in levels[1:]]
    names = step.config, step.shapes, step.n_outputs, step.precision
    count = _Count(step, Sizes(*names, levels, [layout.ENTERING, *heights], indices))
    if n_batch is not None:
        count.choose(n_batch)
        for i, layer in enumerate(rows.layers, 1):
            if layer.keys.index.stride(0) != 0:
                count.read_tokens(i, layer.keys.known)
        if not isinstance(rows.pairs, PairIndex):
            count.pairs(step.plan.own_positions(n_batch))
    count.enter()
    for i in range(1, config.n_layers):
        count.rows(i, {"FORWARD": True, "PROJECT": True})
    for does in layout.launches(config.d_model, *layout.LAST):
        count.rows(config.n_layers, does)
    for i in range(config.n_layers - 1, -1, -1):
        count.sum_tables(i)
        for does in layout.launches(config.d_model, *layout.WAY_BACK[: 1 + (i > 0)]):
            count.rows(i, does)
    count.finish(count.weights())
    return count.launches


class _Count:
    """The launches so far."""

    def __init__(self, step: TransformerStep, sizes: Sizes) -> None:
        self.step, self.config, self.sizes, self.place = step, step.config, sizes, sizes.place
        self.levels, self.indices = sizes.levels, sizes.indices
        self.launches: list[Launch] = []
        self.tiles = {name: layout.tiles(name, step.precision, step.config) for name in ("enter", "weights")}
        self.n_rows = sizes.levels[-1].n_rows
        self.passes = 3 if step.precision == "tf32x3" else 1

    def add(self, name: str, kernel: str, programs: int, part: Part, count: int = 1, of_largest: float = 0) -> None:
        """of_largest: numbers that the largest of a model's programs asks for."""
        self.launches.append(part.launch(name, kernel, programs, self.step.n_models, self.passes, count, of_largest))

    def choose(self, n: int) -> None:
        part = Part()
        part.phase()
        part.load("batch", n * INDEX, 2 * n * INDEX)
        part.load("targets", n * INDEX)
        part.store("chosen", n * (2 * INDEX + 2))
        self.add("choose", "choose_kernel", 1, part)

    def read_tokens(self, i: int, known: Known | None) -> None:
        """The index of a level's rows, and who reads each row of the table, unless it is known: every program looks
        through all of the index that is open."""
        level, table = self.levels[i], self.levels[i - 1].n_rows
        reads = level.n_rows * level.seq_len
        part = Part()
        part.phase()
        part.load("chosen", level.n_rows * INDEX)
        part.load("tokens", reads * INDEX)
        part.store(f"keys {i}", (reads + level.n_rows) * INDEX)
        self.add(f"keys {i}", "read_tokens_kernel", -(-level.n_rows // 256), part)
        looking, seen, copying = -(-(table + 1) // ROWS), reads, 0
        part = Part()
        part.phase()
        if known is not None:
            is_open = known.blocks[:, 0] >= 0
            looking, seen, copying = int(is_open.sum()), level.n_rows, int((~is_open).sum())
            part.load(f"known readers {i}", 3 * int((known.blocks[:, 3] - known.blocks[:, 1])[~is_open].sum()) * INDEX)
        part.load(f"keys {i}", reads * INDEX, looking * seen * INDEX)
        part.store(f"readers {i}", (reads + 2 * table) * INDEX)
        self.add(f"readers {i}", "group_readers_kernel", looking + copying, part)

    def pairs(self, own_positions: int) -> None:
        """Tokens, the pairs of each position that is no table, all pairs, their readers: small launches of torch's."""
        n, keys = self.levels[0].n_rows, max(self.step.plan.tables)
        part = Part()
        part.phase()
        part.load("tokens", n * INDEX)
        part.store("pairs", 2 * n * INDEX)
        self.add("pairs", "", -(-n // 256), part, count=3 + own_positions)
        part, looking = Part(), -(-(keys + 1) // ROWS)
        part.phase()
        part.load("pairs", 2 * n * INDEX, 2 * looking * n * INDEX)
        part.store("readers of pairs", 2 * (n + 2 * keys) * INDEX)
        self.add("readers of pairs", "group_readers_kernel", 2 * looking, part)

    def enter(self) -> None:
        tile, d, n, part = self.tiles["enter"], self.config.d_model, self.levels[0].n_rows, Part()
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
        programs = 0
        if self.sizes.transposes:
            for p in layout.products(self.config, list(self.step.shapes), self.step.n_outputs):
                name = p.weight if p.weight in self.step.shapes else "embedding"
                part.load(name, p.n_out * p.n_in)
                part.store(self.sizes.transposed(name), padded(p.n_out) * p.n_in)
                programs += -(-p.n_out // SIDE) * -(-p.n_in // SIDE)
        self.add("enter", "enter_kernel", (tiles + -(-programs // columns)) * columns, part)

    def rows(self, i: int, does: Mapping[str, bool]) -> None:
        rows = Rows(self.sizes, i)
        if does.get("FORWARD"):
            rows.forward()
        if does.get("PROJECT"):
            rows.product("INNER", "QKV", f"blocks.{i}.w_qkv")
        if does.get("CLASSIFY"):
            rows.classify()
        if does.get("TURN"):
            rows.turn()
        if does.get("ABOVE"):
            rows.above()
        if does.get("TURN") or does.get("ABOVE"):
            rows.to_x(bool(does.get("ABOVE")))
        if does.get("BACK"):
            rows.back()
        self.add(f"rows {i}, {'-'.join(does).lower()}", "rows_kernel", rows.tiles, rows.part)

    def sum_tables(self, i: int) -> None:
        table, level, d, heads = self.levels[i], self.levels[i + 1], self.config.d_model, self.config.n_heads
        parts, n, reads = 3 + self.config.residual, level.n_rows, level.n_rows * level.seq_len
        slots, columns, part = n_slots(reads, table.n_rows), -(-d // min(128, d)), Part()
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
        part = Part()
        part.phase()
        part.load("partial", slots * parts * d)
        part.store(self.place(i, "OF_QKV"), table.n_rows * parts * d)
        self.add(f"sum chunks {i}", "sum_chunks_kernel", table.n_rows * -(-parts * d // min(128, parts * d)), part)

    def weights(self) -> int:
        """How many parts of the gradient there are to sum, or none."""
        tile, part = self.tiles["weights"], Part()
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
            with_bias = n * p.n_out if p.bias else 0  # which its first programs read once more
            part.load(grad, n * width, n * width * inner + with_bias)
            part.load(self.place(p.level, p.x), n * p.n_in, n * p.n_in * outer)
            asked = n * (width / outer + p.n_in / inner) + with_bias / outer
            of_programs.append(asked / splits + p.n_out * p.n_in / (outer * inner))
        part.store("grad" if is_direct else "parts", splits * sum(p.n_out * p.n_in for p in products))
        self.add("weights", "weights_kernel", n_programs * splits, part, of_largest=max(of_programs))
        return 0 if is_direct else splits

    def finish(self, splits: int) -> None:
        d, entering, shapes, part = self.config.d_model, self.levels[0].n_rows, self.step.shapes, Part()
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
            blocks = [-(-level.n_rows // self.sizes.rows_tile(i)["BR"]) for i, level in enumerate(self.levels)]
            part.load("norms", 4 * d * sum(blocks))
            programs += sum(name.endswith("weight") for name in shapes)
        self.add("finish", "finish_kernel", programs, part, of_largest=of_largest)
