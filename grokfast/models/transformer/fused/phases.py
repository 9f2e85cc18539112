"""What a tile of rows goes through, in Triton: a phase reads and writes columns of its rows in memory.

A row of a level has its numbers one after the other, at columns that `layout` gives. `p_row` points to a tile's first
row, `left` rows are left from there on; STRIDE is the length of a row. Between phases all threads must have written.
"""

from __future__ import annotations

import triton
import triton.language as tl

from grokfast.ops.kernels import activate, dot, load_tile, load_vector, matmul, slope, store_tile
from grokfast.ops.layer_norm.kernels import normalise_rows
from grokfast.ops.linear_cross_entropy.kernels import grad_of_logits, loss_of, meet

EPS = tl.constexpr(1e-5)  # of LayerNorm


@triton.jit
def project(
    p_row, X, OUT, p_weight, p_bias, p_skip, own, skip_stride, left,
    STRIDE: tl.constexpr, K: tl.constexpr, N: tl.constexpr, ACTIVATION: tl.constexpr, BIAS: tl.constexpr,
    SKIP: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """OUT = act(X) weightᵀ + bias + rows `own` [BM] of p_skip."""
    rows = tl.arange(0, BM)
    for i in range(0, N, BN):
        columns = i + tl.arange(0, BN)
        y = matmul(p_row + X, rows, STRIDE, left, p_weight, columns, K, N, "nt", K, BK, PRECISION, ACTIVATION)
        if BIAS:
            y += load_vector(p_bias, columns, N)[None, :]
        if SKIP:
            mask = (rows < left)[:, None] & (columns < N)[None, :]
            y += tl.load(p_skip + (own * skip_stride)[:, None] + columns[None, :], mask=mask, other=0)
        store_tile(p_row + OUT, rows, columns, STRIDE, left, N, y)


@triton.jit
def _by_weight(
    p_grad, rows, STRIDE: tl.constexpr, left, p_weight, columns, K: tl.constexpr, N: tl.constexpr,
    TRANSPOSED: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """[R, C] of grad weight: grad [left, K], weight [K, N]."""
    if TRANSPOSED:
        y = matmul(p_grad, rows, STRIDE, left, p_weight, columns, K, N, "nt", K, BK, PRECISION)
    else:
        y = matmul(p_grad, rows, STRIDE, left, p_weight, columns, N, N, "nn", K, BK, PRECISION)
    return y


@triton.jit
def _load_weight(p, outputs, columns, N_OUT: tl.constexpr, N_IN: tl.constexpr, TRANSPOSED: tl.constexpr):
    """[R, C] of a weight [N_OUT, N_IN]."""
    if TRANSPOSED:
        tile = tl.trans(load_tile(p, columns, outputs, N_OUT, N_IN, N_OUT))
    else:
        tile = load_tile(p, outputs, columns, N_IN, N_OUT, N_IN)
    return tile


@triton.jit
def project_back(
    p_row, GRAD, OUT, OTHER, p_weight, left, STRIDE: tl.constexpr, K: tl.constexpr, N: tl.constexpr,
    ACTIVATION: tl.constexpr, SKIP: tl.constexpr, TRANSPOSED: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """OUT = GRAD weight + OTHER if SKIP: weight [K, N]; with an activation, GRAD weight · act'(OTHER).

    TRANSPOSED, here and below: memory has the weight's transpose.
    """
    rows = tl.arange(0, BM)
    for i in range(0, N, BN):
        columns = i + tl.arange(0, BN)
        grad = _by_weight(p_row + GRAD, rows, STRIDE, left, p_weight, columns, K, N, TRANSPOSED, BK, PRECISION)
        if ACTIVATION != "identity":
            grad *= slope(load_tile(p_row + OTHER, rows, columns, STRIDE, left, N), ACTIVATION)
        elif SKIP:
            grad += load_tile(p_row + OTHER, rows, columns, STRIDE, left, N)
        store_tile(p_row + OUT, rows, columns, STRIDE, left, N, grad)


@triton.jit
def mlp(
    p_row, X, Z: tl.constexpr, OUT, SKIP_FROM, p_w_in, p_b_in, p_w_out, p_b_out, left,
    STRIDE: tl.constexpr, D: tl.constexpr, HIDDEN: tl.constexpr, ACTIVATION: tl.constexpr, BIAS: tl.constexpr,
    SKIP: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BU: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Z = X w_inᵀ + b_in and OUT = act(Z) w_outᵀ + b_out + SKIP_FROM, BU hidden units at a time; no Z below 0."""
    rows, columns = tl.arange(0, BM), tl.arange(0, BD)
    x = load_tile(p_row + X, rows, columns, STRIDE, left, D)
    acc = tl.zeros([BM, BD], tl.float32)
    for i in range(0, HIDDEN, BU):
        units = i + tl.arange(0, BU)
        w_in = load_tile(p_w_in, units, columns, D, HIDDEN, D)  # [BU, BD]
        w_out = load_tile(p_w_out, columns, units, HIDDEN, D, HIDDEN)  # [BD, BU]
        z = dot(x, tl.trans(w_in), tl.zeros([BM, BU], tl.float32), PRECISION)
        if BIAS:
            z += load_vector(p_b_in, units, HIDDEN)[None, :]
        if Z >= 0:
            store_tile(p_row + Z, rows, units, STRIDE, left, HIDDEN, z)
        acc = dot(activate(z, ACTIVATION), tl.trans(w_out), acc, PRECISION)
    if BIAS:
        acc += load_vector(p_b_out, columns, D)[None, :]
    if SKIP:
        acc += load_tile(p_row + SKIP_FROM, rows, columns, STRIDE, left, D)
    store_tile(p_row + OUT, rows, columns, STRIDE, left, D, acc)


@triton.jit
def mlp_back(
    p_row, GRAD, Z, OF_Z, OUT, p_w_in, p_w_out, left,
    STRIDE: tl.constexpr, D: tl.constexpr, HIDDEN: tl.constexpr, ACTIVATION: tl.constexpr, SKIP: tl.constexpr,
    TRANSPOSED: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BU: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """OF_Z = GRAD w_out · act'(Z) and OUT = OF_Z w_in, plus GRAD if SKIP."""
    rows, columns = tl.arange(0, BM), tl.arange(0, BD)
    grad = load_tile(p_row + GRAD, rows, columns, STRIDE, left, D)
    acc = tl.zeros([BM, BD], tl.float32)
    for i in range(0, HIDDEN, BU):
        units = i + tl.arange(0, BU)
        w_out = _load_weight(p_w_out, columns, units, D, HIDDEN, TRANSPOSED)  # [BD, BU]
        w_in = _load_weight(p_w_in, units, columns, HIDDEN, D, TRANSPOSED)  # [BU, BD]
        of_z = dot(grad, w_out, tl.zeros([BM, BU], tl.float32), PRECISION)
        of_z *= slope(load_tile(p_row + Z, rows, units, STRIDE, left, HIDDEN), ACTIVATION)
        store_tile(p_row + OF_Z, rows, units, STRIDE, left, HIDDEN, of_z)
        acc = dot(of_z, w_in, acc, PRECISION)
    if SKIP:
        acc += load_tile(p_row + GRAD, rows, columns, STRIDE, left, D)
    store_tile(p_row + OUT, rows, columns, STRIDE, left, D, acc)


@triton.jit
def normalise(
    p_row, X, OUT, p_gain, p_bias, left, STRIDE: tl.constexpr, D: tl.constexpr,
    BM: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """OUT = LayerNorm(X)."""
    columns = tl.arange(0, BD)
    for i in range(0, BM, BR):
        rows = i + tl.arange(0, BR)
        normal, _ = normalise_rows(load_tile(p_row + X, rows, columns, STRIDE, left, D), rows, left, columns, EPS, D)
        out = normal * load_vector(p_gain, columns, D)[None, :] + load_vector(p_bias, columns, D)[None, :]
        store_tile(p_row + OUT, rows, columns, STRIDE, left, D, out)


@triton.jit
def normalise_back(
    p_row, X, GRAD, OUT, OTHER, p_gain, p_parts, left, STRIDE: tl.constexpr, D: tl.constexpr, SKIP: tl.constexpr,
    BM: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """OUT = the gradient of X by that of LayerNorm(X), plus OTHER if SKIP.

    p_parts [BM / BR, 4 D]: for each block of BR rows the gradients of gain and bias.
    """
    columns = tl.arange(0, BD)
    gain = load_vector(p_gain, columns, D)
    for i in range(0, BM, BR):
        rows = i + tl.arange(0, BR)
        x = load_tile(p_row + X, rows, columns, STRIDE, left, D)
        grad = load_tile(p_row + GRAD, rows, columns, STRIDE, left, D)
        normal, scale = normalise_rows(x, rows, left, columns, EPS, D)
        mask = (columns < D) & (i < left)
        tl.store(p_parts + columns, tl.sum(grad * normal, 0), mask=mask)
        tl.store(p_parts + D + columns, tl.sum(grad, 0), mask=mask)
        p_parts += 4 * D
        grad *= gain[None, :]
        grad -= (tl.sum(grad, 1) / D)[:, None] + normal * (tl.sum(grad * normal, 1) / D)[:, None]
        grad *= scale[:, None]
        if SKIP:
            grad += load_tile(p_row + OTHER, rows, columns, STRIDE, left, D)
        store_tile(p_row + OUT, rows, columns, STRIDE, left, D, grad)


@triton.jit
def _columns(H: tl.constexpr, DH: tl.constexpr, BH: tl.constexpr, BD: tl.constexpr):
    """Where the columns of each head are [BH, BD], and whether there are such."""
    heads, inside = tl.arange(0, BH), tl.arange(0, BD)
    return heads[:, None] * DH + inside[None, :], (heads < H)[:, None] & (inside < DH)[None, :]


@triton.jit
def _gather(p, row, columns, mask):
    """[R, BH, BD] of rows [R], zero where `mask` says."""
    return tl.load(p + row[:, None, None] + columns[None, :, :], mask=mask, other=0)


@triton.jit
def attend(
    p_table, p_row, p_keys, p_own, i_row, left, HEADS, STATS: tl.constexpr,
    TABLE: tl.constexpr, STRIDE: tl.constexpr, H: tl.constexpr, DH: tl.constexpr, S: tl.constexpr, OWN: tl.constexpr,
    SCALE: tl.constexpr, BM: tl.constexpr, BR: tl.constexpr, BH: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Each head's mean of values; if STATS >= 0, largest score and sum of exp(score - largest) of each head.

    p_table points to queries, keys and values of the table's first row, whose rows are TABLE long.
    """
    columns, is_column = _columns(H, DH, BH, BD)
    heads = tl.arange(0, BH)
    for i in range(0, BM, BR):
        rows = i + tl.arange(0, BR)
        exists = rows < left
        mask = exists[:, None, None] & is_column[None, :, :]
        own = tl.load(p_own + rows, mask=exists, other=0) if OWN else i_row + rows
        q = _gather(p_table, own * TABLE, columns, mask) * SCALE
        largest, total = tl.full([BR, BH], float("-inf"), tl.float32), tl.zeros([BR, BH], tl.float32)
        acc = tl.zeros([BR, BH, BD], tl.float32)
        for slot in range(0, S):
            key = tl.load(p_keys + rows * S + slot, mask=exists, other=-1)
            reads = key >= 0
            mask = reads[:, None, None] & is_column[None, :, :]
            k = _gather(p_table + H * DH, key * TABLE, columns, mask)
            v = _gather(p_table + 2 * H * DH, key * TABLE, columns, mask)
            score = tl.where(reads[:, None], tl.sum(q * k, 2), float("-inf"))  # [BR, BH]
            now = tl.maximum(largest, score)
            now = tl.where(now == float("-inf"), 0.0, now)  # of rows that do not exist
            old, weight = tl.exp(largest - now), tl.exp(score - now)
            acc = acc * old[:, :, None] + weight[:, :, None] * v
            total = total * old + weight
            largest = now
        total = tl.where(exists[:, None], total, 1.0)
        mask = exists[:, None, None] & is_column[None, :, :]
        at = rows * STRIDE
        tl.store(p_row + HEADS + at[:, None, None] + columns[None, :, :], acc / total[:, :, None], mask=mask)
        if STATS >= 0:
            mask = exists[:, None] & (heads < H)[None, :]
            at = at[:, None] + STATS + heads[None, :]
            tl.store(p_row + at, largest, mask=mask)
            tl.store(p_row + H + at, total, mask=mask)


@triton.jit
def attend_back(
    p_table, p_row, p_keys, p_own, i_row, left, HEADS, STATS, GRAD, OF_QUERY, WEIGHTS,
    TABLE: tl.constexpr, STRIDE: tl.constexpr, H: tl.constexpr, DH: tl.constexpr, S: tl.constexpr, OWN: tl.constexpr,
    SCALE: tl.constexpr, BM: tl.constexpr, BR: tl.constexpr, BH: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Each query's gradient; at WEIGHTS the weights [S, H], and then the gradients of the scores [S, H]."""
    columns, is_column = _columns(H, DH, BH, BD)
    heads = tl.arange(0, BH)
    for i in range(0, BM, BR):
        rows = i + tl.arange(0, BR)
        exists = rows < left
        mask = exists[:, None, None] & is_column[None, :, :]
        own = tl.load(p_own + rows, mask=exists, other=0) if OWN else i_row + rows
        at = rows * STRIDE
        q = _gather(p_table, own * TABLE, columns, mask) * SCALE
        grad = _gather(p_row + GRAD, at, columns, mask)
        mean = tl.sum(grad * _gather(p_row + HEADS, at, columns, mask), 2)  # of the weights' gradients, by the weights
        of_head = exists[:, None] & (heads < H)[None, :]
        at_head = at[:, None] + heads[None, :]
        largest = tl.load(p_row + STATS + at_head, mask=of_head, other=0)
        total = tl.load(p_row + STATS + H + at_head, mask=of_head, other=1)
        acc = tl.zeros([BR, BH, BD], tl.float32)
        for slot in range(0, S):
            key = tl.load(p_keys + rows * S + slot, mask=exists, other=-1)
            reads = key >= 0
            is_read = reads[:, None, None] & is_column[None, :, :]
            k = _gather(p_table + H * DH, key * TABLE, columns, is_read)
            v = _gather(p_table + 2 * H * DH, key * TABLE, columns, is_read)
            weight = tl.where(reads[:, None], tl.exp(tl.sum(q * k, 2) - largest) / total, 0.0)  # [BR, BH]
            of_score = tl.where(reads[:, None], weight * (tl.sum(grad * v, 2) - mean) * SCALE, 0.0)
            acc += of_score[:, :, None] * k
            tl.store(p_row + WEIGHTS + slot * H + at_head, weight, mask=of_head)
            tl.store(p_row + WEIGHTS + (S + slot) * H + at_head, of_score, mask=of_head)
        tl.store(p_row + OF_QUERY + at[:, None, None] + columns[None, :, :], acc, mask=mask)


@triton.jit
def classify(
    p_row, X, p_weight, p_target, p_share, p_logits, p_loss, p_right, left,
    STRIDE: tl.constexpr, D: tl.constexpr, V: tl.constexpr, VS: tl.constexpr, LOSS: tl.constexpr, GRAD: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BL: tl.constexpr, BV: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Loss and rightness of rows; if GRAD, p_logits [rows, VS] gets the gradient of the logits, times the row's share.

    Where one block has all classes, the logits stay on the chip; else p_logits holds them at first.
    """
    for i_row in range(0, BM, BL):
        rows = i_row + tl.arange(0, BL)
        exists = rows < left
        target = tl.load(p_target + rows, mask=exists, other=0)
        share = load_vector(p_share, rows, left)[:, None]
        largest, total = tl.full([BL], float("-inf"), tl.float32), tl.zeros([BL], tl.float32)
        best, at_target = tl.zeros([BL], tl.int32), tl.zeros([BL], tl.float32)
        for i in range(0, VS, BV):
            classes = i + tl.arange(0, BV)
            z = matmul(p_row + X, rows, STRIDE, left, p_weight, classes, D, V, "nt", D, BK, PRECISION)  # [BL, BV]
            largest, total, best, at_target = meet(z, classes, target, largest, total, best, at_target, V, LOSS)
            if GRAD and VS > BV:
                store_tile(p_logits, rows, classes, VS, left, VS, z)
            elif GRAD:
                is_target = classes[None, :] == target[:, None]
                grad = grad_of_logits(z, is_target, largest[:, None], total[:, None], V, LOSS) * share
                store_tile(p_logits, rows, classes, VS, left, VS, tl.where((classes < V)[None, :], grad, 0.0))
        loss = loss_of(largest, total, at_target, V, LOSS)
        tl.store(p_loss + rows, loss, mask=exists)
        tl.store(p_right + rows, tl.where(best == target, 1.0, 0.0), mask=exists)
        if GRAD and VS > BV:
            for i in range(0, VS, BV):
                classes = i + tl.arange(0, BV)
                tl.debug_barrier()  # written by other threads
                z = load_tile(p_logits, rows, classes, VS, left, VS)
                tl.debug_barrier()
                is_target = classes[None, :] == target[:, None]
                grad = grad_of_logits(z, is_target, largest[:, None], total[:, None], V, LOSS) * share
                store_tile(p_logits, rows, classes, VS, left, VS, tl.where((classes < V)[None, :], grad, 0.0))


@triton.jit
def back_from_logits(
    p_row, OUT, p_weight, p_logits, left, STRIDE: tl.constexpr, D: tl.constexpr, V: tl.constexpr, VS: tl.constexpr,
    TRANSPOSED: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """OUT = grad of the logits · weight: weight [V, D], and if TRANSPOSED zeros up to VS."""
    rows = tl.arange(0, BM)
    for i in range(0, D, BN):
        columns = i + tl.arange(0, BN)
        grad = _by_weight(
            p_logits, rows, VS, left, p_weight, columns, VS if TRANSPOSED else V, D, TRANSPOSED, BK, PRECISION
        )
        store_tile(p_row + OUT, rows, columns, STRIDE, left, D, grad)
