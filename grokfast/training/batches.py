"""The order of minibatches: a permutation for each seed and epoch, ready on the device before its steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from grokfast.schedules.batches import Shown
from grokfast.seeds import generator
from grokfast.training.experiment import Experiment

AT_A_TIME = 1 << 12  # rows


class Orders:
    """Which of its training rows each run takes at a step, `size` at most: its own permutation in every epoch.

    n_rows says how many rows each run has. A run with no more than `size` takes them all, in order, at every step.
    What a run takes depends on its seed and rows alone, so that it has the same batches in any company, and resumed.
    `shown` says which rows each run may be shown at a step, where that changes: bool [end - begin, rows], or None. Its
    batches are then `size` of these, in the epoch's order, from where the step is in it; all of them, where they are
    fewer.
    """

    def __init__(
        self,
        experiments: Sequence[Experiment],
        n_rows: Sequence[int],
        size: int,
        shown: Sequence[Shown | None] = (),
    ) -> None:
        self.size, self._rows = size, list(n_rows)
        self._shown = {model: rows for model, rows in enumerate(shown) if rows is not None}
        self._seeds = [e.seed if e.schedule.batch_seed is None else e.schedule.batch_seed for e in experiments]
        self._models: dict[int, list[int]] = {}  # by their number of rows
        for model, rows in enumerate(n_rows):
            self._models.setdefault(rows, []).append(model)
        self._held: dict[int, tuple[int, Tensor]] = {}
        self._made, self._ahead = range(0), torch.empty(0)

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch; that of the most rows, where runs differ."""
        return -(-max(self._models) // self.size)

    def length(self, step: int) -> int:
        """Rows of the step's largest batch."""
        if self._shown:
            return self.size
        return max(
            min(self.size, rows - step % -(-rows // self.size) * self.size) if rows > self.size else rows
            for rows in self._models
        )

    def batch(self, step: int) -> Tensor:
        """[E, length] int64 on the CPU, of one step; where steps follow each other, some are made at a time."""
        if step not in self._made:
            at_a_time = 1 if self._shown else max(1, AT_A_TIME // (len(self._seeds) * self.size))
            self._made = range(step, step + at_a_time)
            self._ahead = self.batches(step, step + at_a_time)
        return self._ahead[step - self._made.start, :, : self.length(step)]

    def batches(self, begin: int, end: int) -> Tensor:
        """[end - begin, E, size] int64 on the CPU, of the steps from `begin` up to `end`; where a batch ends, -1."""
        found = torch.full((end - begin, len(self._seeds), self.size), -1)
        for rows, models in self._models.items():
            if rows <= self.size:
                found[:, models, :rows] = torch.arange(rows)
                continue
            per_epoch = -(-rows // self.size)
            for epoch in range(begin // per_epoch, (end - 1) // per_epoch + 1):
                first = epoch * per_epoch
                low, high = max(begin, first), min(end, first + per_epoch)
                found[low - begin : high - begin, models] = self._epoch(rows, epoch)[low - first : high - first]
        for model, shown in self._shown.items():
            found[:, model] = self._among(model, shown(begin, end), begin, end)
        return found

    def _among(self, model: int, shown: Tensor, begin: int, end: int) -> Tensor:
        """[end - begin, size], rows of a run's that may be shown."""
        rows = self._rows[model]
        per_epoch = -(-rows // self.size)
        found = torch.full((end - begin, self.size), -1)
        for i, step in enumerate(range(begin, end)):
            order = torch.arange(rows)
            if per_epoch > 1:
                at = self._models[rows].index(model)
                order = self._epoch(rows, step // per_epoch)[:, at].flatten()[:rows]
            order = order[shown[i][order]]
            if not len(order):
                raise ValueError(f"schedule.changes leave no row of the training set at step {step}")
            first = step % per_epoch * self.size
            taken = (first + torch.arange(min(self.size, len(order)))) % len(order)
            found[i, : len(taken)] = order[taken]
        return found

    def _epoch(self, rows: int, epoch: int) -> Tensor:
        """[steps, models, size], an epoch of the runs with so many rows."""
        if self._held.get(rows, (-1,))[0] != epoch:
            seeds = [self._seeds[model] for model in self._models[rows]]
            order = [torch.randperm(rows, generator=generator(seed, "batches", epoch)) for seed in seeds]
            padded = torch.nn.functional.pad(torch.stack(order), (0, -rows % self.size), value=-1)
            self._held[rows] = epoch, padded.view(len(seeds), -1, self.size).transpose(0, 1)
        return self._held[rows][1]


class Batches:
    """The batches of some steps to come in a ring on the device: `most_steps` of them.

    `prepare` copies those of the next steps, without waiting; `select` finds a step's by the device's own counter.
    """

    def __init__(self, orders: Orders, n_models: int, device: torch.device, most_steps: int) -> None:
        self.orders, self.device = orders, device
        self.ring = torch.full((most_steps, n_models, orders.size), -1, dtype=torch.int64, device=device)
        self._held = range(0)
        self._batch = torch.empty_like(self.ring[:1])

    def prepare(self, begin: int, steps: int) -> None:
        """Have the batches of `steps` (up to `most_steps`) steps from `begin` on."""
        if begin in self._held and begin + steps - 1 in self._held:
            return
        self._held = range(begin, begin + len(self.ring))
        batches = self.orders.batches(begin, begin + len(self.ring))
        batches = batches.pin_memory() if self.device.type == "cuda" else batches
        at = begin % len(self.ring)
        self.ring[at:].copy_(batches[: len(self.ring) - at], non_blocking=True)
        self.ring[:at].copy_(batches[len(self.ring) - at :], non_blocking=True)

    def select(self, steps: Tensor) -> Tensor:
        """[E, size], the batch of the step that the device counts in `steps`, int64 [E], the same for all."""
        torch.index_select(self.ring, 0, steps[:1] % len(self.ring), out=self._batch)
        return self._batch[0]
