"""What a TransformerStep's gradient costs on a GPU, counted from its kernels: bytes, FLOPs and launches."""

from __future__ import annotations

from typing import NamedTuple

from grokfast.nn.transformer_step import TransformerStep
from grokfast.ops.mlp.kept import PRECISIONS
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
    Bytes are those that programs ask for, whichever cache answers: a tile's rows once, and the weights once for every
    tile. Counts for the kernels, whatever device the step is on.
    """
    from grokfast.ops.kernels import n_splits
    from grokfast.ops.layer_norm import kernels as layer_norm
    from grokfast.ops.linear import kernels as linear
    from grokfast.ops.linear_cross_entropy import kernels as classifier
    from grokfast.ops.mlp import kernels as mlp
    from grokfast.ops.pair_embed import kernels as embedding

    config, n_models = step.config, step.n_models
    d, hidden, classes, precision = config.d_model, config.d_mlp, step.n_outputs, step.precision
    rows = step.plan.rows() if n_batch is None else step.plan.rows(step.targets.new_zeros(n_models, n_batch))
    entering = (rows.pairs.pairs if isinstance(rows.pairs, PairIndex) else rows.pairs).shape[1]
    n_rows = step.targets.shape[1] if n_batch is None else n_batch
    count, keeps_hidden = _Count(), precision in PRECISIONS

    def norm(n: int) -> None:
        """LayerNorm of n rows, forward and backward."""
        splits = n_splits(n, tiles=1, at_least=2 * layer_norm.configuration(d)["BM"])
        count.add(2 + 2 * (splits > 1), 5 * n * d)

    has_positions = step.config.positions == "learned"
    count.add(1, 3 * entering * d)  # tables -> rows
    tables = (step.plan.tables[0], *([step.plan.tables[1]] if has_positions else []))
    for n_own in tables:  # and back
        splits = n_splits(entering // n_own, tiles=n_own * -(-d // embedding.configuration(d)["BH"]))
        count.add(1 + (splits > 1), (entering + splits * n_own) * d)
    if not isinstance(rows.pairs, PairIndex):
        count.launches += 12  # who reads each row of both tables, by sorting
    if n_models > 1:
        count.add(1, 2 * step.n_parameters)  # each parameter one model's after the other's
    count.add(1, 2 * step.n_parameters)  # gradients to where they belong
    count.add(1, 4 * n_rows)  # mean loss and right answers
    if n_batch is not None:
        count.add(1, 8 * n_rows)

    def product(n: int, d_in: int, d_out: int, bias: bool) -> None:
        """A linear layer of n rows, forward and backward."""
        for name in ("fwd", "bwd_x"):
            tile = linear.configuration(name, precision, d_in, d_out)
            inner, outer = (d_in, d_out) if name == "fwd" else (d_out, d_in)
            columns = -(-outer // tile["BN"])
            count.add(1, n * (inner * columns + outer) + -(-n // tile["BM"]) * d_in * d_out, n * d_in * d_out)
        tile = linear.configuration("bwd_weight", precision, d_in, d_out)
        tiles = -(-d_out // tile["BO"]), -(-d_in // tile["BN"])
        splits = n_splits(n, tiles=tiles[0] * tiles[1])
        count.add(1, n * (d_out * tiles[1] + d_in * tiles[0]) + splits * d_in * d_out, n * d_in * d_out)
        if splits > 1:
            count.add(1 + bias, (splits + 1) * d_in * d_out)

    n_table = entering
    for layer in rows.layers:
        _, n_out, seq_len = layer.keys.shape
        if n_batch is not None and layer.keys.index.stride(0) != 0:
            count.add(2, 4 * n_out * seq_len)  # the index, and who reads each row
        product(n_table, d, 3 * d, config.attention_bias)
        product(n_out, d, d, config.attention_bias)
        reads = n_out * seq_len
        count.add(1, 2 * reads * d + 2 * n_out * d, 2 * reads * d)  # scores and mix
        count.add(1, 2 * reads * d + 4 * n_out * d + 2 * reads * config.n_heads, 3 * reads * d)
        slots = n_slots(reads, n_table)
        parts = 3 + config.residual
        count.add(1, 2 * reads * d + (parts - 2) * n_out * d + slots * parts * d, 2 * reads * d)
        count.add(1, (slots + n_table) * parts * d)
        if keeps_hidden:
            product(n_out, d, hidden, config.mlp_bias)
            product(n_out, hidden, d, config.mlp_bias)
            count.add(0, n_out * (hidden + 2 * d))  # the activation's input again, and skip connections
        else:
            for name, passes in (("fwd", 2), ("bwd_data", 3), ("bwd_w_in", 3), ("bwd_w_out", 2)):
                tile = mlp.configuration(name, precision, d, hidden, d)
                sums = 0
                if name.startswith("bwd_w"):
                    splits = n_splits(n_out, tiles=-(-hidden // tile["BH"]) * -(-d // tile["BD"]))
                    sums = (splits > 1) * (1 + (name == "bwd_w_in" and config.mlp_bias)) + (name == "bwd_w_out")
                tiles = -(-n_out // tile["BM"]) if name in ("fwd", "bwd_data") else -(-hidden // tile["BH"])
                weights = tiles * 2 * d * hidden if name in ("fwd", "bwd_data") else 2 * d * hidden
                streams = 2 * n_out * d * (1 if name in ("fwd", "bwd_data") else tiles)
                count.add(1 + sums, weights + streams + sums * 2 * d * hidden, passes * n_out * d * hidden)
            count.launches += config.mlp_bias * (1 + (n_splits(n_out, tiles=-(-d // 128)) > 1))  # b_out's gradient
        if config.norm != "none":
            norms = ((n_table if config.norm == "replace" else n_out), n_out)
            norms = (n_table, n_out) if config.norm == "pre" else norms  # of what attention and mlp read
            for n in norms:
                norm(n)
        if config.residual and config.norm in ("pre", "replace"):
            count.add(0 if keeps_hidden else 1, 3 * n_out * d)  # mlp's skip connection
            count.add(1, 3 * n_out * d)  # and what comes back by both ways
            if config.norm == "pre":
                count.add(1, 3 * n_table * d)
        n_table = n_out
    if config.norm in ("pre", "replace"):
        norm(n_table)
    if rows.output is not None:
        count.add(4 if n_batch is not None else 3, 4 * n_rows * d)
    for name, passes in (("fwd", 1), ("bwd_x", 2), ("bwd_weight", 2)):
        tile = classifier.configuration(name, precision, d, classes)
        tiles = -(-n_rows // tile["BM"]) if name != "bwd_weight" else -(-classes // tile["BV"])
        streams = 2 * n_rows * d if name != "bwd_weight" else tiles * n_rows * d
        weights = tiles * classes * d if name != "bwd_weight" else 2 * classes * d
        splits = n_splits(n_rows, tiles=tiles * -(-d // tile["BD"])) if name == "bwd_weight" else 1
        count.add(1 + (splits > 1), streams + weights, passes * n_rows * d * classes)
    if config.tied:
        count.add(2, 3 * step.n_parameters // 4)
    passes = 3 if precision == "tf32x3" else 1
    return Cost(4 * n_models * count.numbers, 2 * n_models * passes * count.products, count.launches)


class _Count:
    """Launches; and of one model numbers read or written, and multiplications."""

    def __init__(self) -> None:
        self.launches, self.numbers, self.products = 0, 0, 0

    def add(self, launches: int, numbers: int, products: int = 0) -> None:
        self.launches += launches
        self.numbers += numbers
        self.products += products
