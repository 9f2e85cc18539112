"""Filter and optimizer for many tensors in one Triton launch, the twin of csrc/cuda, held to csrc/update_rules.h; and
before it, for an ensemble, the bookkeeping of a step, one launch where plain PyTorch takes twenty.

A program owns one chunk of one tensor. Where the tensors lie, and with which hyper-parameters, stands in tables on the
device, so that nothing but their addresses is an argument and a CUDA graph replays the launch: steps and counts are
read and written on the device, too. The last program of a tensor to finish, known by a ticket, counts the step.

    entries    int64 [n, 11]    a row per tensor: csrc/grokfast.h's UpdateEntry, all addresses on the device
    chunks     int32 [m, 2]     a row per program: entry, chunk within it
    tickets    int32 [n]        zero before and after
    hyper      fp64 [rows, 16]  csrc/update_rules.h's Hyper, a row per param group or per model of an ensemble
    overrides  int64 [rows, 4]  addresses of fp32 scalars that stand in for lr, alpha, lamb, enabled; 0: hyper's value
"""

from __future__ import annotations

import triton
import triton.language as tl

ADAM, SGD, LION, FILTER_ONLY = (tl.constexpr(i) for i in range(4))
NO_FILTER, EMA, MA = (tl.constexpr(i) for i in range(3))


@triton.jit
def _hyper(p_hyper, p_overrides, row, COLUMN: tl.constexpr, OVERRIDE: tl.constexpr):
    """One hyper-parameter of a row, in fp64."""
    value = tl.load(p_hyper + row * 16 + COLUMN)
    if OVERRIDE >= 0:
        address = tl.load(p_overrides + row * 4 + OVERRIDE)
        if address != 0:
            value = tl.load(address.to(tl.pointer_type(tl.float32))).to(tl.float64)
    return value


@triton.jit
def _lerp(a, b, w):
    """a + w (b - a), from the nearer end, as torch.lerp."""
    return tl.where(w < 0.5, a + w * (b - a), b - (b - a) * (1 - w))


@triton.jit
def _load(address, begin, offsets, mask, DTYPE: tl.constexpr, MASKED: tl.constexpr):
    """fp32 values of a tensor of DTYPE; an unmasked chunk is aligned to 16 bytes."""
    if MASKED:
        return tl.load(address.to(tl.pointer_type(DTYPE)) + begin + offsets, mask=mask, other=0).to(tl.float32)
    return tl.load(tl.multiple_of(address.to(tl.pointer_type(DTYPE)) + begin, 16) + offsets).to(tl.float32)


@triton.jit
def _store(address, begin, offsets, mask, value, DTYPE: tl.constexpr, MASKED: tl.constexpr):
    if MASKED:
        tl.store(address.to(tl.pointer_type(DTYPE)) + begin + offsets, value.to(DTYPE), mask=mask)
    else:
        tl.store(tl.multiple_of(address.to(tl.pointer_type(DTYPE)) + begin, 16) + offsets, value.to(DTYPE))


@triton.jit
def _round_to_bf16(x):
    """The nearest bf16 number, ties to even, as fp32, which every conversion leaves as it is."""
    bits = x.to(tl.uint32, bitcast=True)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)


@triton.jit
def _filter_block(
    grad, past, total, begin, slot, offsets, mask, seen, window, ema_weight, lamb, is_on,
    FILTER: tl.constexpr, RING: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Advance a block's history by `grad` [BLOCK]; returns the filtered gradient."""
    if FILTER == EMA:
        if is_on:
            ema = _load(past, begin, offsets, mask, tl.float32, MASKED)
            ema = tl.where(seen == 0, grad, _lerp(ema, grad, ema_weight))
            _store(past, begin, offsets, mask, ema, tl.float32, MASKED)
            grad = tl.where(lamb == 0, grad, grad + lamb * ema)
    if FILTER == MA:
        if is_on:
            # Rows of the ring need not be aligned: size is any number.
            slots = past.to(tl.pointer_type(RING)) + (slot + begin) + offsets
            oldest = tl.load(slots, mask=mask & (seen >= window), other=0).to(tl.float32)
            newest = grad
            if tl.bfloat16 == RING:
                newest = _round_to_bf16(grad)
            before = _load(total, begin, offsets, mask, tl.float32, MASKED)
            now = tl.where(seen == 0, 0.0, before) - oldest + newest
            tl.store(slots, newest.to(RING), mask=mask)
            _store(total, begin, offsets, mask, now, tl.float32, MASKED)
            grad = tl.where(lamb == 0, grad, grad + lamb * now)  # while it is off, the sum may overflow
    return grad


@triton.jit
def _update_block(
    tensors, size, begin, slot, seen, window, is_on, scalars,
    RULE: tl.constexpr, FILTER: tl.constexpr, DTYPE: tl.constexpr, RING: tl.constexpr,
    BLOCK: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Elements begin .. begin + BLOCK of one tensor: addresses and scalars."""
    offsets = tl.arange(0, BLOCK)
    mask = offsets < size - begin
    param, grad, state1, state2, past, total = tensors
    ema_weight, lamb, sign, decay, l2, weight1, beta2, weight2, bias2_sqrt, eps, step_size = scalars[:11]
    momentum, undamped, nesterov = scalars[11:]
    g = _load(grad, begin, offsets, mask, DTYPE, MASKED)
    g = _filter_block(
        g, past, total, begin, slot, offsets, mask, seen, window, ema_weight, lamb, is_on, FILTER, RING, MASKED
    )
    if RULE == FILTER_ONLY:
        _store(param, begin, offsets, mask, g, DTYPE, MASKED)
    else:
        p = _load(param, begin, offsets, mask, DTYPE, MASKED)
        g = sign * g + l2 * p
        p *= decay
        if RULE == ADAM:
            m = _lerp(_load(state1, begin, offsets, mask, DTYPE, MASKED), g, weight1)
            v = _load(state2, begin, offsets, mask, DTYPE, MASKED) * beta2 + weight2 * g * g
            _store(state1, begin, offsets, mask, m, DTYPE, MASKED)
            _store(state2, begin, offsets, mask, v, DTYPE, MASKED)
            p -= step_size * tl.div_rn(m, tl.div_rn(tl.sqrt_rn(v), bias2_sqrt) + eps)
        if RULE == LION:
            m = _load(state1, begin, offsets, mask, DTYPE, MASKED)
            u = _lerp(m, g, weight1)
            p -= step_size * tl.where(u > 0, 1.0, tl.where(u < 0, -1.0, 0.0))
            _store(state1, begin, offsets, mask, _lerp(m, g, weight2), DTYPE, MASKED)
        if RULE == SGD:
            if state1 != 0:
                buffer = momentum * _load(state1, begin, offsets, mask, DTYPE, MASKED) + undamped * g
                _store(state1, begin, offsets, mask, buffer, DTYPE, MASKED)
                g = tl.where(nesterov, g + momentum * buffer, buffer)
            p -= step_size * g
        _store(param, begin, offsets, mask, p, DTYPE, MASKED)


@triton.jit
def _resum(
    past, total, size, begin, count, window,
    BLOCK: tl.constexpr, CHUNK: tl.constexpr, SLICE: tl.constexpr, RING: tl.constexpr,
):  # fmt: skip
    """Sum anew the slice of each block whose turn it is: each has one in 4 windows, which bounds the drift."""
    turn = count % (4 * window)
    if turn * SLICE < BLOCK:
        places = tl.arange(0, CHUNK // BLOCK * SLICE)
        columns = begin + places // SLICE * BLOCK + turn * SLICE + places % SLICE
        mask = columns < size
        live = tl.minimum(count + 1, window)
        fresh = tl.zeros([CHUNK // BLOCK * SLICE], tl.float32)
        tl.debug_barrier()  # other threads wrote these columns' newest value and sum
        ring = past.to(tl.pointer_type(RING))
        for row in range(0, live):
            fresh += tl.load(ring + row * size + columns, mask=mask, other=0).to(tl.float32)
        tl.store(total.to(tl.pointer_type(tl.float32)) + columns, fresh, mask=mask)


@triton.jit
def update_kernel(
    p_entries, p_chunks, p_tickets, p_hyper, p_overrides,
    RULE: tl.constexpr, FILTER: tl.constexpr, DTYPE: tl.constexpr, RING: tl.constexpr,
    BLOCK: tl.constexpr, CHUNK: tl.constexpr, SLICE: tl.constexpr,
):  # fmt: skip
    i_entry = tl.load(p_chunks + 2 * tl.program_id(0).to(tl.int64)).to(tl.int64)
    begin = tl.load(p_chunks + 2 * tl.program_id(0).to(tl.int64) + 1).to(tl.int64) * CHUNK
    entry = p_entries + i_entry * 11
    p_step, p_count, row = tl.load(entry + 5), tl.load(entry + 8), tl.load(entry + 10)

    # Scalars, in fp64 as `prepare` of csrc/update_rules.h; first of all, while few registers are taken.
    lr = _hyper(p_hyper, p_overrides, row, 0, 0)
    weight_decay = _hyper(p_hyper, p_overrides, row, 4, -1)
    is_decoupled = (_hyper(p_hyper, p_overrides, row, 5, -1) != 0) | (RULE == LION)
    sign = tl.where(_hyper(p_hyper, p_overrides, row, 9, -1) != 0, -1.0, 1.0).to(tl.float32)
    decay = tl.where(is_decoupled, 1 - lr * weight_decay, 1.0).to(tl.float32)
    l2 = tl.where(is_decoupled, 0.0, weight_decay).to(tl.float32)
    beta1, beta2 = _hyper(p_hyper, p_overrides, row, 1, -1), _hyper(p_hyper, p_overrides, row, 2, -1)
    momentum = _hyper(p_hyper, p_overrides, row, 6, -1).to(tl.float32)
    undamped = (1 - _hyper(p_hyper, p_overrides, row, 7, -1)).to(tl.float32)
    nesterov = _hyper(p_hyper, p_overrides, row, 8, -1) != 0
    bias2_sqrt, step_size, step = tl.full((), 1, tl.float64), lr, tl.full((), 0, tl.float32)
    if RULE == ADAM:
        step = tl.load(p_step.to(tl.pointer_type(tl.float32))) + 1
        bias2_sqrt = tl.sqrt(1 - tl.exp2(step.to(tl.float64) * tl.log2(beta2)))
        step_size = lr / (1 - tl.exp2(step.to(tl.float64) * tl.log2(beta1)))
    count, window, is_on = tl.full((), 1, tl.int64), tl.full((), 1, tl.int64), True
    ema_weight, lamb = tl.full((), 0, tl.float64), tl.full((), 0, tl.float64)
    if FILTER != NO_FILTER:
        is_on = _hyper(p_hyper, p_overrides, row, 15, 3) != 0
        lamb = _hyper(p_hyper, p_overrides, row, 11, 2)
        ema_weight = 1 - _hyper(p_hyper, p_overrides, row, 10, 1)
        window = _hyper(p_hyper, p_overrides, row, 12, -1).to(tl.int64)
        if p_count != 0:
            count = tl.load(p_count.to(tl.pointer_type(tl.int64)))
    if FILTER == MA:
        seen = tl.minimum(count + 1, window)
        is_mean = _hyper(p_hyper, p_overrides, row, 13, -1) != 0
        is_waiting = (_hyper(p_hyper, p_overrides, row, 14, -1) != 0) & (seen < window)
        lamb = tl.where(is_waiting, 0.0, tl.where(is_mean, lamb / seen.to(tl.float64), lamb))
    scalars = (
        ema_weight.to(tl.float32), lamb.to(tl.float32), sign, decay, l2,
        (1 - beta1).to(tl.float32), beta2.to(tl.float32), (1 - beta2).to(tl.float32), bias2_sqrt.to(tl.float32),
        _hyper(p_hyper, p_overrides, row, 3, -1).to(tl.float32), step_size.to(tl.float32), momentum, undamped, nesterov,
    )  # fmt: skip

    size, param, grad = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
    state1, state2, past, total = tl.load(entry + 3), tl.load(entry + 4), tl.load(entry + 6), tl.load(entry + 7)
    tensors = (param, grad, state1, state2, past, total)
    slot = count % window * size
    is_aligned = (param | grad | state1 | state2 | past | total) % 16 == 0
    for i_block in range(CHUNK // BLOCK):
        at = begin + i_block * BLOCK
        if is_aligned & (at + BLOCK <= size):
            _update_block(
                tensors, size, at, slot, count, window, is_on, scalars, RULE, FILTER, DTYPE, RING, BLOCK, False
            )
        elif at < size:
            _update_block(
                tensors, size, at, slot, count, window, is_on, scalars, RULE, FILTER, DTYPE, RING, BLOCK, True
            )
    if FILTER == MA:
        if is_on:
            _resum(past, total, size, begin, count, window, BLOCK, CHUNK, SLICE, RING)

    # Every thread has read step and count before the ticket is drawn.
    tl.debug_barrier()
    programs = tl.maximum((size + CHUNK - 1) // CHUNK, 1)
    if tl.atomic_add(p_tickets + i_entry, 1) == programs - 1:
        tl.store(p_tickets + i_entry, 0)
        if RULE == ADAM:
            tl.store(p_step.to(tl.pointer_type(tl.float32)), step)
        if FILTER != NO_FILTER:
            if p_count != 0:
                tl.store(p_count.to(tl.pointer_type(tl.int64)), tl.where(is_on, count + 1, 0))


@triton.jit
def tick_kernel(
    p_grad, p_loss, p_steps, p_lr, p_warmup, p_hyper, p_diverged, p_tickets, size,
    BLOCK: tl.constexpr, CHUNK: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Clock.tick: grid (chunks of a gradient, models). The last program of a model to finish counts its step.

    Of partial gradients [SPLITS, E, size] the sum is left in the place of the first.
    """
    i_chunk, i_model = tl.program_id(0), tl.program_id(1).to(tl.int64)
    step = tl.load(p_steps + i_model)
    loss = tl.load(p_loss + i_model).to(tl.float32)
    unfinished = tl.where(tl.abs(loss) < float("inf"), 0, 1)  # NaN compares false
    first = i_chunk * CHUNK
    for begin in range(first, tl.minimum(first + CHUNK, size), BLOCK):
        at = begin + tl.arange(0, BLOCK)
        place = p_grad + i_model * size + at
        grad = tl.load(place, mask=at < size, other=0)
        if SPLITS > 1:
            for i in tl.static_range(1, SPLITS):
                grad += tl.load(place + i * tl.num_programs(1).to(tl.int64) * size, mask=at < size, other=0)
            tl.store(place, grad, mask=at < size)
        unfinished += tl.sum(tl.where(tl.abs(grad) < float("inf"), 0, 1))
    if unfinished > 0:
        if tl.load(p_diverged + i_model) < 0:
            tl.store(p_diverged + i_model, step)  # whoever else writes it writes the same
    if i_chunk == 0:
        lr, warmup = tl.load(p_lr + i_model), tl.load(p_warmup + i_model)
        if warmup > 0:
            lr *= tl.minimum(step.to(tl.float64) / warmup, 1.0)
        tl.store(p_hyper + i_model * 16, lr)
    tl.debug_barrier()  # every thread has read the step before the ticket is drawn
    if tl.atomic_add(p_tickets + i_model, 1) == tl.num_programs(0) - 1:
        tl.store(p_tickets + i_model, 0)
        tl.store(p_steps + i_model, step + 1)
