"""Which row of a table each row of an output reads, and the way back: who reads each row of the table."""

from __future__ import annotations

import functools
import os

import torch
from torch import Tensor

from grokfast import backend, checks

_SLEEPS = os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive" or os.environ.get("GOMP_SPINCOUNT") == "0"
_WORTHWHILE = 1 << 21 if _SLEEPS else 1 << 17  # additions


class RowIndex:
    """index [R], or [R, S] for up to S rows each, into a table of `n_rows`; immutable, made once and used often.

    In [R, S] the rows that are read come first, at least one of them; -1 fills up what follows.

    Raises:
        TypeError, ValueError: index is no int64 tensor of one or two axes, n_rows is negative, or an unused entry
            stands before a used one.
        IndexError: an entry is outside [0, n_rows).
    """

    def __init__(self, index: Tensor, n_rows: int) -> None:
        if not isinstance(index, Tensor) or index.dtype != torch.int64:
            raise TypeError(f"index must be an int64 tensor, got {getattr(index, 'dtype', type(index).__name__)}")
        if index.ndim not in (1, 2):
            raise ValueError(f"index must be [R] or [R, S], got {tuple(index.shape)}")
        self.n_rows = checks.integer("n_rows", n_rows, minimum=0)
        self.index = index.clone(memory_format=torch.contiguous_format)
        if index.numel() == 0:
            return
        low, high = (int(edge) for edge in index.aminmax())
        is_padded = low == -1 and index.ndim == 2
        if (low < 0 and not is_padded) or high >= n_rows:
            raise IndexError(f"index must be in [0, {n_rows}), got {low if low < 0 else high}")
        if is_padded and ((index[:, 0] < 0).any() or ((index[:, 1:] >= 0) & (index[:, :-1] < 0)).any()):
            raise ValueError("index must have the used entries of a row first, at least one; -1 stands before another")

    @classmethod
    def trusted(cls, index: Tensor, n_rows: int) -> RowIndex:
        """Of an index that is right by construction and stays as it is: nothing is checked or copied."""
        self = cls.__new__(cls)
        self.index, self.n_rows = index.contiguous(), n_rows
        return self

    @property
    def device(self) -> torch.device:
        return self.index.device

    @property
    def shape(self) -> torch.Size:
        """[R] or [R, S]."""
        return self.index.shape

    @functools.cached_property
    def readers(self) -> tuple[Tensor, Tensor]:
        """start [n_rows + 1], items: flat positions in `index` grouped by row, items[start[k] : start[k + 1]] read k.

        In increasing order within a group: sums over them have one order.
        """
        if self.device.type != "cpu" or backend.extension() is None:
            return group_readers(self.index.flatten(), self.n_rows)
        start, items = self.index.new_empty(self.n_rows + 1), self.index.new_empty(self.index.numel())
        backend.load_extension().group_readers(self.index.view(-1), self.n_rows, start, items)
        return start, items


class PairIndex:
    """pairs [E, N, 2], which rows of two tables of `n_a` and `n_b` rows each row of ops.pair_embed reads.

    Immutable, made once and used often: the readers of each row, which the kernels' backward sums over, are worked out
    once, instead of in every backward. Pairs that all models share, expanded to E, are kept once.

    Attributes:
        pairs: [E, N, 2], its own.
        n_rows: n_a, n_b.
        readers: start [E, n_a + 1] and items [E, N] of the first table, as RowIndex's of each model; of the second.

    Raises:
        TypeError, ValueError: pairs is no int64 tensor [E, N, 2], n_a or n_b is negative.
        IndexError: an entry is outside of its table.
    """

    def __init__(self, pairs: Tensor, n_a: int, n_b: int) -> None:
        if not isinstance(pairs, Tensor) or pairs.dtype != torch.int64:
            raise TypeError(f"pairs must be an int64 tensor, got {getattr(pairs, 'dtype', type(pairs).__name__)}")
        if pairs.ndim != 3 or pairs.shape[2] != 2:
            raise ValueError(f"pairs must be [E, N, 2], got {tuple(pairs.shape)}")
        self.n_rows = checks.integer("n_a", n_a, minimum=0), checks.integer("n_b", n_b, minimum=0)
        own = pairs[:1] if pairs.stride(0) == 0 else pairs
        self.pairs = own.clone(memory_format=torch.contiguous_format).expand(pairs.shape)
        for i, n in enumerate(self.n_rows if pairs.numel() else ()):
            low, high = (int(edge) for edge in own[..., i].aminmax())
            if low < 0 or high >= n:
                raise IndexError(f"pairs[..., {i}] must be in [0, {n}), got {low if low < 0 else high}")
        self.readers = pair_readers(self.pairs, n_a, n_b)


def pair_readers(pairs: Tensor, n_a: int, n_b: int) -> list[Tensor]:
    """PairIndex.readers of any pairs [E, N, 2]; of entries outside of a table there is none."""
    own = pairs[:1] if pairs.stride(0) == 0 else pairs
    groups = [t for i, n in enumerate((n_a, n_b)) for t in group_readers(own[..., i], n)]
    return [t.expand(len(pairs), -1) for t in groups]


def group_readers(index: Tensor, n_rows: int) -> tuple[Tensor, Tensor]:
    """start [..., n_rows + 1] and items [..., R] as of RowIndex.readers, for an index [..., R] on any device."""
    ordered, items = index.contiguous().sort(dim=-1, stable=True)
    rows = torch.arange(n_rows + 1, device=index.device).expand(*index.shape[:-1], -1)
    return torch.searchsorted(ordered, rows.contiguous()), items


def threads_for(t: Tensor, cost: int = 1) -> int:
    """For one pass over `t`, which costs `cost` times an addition: one where waking another costs more than it saves.

    Where threads sleep between passes, waking one takes about 50 µs, where they wait busily 1 or 2 µs.
    """
    return torch.get_num_threads() if cost * t.numel() >= _WORTHWHILE else 1


def sum_readers(x: Tensor, index: RowIndex) -> Tensor:
    """out[k] = the sum of x's rows that read row k, in their order: x [R, d] -> [n_rows, d].

    By the extension: contiguous CPU fp32 tensors only, as for sum_rows and add_rows.
    """
    out = x.new_empty(index.n_rows, x.shape[1])
    backend.load_extension().sum_readers(x, *index.readers, out, threads_for(x))
    return out


def sum_rows(x: Tensor, out: Tensor | None = None) -> Tensor:
    """The sum of x's rows in their order: x [R, d], out [d]."""
    out = x.new_empty(x.shape[1]) if out is None else out
    backend.load_extension().sum_rows(x, out, threads_for(x))
    return out


def add_rows(out: Tensor, bias: Tensor | None, skip: Tensor | None, index: RowIndex | None = None) -> None:
    """out += bias + skip[index] in one pass: out [R, d], bias [d] or None, skip [n_rows, d] or None."""
    if bias is None and skip is None:
        return
    bias, skip = (None if t is None else t.contiguous() for t in (bias, skip))
    at = None if index is None else index.index
    backend.load_extension().add_rows(out, skip, at, bias, threads_for(out))
