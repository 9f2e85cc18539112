"""What an evaluation concludes, on the device: which runs have memorised or generalised, which end, and with what."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from grokfast import backend
from grokfast.training.experiment import Experiment
from grokfast.training.outcome import Outcome
from grokfast.transforms.sizes import ROW_BLOCK as BLOCK
from grokfast.transforms.sizes import ROW_CHUNK as CHUNK

MODELS = 128  # to a program of the kernel
COLUMNS = 8  # of a report


class Watch:
    """Follows the evaluations of E runs. A run is over as `train` says; it may go on being computed without harm.

    Attributes:
        measured: [5, E], to be written before `update`: training and test loss, training and test accuracy, and
            ‖weights‖₂.
        report: fp64 [E, 8]: step, what was measured, diverged_at and ended_at (-1: not).
        kept: [E, P], the weights with which each run that is over ended.
    """

    def __init__(self, experiments: Sequence[Experiment], outcomes: Sequence[Outcome], flat: Tensor) -> None:
        device, models = flat.device, len(experiments)
        limits = [
            (
                e.criteria.threshold, e.criteria.sustain, _or_never(e.schedule.stop_after), e.schedule.steps,
                _or_never(e.schedule.patience),
            )
            for e in experiments
        ]  # fmt: skip
        state = [
            (o.crossing.first, o.crossing.streak, _or_never(o.crossing.moment), 0,
             o.memorizing.first, o.memorizing.streak, _or_never(o.memorizing.moment))
            for o in outcomes
        ]  # fmt: skip
        self.limits = torch.tensor(limits, dtype=torch.float64).T.contiguous().to(device)
        self._state = torch.tensor(state, dtype=torch.int64).T.contiguous().to(device)
        self.ended_at = torch.full((models,), -1, dtype=torch.int64, device=device)
        self.measured = torch.zeros(5, models, dtype=flat.dtype, device=device)
        self.report = torch.zeros(models, COLUMNS, dtype=torch.float64, device=device)
        self.kept = torch.zeros_like(flat)

    @property
    def generalized_at(self) -> Tensor:
        """int64 [E], the first of `sustain` evaluations in a row at the threshold; -1: not yet."""
        return self._state[2]

    def update(self, flat: Tensor, steps: Tensor, diverged_at: Tensor) -> None:
        """Draw the conclusions from what was measured of flat [E, P] after `steps`, int64 [E]."""
        if backend.device_kernels(flat.device) == "triton" and flat.dtype is torch.float32:
            self._launch(flat, steps, diverged_at)
            return
        threshold, sustain, stop_after, last, patience = self.limits
        *test, ends_now = self._state[:4]
        moments = []
        for accuracy, (first, streak, moment) in ((self.measured[3], test), (self.measured[2], self._state[4:])):
            is_above = accuracy.double() >= threshold  # NaN breaks the streak, too
            first.copy_(torch.where(is_above & (streak == 0), steps, first))
            streak.copy_(torch.where(is_above, streak + 1, 0))
            moment.copy_(torch.where((moment < 0) & (streak == sustain), first, moment))
            moments.append(moment)
        moment, memorized = moments
        is_late = (stop_after >= 0) & (moment >= 0) & (steps >= moment + stop_after)
        is_late |= (patience >= 0) & (moment < 0) & (memorized >= 0) & (steps >= memorized + patience)
        ends_now.copy_(((diverged_at >= 0) | (steps >= last) | is_late) & (self.ended_at < 0))
        self.ended_at.copy_(torch.where(ends_now != 0, steps, self.ended_at))
        self.report.copy_(torch.stack([steps, *self.measured, diverged_at, self.ended_at], 1))
        self.kept.copy_(torch.where(ends_now[:, None] != 0, flat, self.kept))

    def _launch(self, flat: Tensor, steps: Tensor, diverged_at: Tensor) -> None:
        verdict, keep = _kernels()
        models, size = flat.shape
        with torch.cuda.device(flat.device) if flat.is_cuda else nullcontext():
            verdict[(-(-models // MODELS),)](
                self.measured, steps, diverged_at, self.limits, self._state, self.ended_at, self.report, models,
                BLOCK=MODELS, num_warps=4,
            )  # fmt: skip
            keep[(-(-size // CHUNK), models)](
                flat, self.kept, self._state[3], size, BLOCK=BLOCK, CHUNK=CHUNK, num_warps=4
            )


def _or_never(moment: int | None) -> int:
    return -1 if moment is None else moment


@functools.cache
def _kernels() -> tuple[Any, Any]:
    from grokfast.training.kernels import keep_kernel, verdict_kernel

    return verdict_kernel, keep_kernel
