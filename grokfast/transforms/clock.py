"""What of an optimizer's step is a number per model, kept on the models' device: steps, rates, bias corrections.

Nothing of it comes from the host once it is there, so that a CUDA graph can hold any number of steps.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from grokfast import backend
from grokfast.transforms import sizes
from grokfast.transforms.filters import Filter
from grokfast.transforms.optimizers import Optimizer
from grokfast.transforms.rows import COLUMNS, HYPER_COUNT, hyper_row


class Clock:
    """Counters and hyper-parameters of E models, all on one device.

    Attributes:
        at: the steps that have been taken, as the host knows it.
        steps: int64 [E], the same on the device.
        hyper: fp64 [E, 16], the models' rows of csrc/update_rules.h's `Hyper`; the first column is the step's rate.
        adam_steps, counts: fp32 [E] and int64 [E], Adam's steps and the gradients that the filter has seen; the update
            advances them itself.
        optimizer_from, filter_from: the steps at which these two began, before which nothing counts.

    Raises ValueError unless there is one filter for each configuration.
    """

    def __init__(self, configs: Sequence[Optimizer], filters: Sequence[Filter | None], device: torch.device) -> None:
        if len(configs) != len(filters):
            raise ValueError(f"filters must be one per model, {len(configs)}, got {len(filters)}")
        rows = [model_row(config, own, config.lr) for config, own in zip(configs, filters)]
        models = len(rows)
        self.device, self.at = device, 0
        self.hyper = torch.tensor(rows, dtype=torch.float64).view(models, HYPER_COUNT).to(device)
        self.lr = self.hyper[:, 0].clone()
        self.warmup = torch.tensor([c.warmup for c in configs], dtype=torch.float64).to(device)
        self.steps = torch.zeros(models, dtype=torch.int64, device=device)
        self.adam_steps = torch.zeros(models, dtype=torch.float32, device=device)
        self.counts = torch.zeros(models, dtype=torch.int64, device=device)
        self.optimizer_from = self.filter_from = 0
        self._tickets = torch.zeros(models, dtype=torch.int32, device=device)

    def seek(self, steps: int) -> None:
        """Go on as if `steps` had been taken."""
        self.at = steps
        self.steps.fill_(steps)
        self.adam_steps.fill_(steps - self.optimizer_from)
        self.counts.fill_(steps - self.filter_from)

    def tick(self, grad: Tensor, loss: Tensor, diverged_at: Tensor) -> Tensor:
        """What comes before an update: the rate of this step, lr · min(1, step/warmup), and the step is counted.

        Returns the gradient [E, P]. It is `grad`, or where that is [S, E, P], partial gradients, their sum in their
        order, which takes the place of the first of them.
        A model whose loss [E] or gradient [E, P] is not finite gets the step's number in diverged_at, int64 [E], unless
        it has one already: -1 stands for none.
        """
        self.at += 1
        if backend.device_kernels(self.device) == "triton" and grad.dtype is torch.float32 and grad.is_contiguous():
            models, size = grad.shape[-2:]
            splits, chunk = (
                len(grad) if grad.ndim == 3 else 1,
                sizes.ROW_CHUNK if models * size >= sizes.MANY else sizes.ROW_BLOCK,
            )
            with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
                _kernel()[(-(-size // chunk), models)](
                    grad, loss, self.steps, self.lr, self.warmup, self.hyper, diverged_at, self._tickets, size,
                    BLOCK=sizes.ROW_BLOCK, CHUNK=chunk, SPLITS=splits, num_warps=4,
                )  # fmt: skip
            return grad[0] if grad.ndim == 3 else grad
        grad = sum_partials(grad)
        finite = torch.isfinite(loss + grad.sum(1))
        diverged_at.copy_(torch.where((diverged_at < 0) & ~finite, self.steps, diverged_at))
        share = (self.steps / self.warmup.clamp(min=1)).clamp(max=1)
        self.hyper[:, 0] = torch.where(self.warmup > 0, self.lr * share, self.lr)
        self.steps += 1
        return grad

    def column(self, name: str) -> Tensor:
        """A hyper-parameter as fp64 [E, 1], by its name in csrc/update_rules.h's `Hyper`."""
        i = COLUMNS[name]
        return self.hyper[:, i : i + 1]


def sum_partials(grad: Tensor) -> Tensor:
    """grad [E, P], or partials [S, E, P] added to the first of them in their order."""
    if grad.ndim == 2:
        return grad
    for part in grad[1:]:
        grad[0].add_(part)
    return grad[0]


def model_row(config: Optimizer, filter: Filter | None, lr: float) -> tuple[float, ...]:
    """A model's row of csrc/update_rules.h's `Hyper`, in its order."""
    return hyper_row(filter, **{**config.hyper, "lr": lr})


@functools.cache
def _kernel() -> Any:
    from grokfast.transforms.kernels import tick_kernel

    return tick_kernel
