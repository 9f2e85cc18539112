"""The step's kernels in Triton: rows that enter, rows of a level, gradients of weights, and what is left to sum.

The model is an axis of every grid. Where parameters lie in a model's part of `flat`, and numbers in a row, is known at
compile time. Sums over rows are made chunk by chunk, each from zero, and added in their order; chunks depend on the
rows alone.
"""

from __future__ import annotations

import triton
import triton.language as tl

from grokfast.models.transformer.fused import layout, phases
from grokfast.models.transformer.fused.phases import EPS
from grokfast.ops.kernels import dot, load_tile, load_vector, matmul_over_rows, store_tile
from grokfast.ops.layer_norm.kernels import normalise_rows

BLOCK = tl.constexpr(1024)  # numbers of the gradient that a program of finish_kernel sums over the splits
SIDE = tl.constexpr(layout.SIDE)
# Numbers in a line of each table of programs.
PRODUCT, FINISH, TRANSPOSE = tl.constexpr(16), tl.constexpr(8), tl.constexpr(8)


@triton.jit
def _transpose(p_flat, p_transposed, p, UNIT: tl.constexpr):
    """A tile of a weight's transpose, zeros beyond the weight's rows. p: a line, places in units of UNIT numbers."""
    p_flat += tl.load(p) * UNIT
    p_transposed += tl.load(p + 1) * UNIT
    n_out, n_in = tl.load(p + 2).to(tl.int32), tl.load(p + 3).to(tl.int32) * UNIT
    length, side = tl.load(p + 4).to(tl.int32) * UNIT, tl.arange(0, SIDE)
    outputs, columns = tl.load(p + 5).to(tl.int32) * SIDE + side, tl.load(p + 6).to(tl.int32) * SIDE + side
    tile = load_tile(p_flat, outputs, columns, n_in, n_out, n_in)
    store_tile(p_transposed, columns, outputs, length, n_in, length, tl.trans(tile))


@triton.jit
def enter_kernel(
    p_flat, p_positions, p_pairs, p_rows, p_transposed, p_programs,
    n_rows, flat_model, positions_model, pairs_model, transposed_model, n_programs,
    EMBEDDING: tl.constexpr, GAIN: tl.constexpr, GAIN_BIAS: tl.constexpr, W_QKV: tl.constexpr, B_QKV: tl.constexpr,
    STRIDE: tl.constexpr, X: tl.constexpr, INNER: tl.constexpr, QKV: tl.constexpr, D: tl.constexpr,
    TRANSPOSES: tl.constexpr, UNIT: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Rows of the first level: X = embedding + position, INNER its LayerNorm if GAIN >= 0, QKV of the latter.

    Programs have BN columns of QKV each; the first of a tile writes X and INNER, too. If TRANSPOSES, programs of tiles
    beyond the rows have a line of p_programs each, and transpose weights for the way back.
    """
    i_row, i_model = tl.program_id(0).to(tl.int64) * BM, tl.program_id(2).to(tl.int64)
    p_flat += i_model * flat_model
    if TRANSPOSES:
        if i_row >= n_rows:
            i = (tl.program_id(0) - tl.cdiv(n_rows, BM)) * tl.num_programs(1) + tl.program_id(1)
            if i < n_programs:
                _transpose(p_flat, p_transposed + i_model * transposed_model, p_programs + i * TRANSPOSE, UNIT)
            return
    p_positions += i_model * positions_model
    p_pairs += i_model * pairs_model + 2 * i_row
    p_rows += (i_model * n_rows + i_row) * STRIDE
    left = (n_rows - i_row).to(tl.int32)
    rows = tl.arange(0, BM)
    exists = (rows < left)[:, None]
    p_a = p_flat + EMBEDDING + (tl.load(p_pairs + 2 * rows, mask=rows < left, other=0) * D)[:, None]
    p_b = p_positions + (tl.load(p_pairs + 2 * rows + 1, mask=rows < left, other=0) * D)[:, None]
    every = tl.arange(0, BD)
    mask = exists & (every < D)[None, :]
    x = tl.load(p_a + every[None, :], mask=mask, other=0) + tl.load(p_b + every[None, :], mask=mask, other=0)
    mean, scale = tl.zeros([BM], tl.float32), tl.zeros([BM], tl.float32)
    if tl.program_id(1) == 0:
        store_tile(p_rows + X, rows, every, STRIDE, left, D, x)
    if GAIN >= 0:
        mean = tl.sum(x, 1) / D
        normal, scale = normalise_rows(x, rows, left, every, EPS, D)
        if tl.program_id(1) == 0:
            inner = normal * load_vector(p_flat + GAIN, every, D)[None, :]
            inner += load_vector(p_flat + GAIN_BIAS, every, D)[None, :]
            store_tile(p_rows + INNER, rows, every, STRIDE, left, D, inner)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    y = tl.zeros([BM, BN], tl.float32)
    for k in range(0, D, BK):
        some = k + tl.arange(0, BK)
        is_some = exists & (some < D)[None, :]
        part = tl.load(p_a + some[None, :], mask=is_some, other=0) + tl.load(p_b + some[None, :], mask=is_some, other=0)
        if GAIN >= 0:
            part = (part - mean[:, None]) * scale[:, None] * load_vector(p_flat + GAIN, some, D)[None, :]
            part += load_vector(p_flat + GAIN_BIAS, some, D)[None, :]
        y = dot(part, tl.trans(load_tile(p_flat + W_QKV, columns, some, D, 3 * D, D)), y, PRECISION)
    if B_QKV >= 0:
        y += load_vector(p_flat + B_QKV, columns, 3 * D)[None, :]
    store_tile(p_rows + QKV, rows, columns, STRIDE, left, 3 * D, y)


@triton.jit
def rows_kernel(
    p_flat, p_back, p_table, p_rows, p_keys, p_own, p_target, p_share, p_logits, p_loss, p_right, p_parts,
    n_rows, n_table, flat_model, back_model, keys_model, own_model,
    FORWARD: tl.constexpr, PROJECT: tl.constexpr, CLASSIFY: tl.constexpr, TURN: tl.constexpr, ABOVE: tl.constexpr,
    BACK: tl.constexpr,
    W_O: tl.constexpr, B_O: tl.constexpr, GAIN_Y: tl.constexpr, W_IN: tl.constexpr, B_IN: tl.constexpr,
    W_OUT: tl.constexpr, B_OUT: tl.constexpr, GAIN: tl.constexpr, W_QKV: tl.constexpr, B_QKV: tl.constexpr,
    UNEMBEDDING: tl.constexpr,
    TRANSPOSED: tl.constexpr, O_BACK: tl.constexpr, IN_BACK: tl.constexpr, OUT_BACK: tl.constexpr,
    QKV_BACK: tl.constexpr, UNEMBEDDING_BACK: tl.constexpr,
    TABLE: tl.constexpr, TABLE_QKV: tl.constexpr, TABLE_SKIP: tl.constexpr, STRIDE: tl.constexpr,
    HEADS: tl.constexpr, STATS: tl.constexpr, Y: tl.constexpr, MLP_IN: tl.constexpr, Z: tl.constexpr, X: tl.constexpr,
    INNER: tl.constexpr, QKV: tl.constexpr, OF_QKV: tl.constexpr, OF_INNER: tl.constexpr, OF_X: tl.constexpr,
    OF_Z: tl.constexpr, OF_MLP_IN: tl.constexpr, OF_Y: tl.constexpr, OF_HEADS: tl.constexpr, OF_QUERY: tl.constexpr,
    WEIGHTS: tl.constexpr,
    D: tl.constexpr, HIDDEN: tl.constexpr, H: tl.constexpr, DH: tl.constexpr, S: tl.constexpr, V: tl.constexpr,
    VS: tl.constexpr, SCALE: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr, OWN: tl.constexpr,
    ACTIVATION: tl.constexpr, LOSS: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    BU: tl.constexpr, BR: tl.constexpr, BL: tl.constexpr, BA: tl.constexpr, BD: tl.constexpr, BH: tl.constexpr,
    BC: tl.constexpr,
):  # fmt: skip
    """A tile of a level's rows, as far as the flags say: FORWARD from the table of the level below to X and INNER,
    PROJECT to the QKV of the layer above or CLASSIFY to the loss; gradients from ABOVE, or TURN from the loss, down to
    X, and BACK to the queries and scores. The names are those of `layout`; a place of -1: there is none. The way back
    reads weights in p_back, as they are or TRANSPOSED.
    """
    i_row, i_model = tl.program_id(0).to(tl.int64) * BM, tl.program_id(1).to(tl.int64)
    p_flat += i_model * flat_model
    p_back += i_model * back_model
    p_table += i_model * n_table * TABLE
    p_keys += i_model * keys_model + i_row * S
    p_own += i_model * own_model + (i_row if OWN else 0)
    p_row = p_rows + (i_model * n_rows + i_row) * STRIDE
    p_parts += (i_model * tl.cdiv(n_rows, BR) + tl.program_id(0) * (BM // BR)) * (4 * D)
    at = i_model * n_rows + i_row
    p_logits += at * VS
    left = (n_rows - i_row).to(tl.int32)
    rows = tl.arange(0, BM)
    if FORWARD:
        phases.attend(
            p_table + TABLE_QKV, p_row, p_keys, p_own, i_row, left, HEADS, STATS, TABLE, STRIDE, H, DH, S, OWN, SCALE,
            BM, BA, BH, BC,
        )  # fmt: skip
        tl.debug_barrier()
        own = tl.load(p_own + rows, mask=rows < left, other=0) if OWN else i_row + rows
        phases.project(
            p_row, HEADS, Y, p_flat + W_O, p_flat + B_O, p_table + TABLE_SKIP, own, TABLE, left, STRIDE, D, D,
            "identity", B_O >= 0, RESIDUAL, PRECISION, BM, BN, BK,
        )  # fmt: skip
        tl.debug_barrier()
        if NORM != "none":
            phases.normalise(p_row, Y, MLP_IN, p_flat + GAIN_Y, p_flat + GAIN_Y + D, left, STRIDE, D, BM, BR, BD)
            tl.debug_barrier()
        SKIP: tl.constexpr = MLP_IN if NORM == "post" else Y
        if BU > 0:
            phases.mlp(
                p_row, MLP_IN, Z, X, SKIP, p_flat + W_IN, p_flat + B_IN, p_flat + W_OUT, p_flat + B_OUT, left,
                STRIDE, D, HIDDEN, ACTIVATION, B_IN >= 0, RESIDUAL, PRECISION, BM, BU, BD,
            )  # fmt: skip
        else:
            phases.project(
                p_row, MLP_IN, Z, p_flat + W_IN, p_flat + B_IN, p_row, rows, STRIDE, left, STRIDE, D, HIDDEN,
                "identity", B_IN >= 0, False, PRECISION, BM, BN, BK,
            )  # fmt: skip
            tl.debug_barrier()
            phases.project(
                p_row, Z, X, p_flat + W_OUT, p_flat + B_OUT, p_row + SKIP, rows, STRIDE, left, STRIDE, HIDDEN, D,
                ACTIVATION, B_OUT >= 0, RESIDUAL, PRECISION, BM, BN, BK,
            )  # fmt: skip
        tl.debug_barrier()
        if NORM != "none":
            phases.normalise(p_row, X, INNER, p_flat + GAIN, p_flat + GAIN + D, left, STRIDE, D, BM, BR, BD)
            tl.debug_barrier()
    if PROJECT:
        phases.project(
            p_row, INNER, QKV, p_flat + W_QKV, p_flat + B_QKV, p_row, rows, STRIDE, left, STRIDE, D, 3 * D,
            "identity", B_QKV >= 0, False, PRECISION, BM, BN, BK,
        )  # fmt: skip
    if CLASSIFY:
        phases.classify(
            p_row, INNER, p_flat + UNEMBEDDING, p_target + at, p_share + at, p_logits, p_loss + at, p_right + at, left,
            STRIDE, D, V, VS, LOSS, TURN, PRECISION, BM, BL, BV, BK,
        )  # fmt: skip
    if TURN:
        tl.debug_barrier()
        phases.back_from_logits(
            p_row, OF_INNER, p_back + UNEMBEDDING_BACK, p_logits, left, STRIDE, D, V, VS,
            TRANSPOSED, PRECISION, BM, BN, BK,
        )  # fmt: skip
        tl.debug_barrier()
    if ABOVE:
        phases.project_back(
            p_row, OF_QKV, OF_INNER, OF_QKV + 3 * D, p_back + QKV_BACK, left, STRIDE, 3 * D, D,
            "identity", RESIDUAL and NORM != "pre", TRANSPOSED, PRECISION, BM, BN, BK,
        )  # fmt: skip
        tl.debug_barrier()
    if OF_X != OF_INNER:
        if ABOVE or TURN:
            phases.normalise_back(
                p_row, X, OF_INNER, OF_X, OF_QKV + 3 * D, p_flat + GAIN, p_parts, left, STRIDE, D,
                ABOVE and RESIDUAL and NORM == "pre", BM, BR, BD,
            )  # fmt: skip
            tl.debug_barrier()
    if BACK:
        IS_SKIPPED: tl.constexpr = RESIDUAL and (NORM == "none" or NORM == "post")
        if BU > 0:
            phases.mlp_back(
                p_row, OF_X, Z, OF_Z, OF_MLP_IN, p_back + IN_BACK, p_back + OUT_BACK, left,
                STRIDE, D, HIDDEN, ACTIVATION, IS_SKIPPED, TRANSPOSED, PRECISION, BM, BU, BD,
            )  # fmt: skip
        else:
            phases.project_back(
                p_row, OF_X, OF_Z, Z, p_back + OUT_BACK, left, STRIDE, D, HIDDEN,
                ACTIVATION, False, TRANSPOSED, PRECISION, BM, BN, BK,
            )  # fmt: skip
            tl.debug_barrier()
            phases.project_back(
                p_row, OF_Z, OF_MLP_IN, OF_X, p_back + IN_BACK, left, STRIDE, HIDDEN, D,
                "identity", IS_SKIPPED, TRANSPOSED, PRECISION, BM, BN, BK,
            )  # fmt: skip
        tl.debug_barrier()
        if NORM != "none":
            phases.normalise_back(
                p_row, Y, OF_MLP_IN, OF_Y, OF_X, p_flat + GAIN_Y, p_parts + 2 * D, left, STRIDE, D,
                RESIDUAL and NORM != "post", BM, BR, BD,
            )  # fmt: skip
            tl.debug_barrier()
        phases.project_back(
            p_row, OF_Y, OF_HEADS, OF_Y, p_back + O_BACK, left, STRIDE, D, D,
            "identity", False, TRANSPOSED, PRECISION, BM, BN, BK,
        )  # fmt: skip
        tl.debug_barrier()
        phases.attend_back(
            p_table + TABLE_QKV, p_row, p_keys, p_own, i_row, left, HEADS, STATS, OF_HEADS, OF_QUERY, WEIGHTS,
            TABLE, STRIDE, H, DH, S, OWN, SCALE, BM, BA, BH, BC,
        )  # fmt: skip


@triton.jit
def _chunk_of_bias(p_grad, grad_row, n_rows, n_out, outputs, BM: tl.constexpr, BO: tl.constexpr):
    """The sum of grad [BO] over a chunk of rows.

    Not where the product reads it: of a tile that is used twice, Triton keeps one copy too few for a product that is
    under way on sm_90, where the next copy would overwrite what it reads.
    """
    acc, rows = tl.zeros([BM, BO], tl.float32), tl.arange(0, BM)
    for i in range(0, n_rows, BM):
        acc += load_tile(p_grad, rows, outputs, grad_row, n_rows - i, n_out)
        p_grad += BM * grad_row
    return tl.sum(acc, 0)


@triton.jit
def weights_kernel(
    p_memory, p_programs, p_out, n_split, n_model,
    CHUNKS: tl.constexpr, UNIT: tl.constexpr, ACTIVATION: tl.constexpr, BIAS: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BO: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """A tile of the gradient of one of the matrices, over CHUNKS chunks of rows; and of its bias.

    A program's line of p_programs says which, with places in units of UNIT numbers, so that the compiler knows them to
    be aligned. Matrices lie in the splits of p_out [splits, E, ...], `n_split` and `n_model` apart, as in `flat`.
    """
    i_split, i_model = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    p = p_programs + tl.program_id(0) * PRODUCT
    p_grad = p_memory + (tl.load(p) + i_model * tl.load(p + 1)) * UNIT
    p_x = p_memory + (tl.load(p + 3) + i_model * tl.load(p + 4)) * UNIT
    grad_row, x_row = tl.load(p + 2).to(tl.int32) * UNIT, tl.load(p + 5).to(tl.int32) * UNIT
    n_rows, per_chunk, is_hidden = tl.load(p + 6), tl.load(p + 7), tl.load(p + 8) > 0
    n_out, n_load, n_in = (
        tl.load(p + 9).to(tl.int32),
        tl.load(p + 10).to(tl.int32) * UNIT,
        tl.load(p + 11).to(tl.int32) * UNIT,
    )
    first_output, first_column = tl.load(p + 12).to(tl.int32) * BO, tl.load(p + 13).to(tl.int32) * BN
    outputs, columns = first_output + tl.arange(0, BO), first_column + tl.arange(0, BN)
    p_out += i_split * n_split + i_model * n_model
    total = tl.zeros([BO, BN], tl.float32)
    for i in range(0, CHUNKS):
        begin = (i_split * CHUNKS + i) * per_chunk
        n = tl.minimum(n_rows - begin, per_chunk).to(tl.int32)
        p_g, p_i = p_grad + begin * grad_row, p_x + begin * x_row
        if is_hidden:
            total += matmul_over_rows(
                p_g, grad_row, outputs, n_load, p_i, x_row, columns, n_in, n, ACTIVATION, PRECISION, BM
            )
        else:
            total += matmul_over_rows(
                p_g, grad_row, outputs, n_load, p_i, x_row, columns, n_in, n, "identity", PRECISION, BM
            )
    store_tile(p_out + tl.load(p + 14), outputs, columns, n_in, n_out, n_in, total)
    if BIAS:
        at = tl.load(p + 15)
        if (first_column == 0) & (at >= 0):
            of_bias = tl.zeros([BO], tl.float32)
            for i in range(0, CHUNKS):
                begin = (i_split * CHUNKS + i) * per_chunk
                n = tl.minimum(n_rows - begin, per_chunk).to(tl.int32)
                of_bias += _chunk_of_bias(p_grad + begin * grad_row, grad_row, n, n_load, outputs, BM, BO)
            tl.store(p_out + at + outputs, of_bias, mask=outputs < n_out)


@triton.jit
def _sum_splits(p, mask, n_split, SPLITS: tl.constexpr):
    total = tl.load(p, mask=mask, other=0)
    for _ in tl.static_range(1, SPLITS):
        p += n_split  # several of them may be more than 32 bits hold
        total += tl.load(p, mask=mask, other=0)
    return total


@triton.jit
def finish_kernel(
    p_memory, p_programs, p_parts, p_start_a, p_items_a, p_start_b, p_items_b, p_values, p_right, p_counts, p_share,
    p_grad, p_loss, p_correct, n_split, n_model, grad_model, a_start_model, a_items_model, b_start_model, b_items_model,
    size, D: tl.constexpr, SPLITS: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """What is left to sum, a line of p_programs each, whose first number says what.

    0, 1: a row of the embedding, or the positions, over the rows that read it; 2: numbers of the gradient over the
    splits; 3: a gain and bias of LayerNorm over blocks of rows; 4: a model's loss and right answers, and zeros as
    padding.
    """
    i_model = tl.program_id(1).to(tl.int64)
    p = p_programs + tl.program_id(0) * FINISH
    kind, to = tl.load(p), tl.load(p + 1)
    p_grad += i_model * grad_model
    p_parts += i_model * n_model
    columns, several = tl.arange(0, BD), tl.arange(0, BM)
    if kind <= 1:  # row `key` of the embedding or the positions: columns from `first` on
        key, first, p_x, stride = tl.load(p + 2), tl.load(p + 3), p_memory + tl.load(p + 4), tl.load(p + 5)
        model = tl.load(p + 6)
        p_start = p_start_a + i_model * a_start_model if kind == 0 else p_start_b + i_model * b_start_model
        p_items = p_items_a + i_model * a_items_model if kind == 0 else p_items_b + i_model * b_items_model
        begin, end = tl.load(p_start + key).to(tl.int32), tl.load(p_start + key + 1).to(tl.int32)
        columns += first.to(tl.int32)
        acc = tl.zeros([BM, BD], tl.float32)
        for i in range(begin, end, BM):
            item = tl.load(p_items + i + several, mask=i + several < end, other=0)
            mask = (i + several < end)[:, None] & (columns < D)[None, :]
            acc += tl.load(p_x + i_model * model + (item * stride)[:, None] + columns[None, :], mask=mask, other=0)
        total = tl.sum(acc, 0)
        at = to + key * D + columns
        extra = tl.load(p + 7)
        if extra >= 0:  # the same row is read as one of the unembedding
            total += _sum_splits(p_parts + extra + columns, columns < D, n_split, SPLITS)
        tl.store(p_grad + at, total, mask=columns < D)
    elif kind == 2:
        at = tl.arange(0, BLOCK)
        mask = at < tl.load(p + 2)
        tl.store(p_grad + to + at, _sum_splits(p_parts + to + at, mask, n_split, SPLITS), mask=mask)
    elif kind == 3:
        n, model, p_x = tl.load(p + 2), tl.load(p + 6), p_memory + tl.load(p + 4)
        for j in range(0, 2 * D, BD):
            acc = tl.zeros([BM, BD], tl.float32)
            for i in range(0, n, BM):
                mask = (i + several < n)[:, None] & (j + columns < 2 * D)[None, :]
                at = ((i + several) * (4 * D))[:, None] + (j + columns)[None, :]
                acc += tl.load(p_x + i_model * model + at, mask=mask, other=0)
            tl.store(p_grad + to + j + columns, tl.sum(acc, 0), mask=j + columns < 2 * D)
    else:
        loss, correct = tl.zeros([1024], tl.float32), tl.zeros([1024], tl.float32)
        for i in range(0, size, 1024):
            places = i + tl.arange(0, 1024)
            exists, at = places < size, i_model * size + places
            share = tl.load(p_share + at, mask=exists, other=0)
            loss += tl.load(p_values + at, mask=exists, other=0) * share
            counts = tl.load(p_counts + at, mask=exists, other=0)
            correct += tl.load(p_right + at, mask=exists, other=0) * counts
        tl.store(p_loss + i_model, tl.sum(loss, 0).to(p_loss.dtype.element_ty))
        tl.store(p_correct + i_model, tl.sum(correct, 0).to(p_correct.dtype.element_ty))
        n = tl.load(p + 2)
        for i in range(0, n, BD):
            tl.store(p_grad + to + i + columns, tl.zeros([BD], tl.float32), mask=i + columns < n)
