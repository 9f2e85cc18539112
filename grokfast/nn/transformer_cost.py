"""What a TransformerStep's gradient costs on a GPU, counted from its launches: bytes, FLOPs and launches."""

from __future__ import annotations

from typing import NamedTuple

from grokfast.nn.fused import layout
from grokfast.nn.fused.layout import Level, padded
from grokfast.nn.transformer_step import TransformerStep
from grokfast.ops.read_rows import n_slots
from grokfast.ops.rows import PairIndex


class Cost(NamedTuple):
    """Of all models together."""

    bytes: int
    flops: int
    launches: int


def cost(step: TransformerStep, n_batch: int | None = None) -> Cost:
    """Of `gradient` on n_batch rows of each data set (None: on all); the optimizer's launch is not in it.

    FLOPs are those of the products and of attention, without padding; a product in three passes counts three times.
    Bytes are those that every program asks for, whichever cache answers: a matrix once for every tile of rows; what one
    product reads again, block after block, is taken to be in the program's own cache, not what another wrote there.
    Counts for the kernels, whatever device the step is on.
    Raises ValueError where rows of the data set are equal, which takes other launches.
    """
    config, n_models = step.config, step.n_models
    rows = step.plan.rows() if n_batch is None else step.plan.rows(step.targets.new_zeros(n_models, n_batch))
    if rows.output is not None:
        raise ValueError("step must have a data set whose rows are different, or more rows in a batch")
    entering = (rows.pairs.pairs if isinstance(rows.pairs, PairIndex) else rows.pairs).shape[1]
    levels = [Level.of(config, 0, entering, 0)]
    levels += [Level.of(config, i + 1, *layer.keys.shape[1:]) for i, layer in enumerate(rows.layers)]
    count = _Count(step)
    n_rows = step.targets.shape[1] if n_batch is None else n_batch
    if n_batch is not None:
        count.add(1, 8 * n_rows)  # which rows count
        for level, layer in zip(levels[1:], rows.layers):
            if layer.keys.index.stride(0) != 0:
                count.add(2, 4 * level.n_rows * level.seq_len)  # the index, and who reads each row
    count.enter(entering)
    for i, level in enumerate(levels[1:], 1):
        count.forward(level)
        if i < len(levels) - 1:
            count.rows(level.n_rows, config.d_model, 3 * config.d_model)
        else:
            count.classify(n_rows)
            count.back(level)
    for i in range(config.n_layers - 1, -1, -1):
        count.sum_tables(levels[i], levels[i + 1])
        count.above(levels[i], 16 if i == 0 else None)
        if i > 0:
            count.back(levels[i])
    splits = count.weights(levels)
    count.finish(entering, n_rows, levels, splits)
    if not isinstance(rows.pairs, PairIndex):
        own = step.plan.own_positions(n_rows)
        count.launches += 4 + own  # tokens, pairs of each position that is no table, all pairs, their readers
    passes = 3 if step.precision == "tf32x3" else 1
    return Cost(4 * n_models * count.numbers, 2 * n_models * passes * count.products, count.launches)


class _Count:
    """Launches; and of one model numbers read or written, and multiplications."""

    def __init__(self, step: TransformerStep) -> None:
        config = step.config
        self.launches, self.numbers, self.products = 0, 0, 0
        self.step, self.config, self.d = step, config, config.d_model
        self.tiles = {
            name: layout.tiles(name, step.precision, config, step.n_outputs) for name in ("enter", "rows", "weights")
        }
        self.has_norm = config.norm != "none"
        self.is_one_pass = self.tiles["rows"]["BU"] > 0  # of the MLP: the hidden layer is written, and not read again

    def add(self, launches: int, numbers: int, products: int = 0) -> None:
        self.launches += launches
        self.numbers += numbers
        self.products += products

    def rows(self, n: int, n_in: int, n_out: int, beside: int = 0, height: int | None = None) -> None:
        """A product of n rows in a launch of theirs, and how many numbers beside it each reads."""
        tiles = -(-n // (self.tiles["rows"]["BM"] if height is None else height))
        self.add(0, n * (n_in + n_out + beside) + tiles * n_in * n_out, n * n_in * n_out)

    def enter(self, n: int) -> None:
        tile, d = self.tiles["enter"], self.d
        columns, tables = -(-3 * d // tile["BN"]), 1 + (self.config.norm in ("pre", "replace"))
        self.add(1, n * (2 * d * columns + (tables + 3) * d) + -(-n // tile["BM"]) * 3 * d * d, 3 * n * d * d)

    def forward(self, level: Level) -> None:
        n, d, hidden, heads = level.n_rows, self.d, self.config.d_mlp, self.config.n_heads
        reads = n * level.seq_len
        self.add(1, 2 * reads + 2 * reads * d + 2 * n * d + 2 * n * heads, 2 * reads * d)  # scores and mix
        self.rows(n, d, d, self.config.residual * d)
        self.rows(n, d, hidden)
        self.rows(n, hidden, d, self.config.residual * d)
        self.add(0, 4 * n * d * self.has_norm - n * hidden * self.is_one_pass)

    def classify(self, n: int) -> None:
        tile, d, classes = self.tiles["rows"], self.d, self.step.n_outputs
        stored = padded(classes)
        tiles, of_logits = -(-n // tile["BM"]), 4 if stored > tile["BV"] else 2
        self.add(0, n * (2 * d + of_logits * stored) + 2 * tiles * classes * d, 2 * n * classes * d)
        self.add(0, 4 * n)  # loss, right answers, share, target
        self.add(0, self.has_norm * (3 * n + 2 * tiles) * d)  # the last LayerNorm's way back

    def above(self, level: Level, height: int | None) -> None:
        n, d = level.n_rows, self.d
        self.launches += 1
        self.rows(n, 3 * d, d, self.config.residual * d, height)
        tiles = -(-n // (height or self.tiles["rows"]["BM"]))
        self.add(0, (level.places["OF_X"] != level.places["OF_INNER"]) * (3 * n + 2 * tiles) * d)

    def back(self, level: Level) -> None:
        n, d, hidden, heads = level.n_rows, self.d, self.config.d_mlp, self.config.n_heads
        reads = n * level.seq_len
        self.rows(n, d, hidden, hidden)
        self.rows(n, hidden, d, self.config.residual * d)
        self.add(0, -n * hidden * self.is_one_pass)
        self.rows(n, d, d)
        self.add(0, self.has_norm * (4 * n + 2 * -(-n // self.tiles["rows"]["BM"])) * d)
        self.add(0, 2 * reads + 2 * reads * d + 4 * n * d + 2 * (n + reads) * heads, 3 * reads * d)

    def sum_tables(self, table: Level, level: Level) -> None:
        n, d, parts, reads = level.n_rows, self.d, 3 + self.config.residual, level.n_rows * level.seq_len
        slots = n_slots(reads, table.n_rows)
        self.add(1, 2 * reads * d + (parts - 2) * n * d + slots * parts * d, 2 * reads * d)
        self.add(1, (slots + table.n_rows) * parts * d)

    def weights(self, levels: list[Level]) -> int:
        """In one launch; how many parts of the gradient there are to sum, or none."""
        tile, n_programs = self.tiles["weights"], 0
        products = layout.products(self.config, list(self.step.shapes), self.step.n_outputs)
        size = 0
        for p in products:
            n = levels[p.level].n_rows
            outer, inner = -(-p.n_out // tile["BO"]), -(-p.n_in // tile["BN"])
            self.add(0, n * (p.n_out * inner + p.n_in * outer), n * p.n_out * p.n_in)
            n_programs += outer * inner
            size += p.n_out * p.n_in
        chunks = layout.n_chunks(max(level.n_rows for level in levels))
        splits = layout.n_splits(chunks, n_programs, self.step.n_models)
        self.add(1, splits * size)
        return 0 if splits == 1 and not self.config.tied else splits

    def finish(self, entering: int, n_rows: int, levels: list[Level], splits: int) -> None:
        d, sizes = self.d, [shape.numel() for shape in self.step.shapes.values()]
        tables = 1 + (self.config.positions == "learned")
        self.add(1, tables * entering * d + (splits + 1 if splits else 0) * sum(sizes) + 4 * n_rows)
        norms = sum(-(-level.n_rows // self.tiles["rows"]["BM"]) for level in levels) * 4 * d
        self.add(0, self.has_norm * norms)
