"""What a TransformerStep takes of a GPU's memory for one model, counted from its plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from grokfast.models.transformer.ensemble_plan import EnsembleLayer, EnsemblePlan, EnsembleRows
from grokfast.models.transformer.model import GrokTransformer, TransformerConfig
from grokfast.ops.mlp.kept import PRECISIONS
from grokfast.ops.read_rows.readers import n_slots
from grokfast.ops.rows import PairIndex

if TYPE_CHECKING:
    from grokfast.models.transformer.fused.model import Model

INDEX = 8  # bytes of a row's number
PARTIALS = 128 * 64 * 128  # numbers: as many programs as share a sum over rows, each with a tile of so many weights


class Memory(NamedTuple):
    """Bytes, beside the parameters, their gradient and the data: held throughout, and beside that at most at once.

    `gradient` and `measure` are of the two methods. The estimate is high rather than low.
    """

    held: int
    gradient: int
    measure: int


def memory(
    config: TransformerConfig, tokens: Tensor, n_batch: int | None, *,
    n_tokens: int, n_outputs: int, n_parameters: int, precision: str, trains: bool = True,
) -> Memory:  # fmt: skip
    """Of a data set tokens [N, T] on the CPU, in batches of n_batch rows (None: all); fp32.

    trains: whether `gradient` is called at all. Needs Triton, whose launches say what scratch they have.
    """
    plan, (n_rows, seq_len), d = EnsemblePlan(config, tokens[None], n_tokens=n_tokens), tokens.shape, config.d_model
    every = plan.rows()
    layout = INDEX * (n_rows * (3 * seq_len + 1) + _entering(every) * 2)  # of batches of one size
    held = layout + INDEX * n_rows * 2 * seq_len + _indices(every) + 8 * n_rows + 4 * n_parameters
    model = GrokTransformer(config, n_tokens=n_tokens, n_answers=n_outputs, seq_len=seq_len)
    if plan.shares_output(n_rows):
        widest = max(_layer(config, layer, n_table, precision).widest for layer, n_table in _chain(every))
        measure = 4 * (widest + 8 * n_rows)
    else:
        measure = _evaluation_scratch(model, every, n_rows, precision)
    if not trains:
        return Memory(held, 0, measure)
    n, rows, passing = n_rows, every, 0
    if n_batch is None:
        held += _readers(every)
    else:
        n, rows = n_batch, plan.rows(tokens.new_zeros(1, n_batch))
        held += layout + INDEX * n * 2 * seq_len + _known(rows)
        passing = _indices(rows) + _readers(rows) + 6 * INDEX * n
    if not plan.shares_output(n):
        return Memory(held + _scratch(model, rows, n, n_parameters, precision), passing, measure)
    sizes = [_layer(config, layer, n_table, precision) for layer, n_table in _chain(rows)]
    kept = sum(size.kept for size in sizes) + (2 + (rows.output is not None)) * n * d + 8 * n
    partials = min(-(-n // 128) * max(3 * d * d, d * config.d_mlp, d * n_outputs), PARTIALS)
    passing += 4 * (kept + max(size.backward for size in sizes) + partials + n_parameters)
    return Memory(held, passing, measure)


def _scratch(model: GrokTransformer, rows: EnsembleRows, n_batch: int, n_columns: int, precision: str) -> int:
    """Bytes of the fused launches' scratch, which stays."""
    from grokfast.models.transformer.fused.scratch import GradientScratch

    scratch = GradientScratch(_kind(model, precision), rows, n_batch, n_columns, torch.device("meta"))
    return sum(t.nbytes for t in (scratch.memory, scratch.products, scratch.transposes, scratch.finish))


def _evaluation_scratch(model: GrokTransformer, rows: EnsembleRows, n_rows: int, precision: str) -> int:
    """Bytes of that of an evaluation, which is given back."""
    from grokfast.models.transformer.fused.scratch import Scratch

    return Scratch(_kind(model, precision), rows, n_rows, torch.device("meta")).memory.nbytes


def _kind(model: GrokTransformer, precision: str) -> Model:
    from grokfast.models.transformer.fused.model import Model

    shapes = {name: p.shape[1:] for name, p in model.named_parameters()}
    return Model(model.config, shapes, model.n_outputs, "cross_entropy", precision)


class _Layer(NamedTuple):
    """Numbers: that the forward leaves for the backward, that this takes beside, that the forward has at its widest."""

    kept: int
    backward: int
    widest: int


def _layer(config: TransformerConfig, layer: EnsembleLayer, n_table: int, precision: str) -> _Layer:
    _, n, seq_len = layer.keys.shape
    d, heads = config.d_model, config.n_heads
    hidden = n * config.d_mlp if precision in PRECISIONS else 0
    before, after = ((config.norm in kinds) for kinds in (("pre", "replace"), ("pre", "replace", "post")))
    attended = n * (d + 2 * heads)
    kept = n_table * d * (4 + before) + attended + n * d * (2 + after + (config.norm == "post")) + hidden
    slots, parts = n_slots(n * seq_len, n_table), 3 + config.residual
    of_attention = n * (3 * d + 2 * seq_len * heads) + (slots + n_table) * parts * d + n_table * d
    of_mlp = hidden + 3 * n * d
    widest = max(n_table * d * (5 + before) + attended + n * d, n_table * d + 4 * n * d + hidden)
    return _Layer(kept, max(of_attention, of_mlp), widest)


def _chain(rows: EnsembleRows) -> list[tuple[EnsembleLayer, int]]:
    """Each layer, and the rows that enter it."""
    return list(zip(rows.layers, [_entering(rows), *(layer.keys.shape[1] for layer in rows.layers)]))


def _entering(rows: EnsembleRows) -> int:
    return (rows.pairs.pairs if isinstance(rows.pairs, PairIndex) else rows.pairs).shape[1]


def _indices(rows: EnsembleRows) -> int:
    """Bytes of who reads whom."""
    used = (rows.output, *(index for layer in rows.layers for index in (layer.keys, layer.own)))
    return INDEX * (2 * _entering(rows) + sum(index.index.numel() for index in used if index is not None))


def _known(rows: EnsembleRows) -> int:
    """Bytes of what batches' readers have in common."""
    known = [layer.keys.known for layer in rows.layers if layer.keys.known is not None]
    return sum(t.nbytes for one in known for t in (one.blocks, *vars(one.readers).values()))


def _readers(rows: EnsembleRows) -> int:
    """Bytes of who is read by whom."""
    keys = [(layer.keys.index.numel(), n_table) for layer, n_table in _chain(rows)]
    if rows.output is not None:
        keys.append((rows.output.index.numel(), rows.output.n_rows))
    return INDEX * sum(size + n + 1 + n_slots(size, n) for size, n in keys)
