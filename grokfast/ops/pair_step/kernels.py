"""A training step's loss and gradient for PairMLPs of one hidden layer, in Triton; the model is an axis of every grid.

`rows_kernel` works out a tile of rows: hidden layer in blocks, logits, loss, gradient of the logits, which goes to
scratch. `gradient_kernel` owns a block of hidden units and, for a chunk of rows, the parameters that belong to it: it
makes the hidden layer anew, and its gradient, which never leaves the chip: the sums over the rows that read a token
are products with one-hot rows. Chunks depend on the rows alone, are summed from zero, and added in their order, by one
program or by `reduce_kernel`: the same bits either way.
"""

from __future__ import annotations

import triton
import triton.language as tl

from grokfast.ops.kernels import activate, dot, load_tile, load_vector, slope, store_tile, to_bf16


@triton.jit
def _numbers(p_batch, at, n_batch, limit, BATCH: tl.constexpr):
    """Of places [BM] in the batch: row numbers in the data, 0 where there is no row, and whether there is one."""
    if BATCH:
        number = tl.load(p_batch + at, mask=at < n_batch, other=-1)
        exists = (number >= 0) & (number < limit)
        number = tl.where(exists, number, 0).to(tl.int32)
    else:
        exists = at < limit
        number = tl.where(exists, at, 0)
    return number, exists


@triton.jit
def _count(p_batch, n_batch, limit, BATCH: tl.constexpr):
    """How many rows of the batch there are, 1 at least, in fp32."""
    if BATCH:
        found = tl.zeros([256], tl.int32)
        for i in range(0, n_batch, 256):
            _, exists = _numbers(p_batch, i + tl.arange(0, 256), n_batch, limit, BATCH)
            found += exists.to(tl.int32)
        count = tl.sum(found, 0)
    else:
        count = limit
    return tl.maximum(count, 1).to(tl.float32)


@triton.jit
def _hidden(
    p_flat, a, b, units, exists, W_A: tl.constexpr, W_B: tl.constexpr, B_IN: tl.constexpr, H: tl.constexpr
):  # fmt: skip
    """The hidden layer [BM, BH] before its activation."""
    mask = exists[:, None] & (units < H)[None, :]
    z = tl.load(p_flat + W_A + a[:, None] * H + units[None, :], mask=mask, other=0)
    z += tl.load(p_flat + W_B + b[:, None] * H + units[None, :], mask=mask, other=0)
    if B_IN >= 0:
        z += load_vector(p_flat + B_IN, units, H)[None, :]
    return z


@triton.jit
def _totals(p_losses, p_right, p_loss, p_correct, n_batch, i_model, count):
    """Sum a model's rows: loss, a mean over `count`, and right answers."""
    loss, right = tl.zeros([512], tl.float32), tl.zeros([512], tl.int32)
    p_losses += i_model * n_batch
    p_right += i_model * n_batch
    for i in range(0, n_batch, 512):
        at = i + tl.arange(0, 512)
        loss += tl.load(p_losses + at, mask=at < n_batch, other=0)
        right += tl.load(p_right + at, mask=at < n_batch, other=0)
    tl.store(p_loss + i_model, tl.sum(loss, 0) / count)
    tl.store(p_correct + i_model, tl.sum(right, 0))


@triton.jit
def rows_kernel(
    p_flat, p_rows, p_limits, p_batch, p_grad_logits, p_losses, p_right,
    n_rows, n_batch,
    W_A: tl.constexpr, W_B: tl.constexpr, B_IN: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr,
    N_FLAT: tl.constexpr, H: tl.constexpr, V: tl.constexpr, VS: tl.constexpr,
    ACTIVATION: tl.constexpr, LOSS: tl.constexpr, PRECISION: tl.constexpr, BATCH: tl.constexpr, GRAD: tl.constexpr,
    BM: tl.constexpr, BH: tl.constexpr, VP: tl.constexpr,
):  # fmt: skip
    """Losses and right answers of a tile of rows and, with GRAD, the gradient of its logits [E, n_batch, VS]."""
    i_tile, i_model = tl.program_id(0), tl.program_id(1).to(tl.int64)
    p_flat += i_model * N_FLAT
    p_rows += i_model * 3 * n_rows
    p_batch += i_model * n_batch
    limit = tl.load(p_limits + i_model)
    at = i_tile * BM + tl.arange(0, BM)
    number, exists = _numbers(p_batch, at, n_batch, limit, BATCH)
    a = tl.load(p_rows + number, mask=exists, other=0)
    b = tl.load(p_rows + n_rows + number, mask=exists, other=0)
    target = tl.load(p_rows + 2 * n_rows + number, mask=exists, other=0)
    classes = tl.arange(0, VP)
    z = tl.zeros([BM, VP], tl.float32)
    for i_hidden in range(0, H, BH):
        units = i_hidden + tl.arange(0, BH)
        h = activate(_hidden(p_flat, a, b, units, exists, W_A, W_B, B_IN, H), ACTIVATION)
        z = dot(h, tl.trans(load_tile(p_flat + WEIGHT, classes, units, H, V, H)), z, PRECISION)
    if BIAS >= 0:
        z += load_vector(p_flat + BIAS, classes, V)[None, :]
    is_class = (classes < V)[None, :]
    is_target = classes[None, :] == target[:, None]
    one_hot = tl.where(is_target, 1.0, 0.0)
    z_or_inf = tl.where(is_class, z, float("-inf"))
    largest = tl.max(z_or_inf, 1)
    first = tl.min(tl.where(z_or_inf == largest[:, None], classes[None, :], V), 1)
    if LOSS == "cross_entropy":
        e = tl.exp(z_or_inf - largest[:, None])
        total = tl.sum(e, 1)
        loss = tl.log(total) - (tl.sum(tl.where(is_target, z, 0.0), 1) - largest)
        grad = e / total[:, None] - one_hot
    else:
        error = tl.where(is_class, z - one_hot, 0.0)
        loss = tl.sum(error * error, 1) / V
        grad = error * (2 / V)
    tl.store(p_losses + i_model * n_batch + at, tl.where(exists, loss, 0.0), mask=at < n_batch)
    tl.store(p_right + i_model * n_batch + at, (exists & (first == target)).to(tl.int32), mask=at < n_batch)
    if GRAD:
        share = tl.where(exists, 1 / _count(p_batch, n_batch, limit, BATCH), 0.0)
        grad = tl.where(exists[:, None] & is_class, grad * share[:, None], 0.0)
        store_tile(p_grad_logits + (i_model * n_batch + i_tile * BM) * VS, tl.arange(0, BM), classes, VS,
                   n_batch - i_tile * BM, VS, grad)  # fmt: skip


@triton.jit
def totals_kernel(p_limits, p_losses, p_right, p_loss, p_correct, n_batch):
    """What `rows_kernel` found, without a gradient: a program per model."""
    i_model = tl.program_id(0).to(tl.int64)
    count = tl.maximum(tl.load(p_limits + i_model), 1).to(tl.float32)
    _totals(p_losses, p_right, p_loss, p_correct, n_batch, i_model, count)


@triton.jit
def _add_by_token(tokens, of_row, x, acc, PIECES: tl.constexpr):
    """acc [BT, BH] + the sum of the rows of x [BM, BH] that read each of the tokens: of_row [BM] names a row's.

    The one-hot matrix is exact in bf16, and so is x as a sum of three bf16 numbers: three products are as good as one
    in fp32. Of those each tile's sum is added on its own, since tensor cores cut off what they accumulate.
    """
    one_hot = to_bf16(tl.where(tokens[:, None] == of_row[None, :], 1.0, 0.0))
    total = tl.zeros_like(acc) if PIECES == 3 else acc
    for _ in tl.static_range(PIECES):
        piece = to_bf16(x)
        total = tl.dot(one_hot, piece, total)
        x -= piece.to(tl.float32)
    if PIECES == 3:
        total += acc
    return total


@triton.jit
def _put(p, rows, columns, stride, n_rows, n_columns, tile, i_chunk, CHUNKS: tl.constexpr):
    """Write a tile of the gradient, or add it to what earlier chunks left there."""
    if CHUNKS > 1:
        if i_chunk > 0:
            tl.debug_barrier()  # all have written what they added before, and all read before any writes
            tile += load_tile(p, rows, columns, stride, n_rows, n_columns)
            tl.debug_barrier()
    store_tile(p, rows, columns, stride, n_rows, n_columns, tile)


@triton.jit
def _of_tables(
    p_flat, p_rows, p_batch, p_grad_logits, p_grad, limit, i_program, begin, end, i_chunk,
    n_rows, n_batch,
    W_A: tl.constexpr, W_B: tl.constexpr, B_IN: tl.constexpr, WEIGHT: tl.constexpr,
    P: tl.constexpr, H: tl.constexpr, V: tl.constexpr, VS: tl.constexpr,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, PIECES: tl.constexpr, BATCH: tl.constexpr, CHUNKS: tl.constexpr,
    BM: tl.constexpr, BH: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The gradient of BT rows and BH columns of w_a and w_b, and of b_in, over the rows of one chunk."""
    blocks = (P + BT - 1) // BT
    i_block = i_program % blocks
    units, tile = i_program // blocks * BH + tl.arange(0, BH), tl.arange(0, BM)
    tokens = i_block * BT + tl.arange(0, BT)
    of_a, of_b = tl.zeros([BT, BH], tl.float32), tl.zeros([BT, BH], tl.float32)
    of_b_in = tl.zeros([BM, BH], tl.float32)
    # Of two products in a row Triton would go on while the second still reads its one-hot rows from registers.
    STAGES: tl.constexpr = 1 if PIECES == 2 else None
    for i_row in tl.range(begin, end, BM, num_stages=STAGES):
        number, exists = _numbers(p_batch, i_row + tile, n_batch, limit, BATCH)
        a = tl.load(p_rows + number, mask=exists, other=0)
        b = tl.load(p_rows + n_rows + number, mask=exists, other=0)
        p_tile = p_grad_logits + i_row * VS
        grad_z = tl.zeros([BM, BH], tl.float32)
        for k in range(0, V, BK):
            inner = k + tl.arange(0, BK)
            grad_logits = load_tile(p_tile, tile, inner, VS, n_batch - i_row, VS)  # [BM, BK]
            grad_z = dot(grad_logits, load_tile(p_flat + WEIGHT, inner, units, H, V, H), grad_z, PRECISION)
        grad_z *= slope(_hidden(p_flat, a, b, units, exists, W_A, W_B, B_IN, H), ACTIVATION)
        of_a = _add_by_token(tokens, a, grad_z, of_a, PIECES)
        of_b = _add_by_token(tokens, b, grad_z, of_b, PIECES)
        if B_IN >= 0:
            of_b_in += grad_z
    _put(p_grad + W_A, tokens, units, H, P, H, of_a, i_chunk, CHUNKS)
    _put(p_grad + W_B, tokens, units, H, P, H, of_b, i_chunk, CHUNKS)
    if B_IN >= 0:
        if i_block == 0:
            _put(p_grad + B_IN, tl.arange(0, 1), units, H, 1, H, tl.sum(of_b_in, 0)[None, :], i_chunk, CHUNKS)


@triton.jit
def _of_classifier(
    p_flat, p_rows, p_batch, p_grad_logits, p_grad, limit, i_program, begin, end, i_chunk,
    n_rows, n_batch,
    W_A: tl.constexpr, W_B: tl.constexpr, B_IN: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr,
    H: tl.constexpr, V: tl.constexpr, VS: tl.constexpr,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, BATCH: tl.constexpr, CHUNKS: tl.constexpr,
    BM: tl.constexpr, BH: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """The gradient of BV rows and BH columns of the classifier, and of its bias, over the rows of one chunk."""
    blocks = (V + BV - 1) // BV
    i_hidden = i_program // blocks
    units, tile = i_hidden * BH + tl.arange(0, BH), tl.arange(0, BM)
    classes = i_program % blocks * BV + tl.arange(0, BV)
    of_weight, of_bias = tl.zeros([BV, BH], tl.float32), tl.zeros([BV], tl.float32)
    for i_row in range(begin, end, BM):
        number, exists = _numbers(p_batch, i_row + tile, n_batch, limit, BATCH)
        a = tl.load(p_rows + number, mask=exists, other=0)
        b = tl.load(p_rows + n_rows + number, mask=exists, other=0)
        h = activate(_hidden(p_flat, a, b, units, exists, W_A, W_B, B_IN, H), ACTIVATION)
        p_tile = p_grad_logits + i_row * VS
        grad_logits = load_tile(p_tile, tile, classes, VS, n_batch - i_row, VS)  # [BM, BV]
        of_weight = dot(tl.trans(grad_logits), h, of_weight, PRECISION)
        if BIAS >= 0:
            if i_hidden == 0:
                of_bias += tl.sum(grad_logits, 0)
    _put(p_grad + WEIGHT, classes, units, H, V, H, of_weight, i_chunk, CHUNKS)
    if BIAS >= 0:
        if i_hidden == 0:
            _put(p_grad + BIAS, tl.arange(0, 1), classes, V, 1, V, of_bias[None, :], i_chunk, CHUNKS)


@triton.jit
def gradient_kernel(
    p_flat, p_rows, p_limits, p_batch, p_grad_logits, p_losses, p_right, p_grad, p_loss, p_correct,
    n_rows, n_batch, rows_per_chunk,
    W_A: tl.constexpr, W_B: tl.constexpr, B_IN: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr,
    N_PARAMETERS: tl.constexpr, N_FLAT: tl.constexpr,
    P: tl.constexpr, H: tl.constexpr, V: tl.constexpr, VS: tl.constexpr,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, PIECES: tl.constexpr, BATCH: tl.constexpr, CHUNKS: tl.constexpr,
    BM: tl.constexpr, BH: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr,
    BM_OUT: tl.constexpr, BH_OUT: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """The gradient over CHUNKS chunks of rows, [splits, E, N_FLAT]: first the tables' programs, then the classifier's.

    Program 0 of a model also writes its loss and right answers, and zeros the padding.
    """
    i_program, i_split, i_model = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    p_flat += i_model * N_FLAT
    p_rows += i_model * 3 * n_rows
    p_batch += i_model * n_batch
    p_grad_logits += i_model * n_batch * VS
    p_grad += (i_split.to(tl.int64) * tl.num_programs(2) + i_model) * N_FLAT
    limit = tl.load(p_limits + i_model)
    of_tables = ((H + BH - 1) // BH) * ((P + BT - 1) // BT)
    for i_chunk in range(i_split * CHUNKS, (i_split + 1) * CHUNKS):
        begin = i_chunk * rows_per_chunk
        p_out = p_grad + (i_chunk >> 30) * 16  # + 0: else addresses are worked out before the loop, and spilled
        end = tl.minimum(begin + rows_per_chunk, n_batch)
        if i_program < of_tables:
            _of_tables(
                p_flat, p_rows, p_batch, p_grad_logits, p_out, limit, i_program, begin, end, i_chunk,
                n_rows, n_batch, W_A, W_B, B_IN, WEIGHT, P, H, V, VS, ACTIVATION, PRECISION, PIECES, BATCH,
                CHUNKS, BM, BH, BT, BK,
            )  # fmt: skip
        else:
            _of_classifier(
                p_flat, p_rows, p_batch, p_grad_logits, p_out, limit, i_program - of_tables, begin, end, i_chunk,
                n_rows, n_batch, W_A, W_B, B_IN, WEIGHT, BIAS, H, V, VS, ACTIVATION, PRECISION,
                BATCH, CHUNKS, BM_OUT, BH_OUT, BV,
            )  # fmt: skip
    if i_program == 0:
        padding = N_PARAMETERS + tl.arange(0, 16)
        tl.store(p_grad + padding, tl.zeros([16], tl.float32), mask=padding < N_FLAT)
        if i_split == 0:
            count = _count(p_batch, n_batch, limit, BATCH)
            _totals(p_losses, p_right, p_loss, p_correct, n_batch, i_model, count)


@triton.jit
def reduce_kernel(p_parts, p_grad, n, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """The sum of partial gradients [SPLITS, n] in their order."""
    n = n.to(tl.int64)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.load(p_parts + at, mask=at < n)
    for i in tl.static_range(1, SPLITS):
        total += tl.load(p_parts + i * n + at, mask=at < n)
    tl.store(p_grad + at, total, mask=at < n)
