"""What a minibatch of an ensemble costs beside its model: which rows count, whose loss is whose, one launch each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grokfast import backend as backends


@dataclass(frozen=True)
class BatchRows:
    """Some rows of each model's data set.

    Attributes:
        chosen: [E, B], which; 0 for none; None: all, in order.
        targets: [E, B].
        counts: [E, B], 1, or 0 for none.
        share: [E, B], of a row's loss in the mean.
    """

    chosen: Tensor | None
    targets: Tensor
    counts: Tensor
    share: Tensor


def batch_rows(batch: Tensor, targets: Tensor, dtype: torch.dtype) -> BatchRows:
    """The rows of a batch [E, B], -1 for none, of data sets with targets [E, N]; counts and share of `dtype`."""
    if backends.device_kernels(batch.device) == "triton" and dtype == torch.float32:
        from grokfast.ops.batch import kernels

        return BatchRows(*kernels.choose(batch, targets))
    chosen, counts = batch.clamp(min=0), (batch >= 0).to(dtype)
    return BatchRows(chosen, targets.gather(1, chosen), counts, counts / counts.sum(1, keepdim=True).clamp(min=1))


def sum_up(values: Tensor, right: Tensor, rows: BatchRows, loss: Tensor, correct: Tensor) -> None:
    """Write the mean loss [E] and how many rows are right, correct [E], from those of rows, [E, B] each."""
    if backends.device_kernels(values.device) == "triton" and values.dtype == torch.float32:
        from grokfast.ops.batch import kernels

        kernels.sum_up(values, right, rows.counts, rows.share, loss, correct)
        return
    torch.sum(values * rows.share, 1, dtype=loss.dtype, out=loss)
    torch.sum(right * rows.counts, 1, dtype=correct.dtype, out=correct)


class Unpacker:
    """Tensors of `shapes` [E, *shape], contiguous, from flat [E, P'] in which a model's stand one after the other.

    One model's are views of `flat`; of several they are copies in one launch, in memory that is overwritten every time.
    """

    def __init__(self, shapes: Sequence[torch.Size], device: torch.device) -> None:
        self.shapes, sizes = shapes, [shape.numel() for shape in shapes]
        self.starts = [sum(sizes[:i]) for i in range(len(sizes))]
        self.n_columns = sum(sizes)
        repeats = torch.tensor(sizes)
        self.start, self.size = (torch.tensor(n).repeat_interleave(repeats).to(device) for n in (self.starts, sizes))
        self._memory = torch.empty(0)

    def __call__(self, flat: Tensor) -> list[Tensor]:
        n_models = len(flat)
        if n_models == 1:
            return self._views(flat[:, : self.n_columns].detach().reshape(-1), 1)
        if self._memory.numel() != n_models * self.n_columns or self._memory.dtype != flat.dtype:
            self._memory = flat.new_empty(n_models * self.n_columns)
        if backends.device_kernels(flat.device) == "triton" and flat.dtype == torch.float32 and flat.stride(1) == 1:
            from grokfast.ops.batch import kernels

            kernels.unpack(flat, self.start, self.size, self._memory)
        else:
            for view, start in zip(self._views(self._memory, n_models), self.starts):
                view.flatten(1).copy_(flat.detach()[:, start : start + view[0].numel()])
        return [view.detach() for view in self._views(self._memory, n_models)]

    def _views(self, memory: Tensor, n_models: int) -> list[Tensor]:
        return [
            memory[start * n_models : (start + shape.numel()) * n_models].view(n_models, *shape)
            for start, shape in zip(self.starts, self.shapes)
        ]


def read_tokens(
    fixed_keys: Tensor,
    fixed_own: Tensor,
    table: Tensor,
    offsets: Tensor | None,
    chosen: Tensor,
    first: int,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    """Which rows a layer's rows attend to, keys [E, F + n B, T], -1 for none, and their own, [E, F + n B].

    The first F rows are the same for every model and batch, fixed_keys [F, T] and fixed_own [F]. Then come the B rows
    of the batch at position `first`, at the next, and so on to T: row b has at position t table[e, chosen[e, b], t] +
    offsets[b, t], and if `causal` attends to positions up to its own. table [E, N, T]; offsets [B, T] or None.
    """
    if backends.device_kernels(table.device) == "triton":
        from grokfast.ops.batch import kernels

        return kernels.read_tokens(fixed_keys, fixed_own, table, offsets, chosen, first, causal)
    n_models, _, seq_len = table.shape
    rows = table.gather(1, chosen.unsqueeze(2).expand(-1, -1, seq_len))  # [E, B, T]
    rows = rows if offsets is None else rows + offsets
    positions = torch.arange(seq_len, device=table.device)
    future = (positions > positions[first:, None])[:, None] & causal  # [n, 1, T]
    keys = rows.unsqueeze(1).masked_fill(future, -1).flatten(1, 2)
    own = rows[..., first:].mT.flatten(1)
    fixed = fixed_keys.expand(n_models, -1, -1), fixed_own.expand(n_models, -1)
    return torch.cat([fixed[0], keys], 1), torch.cat([fixed[1], own], 1)
