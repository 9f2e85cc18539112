"""The order of minibatches: a permutation for each seed and epoch, ready on the device before its steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from grokfast.seeds import generator
from grokfast.training.experiment import Experiment


def orders(experiments: Sequence[Experiment], rows: int, epoch: int) -> Tensor:
    """[E, rows] int64: for each experiment the permutation of its training rows in one epoch.

    A function of seed and epoch alone, so that a resumed run has the same batches.
    """
    seeds = [e.seed if e.schedule.batch_seed is None else e.schedule.batch_seed for e in experiments]
    return torch.stack([torch.randperm(rows, generator=generator(seed, "batches", epoch)) for seed in seeds])


class Batches:
    """The batches of some epochs to come, one after the other in a ring on the device.

    `prepare` copies the epochs in which the next steps lie, without waiting; `select` finds a step's batch by the
    device's own counter. Of a batch with fewer rows than `size`, the last of its epoch, the rest is -1.
    """

    def __init__(
        self, experiments: Sequence[Experiment], rows: int, size: int, device: torch.device, most_steps: int
    ) -> None:
        self.experiments, self.rows, self.size, self.device = list(experiments), rows, size, device
        self.per_epoch = -(-rows // size)
        self.epochs = self.epochs_for(most_steps, self.per_epoch)
        shape = (self.epochs * self.per_epoch, len(self.experiments), size)
        self.ring = torch.full(shape, -1, dtype=torch.int64, device=device)
        self._held = [-1] * self.epochs
        self._batch = torch.empty(1, *shape[1:], dtype=torch.int64, device=device)

    @staticmethod
    def epochs_for(steps: int, per_epoch: int) -> int:
        """In how many epochs `steps` steps may lie at most."""
        return 2 + (steps - 2) // per_epoch if steps > 1 else 1

    def length(self, step: int) -> int:
        """Rows of the batch of a step."""
        return min(self.size, self.rows - step % self.per_epoch * self.size)

    def prepare(self, begin: int, steps: int) -> None:
        """Have the batches of `steps` (up to `most_steps`) steps from `begin` on."""
        for epoch in range(begin // self.per_epoch, (begin + steps - 1) // self.per_epoch + 1):
            slot = epoch % self.epochs
            if self._held[slot] == epoch:
                continue
            rows = orders(self.experiments, self.rows, epoch)
            padded = torch.nn.functional.pad(rows, (0, self.per_epoch * self.size - self.rows), value=-1)
            batches = padded.view(len(rows), self.per_epoch, self.size).transpose(0, 1).contiguous()
            batches = batches.pin_memory() if self.device.type == "cuda" else batches
            self.ring[slot * self.per_epoch : (slot + 1) * self.per_epoch].copy_(batches, non_blocking=True)
            self._held[slot] = epoch

    def select(self, steps: Tensor) -> Tensor:
        """[E, size], the batch of the step that the device counts in `steps`, int64 [E], the same for all."""
        torch.index_select(self.ring, 0, steps[:1] % len(self.ring), out=self._batch)
        return self._batch[0]
