"""The bookkeeping of an evaluation in Triton: one launch where plain PyTorch takes twenty."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def verdict_kernel(
    p_measured, p_steps, p_diverged, p_limits, p_state, p_ended, p_report, n_models, BLOCK: tl.constexpr,
):  # fmt: skip
    """Watch.update of BLOCK models: measured [5, E], limits [5, E], state [7, E], report [E, 8]."""
    i_model = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i_model < n_models
    step = tl.load(p_steps + i_model, mask=mask, other=0)
    for i in tl.static_range(5):
        value = tl.load(p_measured + i * n_models + i_model, mask=mask, other=0).to(tl.float64)
        tl.store(p_report + i_model * 8 + 1 + i, value, mask=mask)
    threshold = tl.load(p_limits + i_model, mask=mask, other=0)
    sustain = tl.load(p_limits + n_models + i_model, mask=mask, other=0).to(tl.int64)
    stop_after = tl.load(p_limits + 2 * n_models + i_model, mask=mask, other=0).to(tl.int64)
    last = tl.load(p_limits + 3 * n_models + i_model, mask=mask, other=0).to(tl.int64)
    patience = tl.load(p_limits + 4 * n_models + i_model, mask=mask, other=0).to(tl.int64)
    ended_at = tl.load(p_ended + i_model, mask=mask, other=0)
    diverged_at = tl.load(p_diverged + i_model, mask=mask, other=0)

    memorized = step
    moment = step
    for i in tl.static_range(2):  # training accuracy, then that of the test
        accuracy = tl.load(p_measured + (2 + i) * n_models + i_model, mask=mask, other=0).to(tl.float64)
        p_own = p_state + (4 - 4 * i) * n_models + i_model
        first = tl.load(p_own, mask=mask, other=0)
        streak = tl.load(p_own + n_models, mask=mask, other=0)
        memorized = moment
        moment = tl.load(p_own + 2 * n_models, mask=mask, other=0)
        is_above = accuracy >= threshold  # NaN breaks the streak, too
        first = tl.where(is_above & (streak == 0), step, first)
        streak = tl.where(is_above, streak + 1, 0)
        moment = tl.where((moment < 0) & (streak == sustain), first, moment)
        tl.store(p_own, first, mask=mask)
        tl.store(p_own + n_models, streak, mask=mask)
        tl.store(p_own + 2 * n_models, moment, mask=mask)
    is_late = (stop_after >= 0) & (moment >= 0) & (step >= moment + stop_after)
    is_late = is_late | ((patience >= 0) & (moment < 0) & (memorized >= 0) & (step >= memorized + patience))
    is_over = (diverged_at >= 0) | (step >= last) | is_late
    ends_now = is_over & (ended_at < 0)
    ended_at = tl.where(ends_now, step, ended_at)
    tl.store(p_state + 3 * n_models + i_model, ends_now.to(tl.int64), mask=mask)
    tl.store(p_ended + i_model, ended_at, mask=mask)
    tl.store(p_report + i_model * 8, step.to(tl.float64), mask=mask)
    tl.store(p_report + i_model * 8 + 6, diverged_at.to(tl.float64), mask=mask)
    tl.store(p_report + i_model * 8 + 7, ended_at.to(tl.float64), mask=mask)


@triton.jit
def keep_kernel(p_flat, p_kept, p_ends_now, size, BLOCK: tl.constexpr, CHUNK: tl.constexpr):
    """Copy the rows [P] of flat [E, P] whose run ends now: grid (chunks of a row, models)."""
    i_model = tl.program_id(1).to(tl.int64)
    if tl.load(p_ends_now + i_model) != 0:
        first = tl.program_id(0) * CHUNK
        for begin in range(0, CHUNK, BLOCK):
            at = first + begin + tl.arange(0, BLOCK)
            tl.store(
                p_kept + i_model * size + at, tl.load(p_flat + i_model * size + at, mask=at < size), mask=at < size
            )
