"""What of a data set's forward pass is distinct: which rows each layer of a GrokTransformer has to compute, and how.

Before the first attention, everything is a function of a token and its position. In a causal model, what a layer gives
at position t is a function of tokens 0..t, the prefix, of which enumerated data has few at the first positions. And in
the last layer only the position that is read is needed.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from grokfast.models.transformer.model import TransformerConfig
from grokfast.ops.rows import RowIndex

WORTHWHILE = 0.75  # a table is computed where it has at most so many rows per row of the batch


@dataclass(frozen=True)
class LayerRows:
    """The rows of one layer.

    Attributes:
        first: the rows from here on are those whose position the layer computes; keys and values come from all rows.
        keys: [R, T], for each row of the layer's output the incoming rows that it attends to.
        query: [R], for each row of the layer's output its own incoming row, counted from `first`; None: the r-th.
    """

    first: int
    keys: RowIndex
    query: RowIndex | None


@dataclass(frozen=True)
class PlannedRows:
    """A batch as the rows to compute.

    Attributes:
        pairs: [R, 2], token and position of each row that enters the first layer.
        layers: one for each layer.
        output: [B], the computed row of each row of the batch; None: the r-th, or where several positions may be asked
            those that are, row after row.
    """

    pairs: Tensor
    layers: tuple[LayerRows, ...]
    output: RowIndex | None


class Plan:
    """The plan of a data set tokens [N, T] for models of one config; `rows` gives that of a batch of it.

    asked: bool [N, S], at which of the last S positions of a row the model is asked; None: at the last one.

    It is made once; a batch then costs a few look-ups. A position whose tokens (in the first layer) or prefixes (after
    it) are hardly fewer than the rows of a batch is computed row by row, so that data which share nothing cost what
    they ordinarily do. Where config.causal is False, prefixes share nothing. Dropout is not planned for: equal prefixes
    have different masks.

    Raises:
        TypeError, ValueError: config is no TransformerConfig, or tokens is not an int64 tensor [N, T], not empty, or
            asked no bool [N, S], S from 1 to T.
    """

    def __init__(self, config: TransformerConfig, tokens: Tensor, asked: Tensor | None = None) -> None:
        if not isinstance(config, TransformerConfig):
            raise TypeError(f"config must be a TransformerConfig, got {config!r} ({type(config).__name__})")
        if not isinstance(tokens, Tensor) or tokens.dtype != torch.int64:
            raise TypeError(f"tokens must be an int64 tensor, got {getattr(tokens, 'dtype', type(tokens).__name__)}")
        if tokens.ndim != 2 or tokens.numel() == 0:
            raise ValueError(f"tokens must be [N, T], not empty, got {list(tokens.shape)}")
        if asked is not None and (
            asked.dtype is not torch.bool
            or asked.ndim != 2
            or len(asked) != len(tokens)
            or not 1 <= asked.shape[1] <= tokens.shape[1]
        ):
            raise ValueError(f"asked must be bool [{len(tokens)}, S], got {asked.dtype} {list(asked.shape)}")
        self.config, self.asked = config, None if asked is None else asked.cpu().clone()
        self.tokens = tokens.cpu().clone()
        values, token_ids = zip(*(column.unique(return_inverse=True) for column in self.tokens.unbind(1)))
        self.token_values: list[Tensor] = list(values)  # [V_t] each
        self.token_ids = torch.stack(token_ids, 1)  # [N, T] into token_values[t]
        self.some_rows: list[Tensor] = []  # [P_t] each, a row of the data set that has the prefix
        prefix_ids = []
        prefix = torch.zeros_like(self.tokens[:, 0])
        for ids, of_position in zip(self.token_ids.unbind(1), self.token_values):
            _, prefix = (prefix * len(of_position) + ids).unique(return_inverse=True)
            prefix_ids.append(prefix)
            some = prefix.new_empty(int(prefix.max()) + 1)
            some[prefix] = torch.arange(len(prefix))  # any row that has the prefix will do
            self.some_rows.append(some)
        self.prefix_ids = torch.stack(prefix_ids, 1)  # [N, T] into some_rows[t]
        self._layouts: dict[int, _Layout] = {}

    def __len__(self) -> int:
        """N."""
        return len(self.tokens)

    @functools.cached_property
    def all_rows(self) -> PlannedRows:
        """The whole data set, in its order."""
        return self._rows(torch.arange(len(self)))

    @functools.cached_property
    def common_position(self) -> int | None:
        """The last position that has one token in all rows; None: there is none."""
        return next((t for t in range(len(self.token_values) - 1, -1, -1) if len(self.token_values[t]) == 1), None)

    def rows(self, batch: Tensor | None = None) -> PlannedRows:
        """The rows to compute for the data set's rows `batch` [B], int64; None: for all of them, in order.

        Raises IndexError where a row is outside the data set, ValueError or TypeError where batch is no [B] int64.
        """
        if batch is None:
            return self.all_rows
        if not isinstance(batch, Tensor) or batch.dtype != torch.int64:
            raise TypeError(f"batch must be an int64 tensor, got {getattr(batch, 'dtype', type(batch).__name__)}")
        if batch.ndim != 1 or len(batch) == 0:
            raise ValueError(f"batch must be [B], not empty, got {list(batch.shape)}")
        return self._rows(batch)

    def shares(self, size: int | None = None) -> bool:
        """Whether a batch of `size` rows (None: all) is fewer rows to the layers, beyond tables of tokens.

        Where it is not, only fused operations keep a plan from costing more than the ordinary computation: on plain
        PyTorch, keys and values are copied out of their tables.
        """
        return self.config.n_layers == 1 or self._layout(len(self) if size is None else size).n_tables > 0

    def _rows(self, batch: Tensor) -> PlannedRows:
        return self._layout(len(batch)).rows(batch)

    def _layout(self, size: int) -> _Layout:
        if size not in self._layouts:
            self._layouts[size] = _Layout(self, size)
        return self._layouts[size]


class _Layout:
    """What batches of one size have in common: which positions are tables, and where each position's rows begin."""

    def __init__(self, plan: Plan, size: int) -> None:
        self.plan, self.config = plan, plan.config
        enough = WORTHWHILE * size
        tokens = [len(values) <= enough for values in plan.token_values]
        prefixes = [plan.config.causal and len(rows) <= enough for rows in plan.some_rows]
        self.shares_last = prefixes[-1] and plan.asked is None
        self.n_tables = sum(prefixes)  # the first ones: there are never fewer prefixes at a later position
        seq_len = plan.tokens.shape[1]
        columns = torch.arange(seq_len)
        future = columns > columns[:, None] if plan.config.causal else torch.zeros(seq_len, seq_len, dtype=torch.bool)
        self.future = future[self.n_tables :, None]  # [n, 1, T] of the positions that are no tables
        self.before = _Sources(plan.token_ids, [len(v) for v in plan.token_values], tokens, size)
        self.after = _Sources(plan.prefix_ids, [len(rows) for rows in plan.some_rows], prefixes, size)
        self.of_tables: dict[str, tuple[Tensor, Tensor]] = {}
        for name, sources in (("before", self.before), ("after", self.after)):
            keys = [sources.table[plan.some_rows[t]].masked_fill(future[t], -1) for t in range(self.n_tables)]
            query = [k[:, t] for t, k in enumerate(keys)]
            none = columns.new_empty(0)
            self.of_tables[name] = torch.cat([none.view(0, seq_len), *keys]), torch.cat([none, *query])
        self.pairs = [
            torch.stack([values, values.new_full(values.shape, t)], 1) if shared else None
            for t, (values, shared) in enumerate(zip(plan.token_values, tokens))
        ]
        self.all_pairs = torch.cat([p for p in self.pairs if p is not None]) if all(tokens) else None
        self.last_table = self._last(plan.some_rows[-1]) if self.shares_last else None

    def rows(self, batch: Tensor) -> PlannedRows:
        plan, n_layers = self.plan, self.config.n_layers
        if plan.asked is not None:
            last, output = self._asked(batch, plan.asked[batch]), None
        elif self.last_table is None:
            last, output = self._last(batch), None
        else:
            last, output = self.last_table, RowIndex.trusted(plan.prefix_ids[batch, -1], len(plan.some_rows[-1]))
        layers: list[LayerRows] = []
        if n_layers > 1:
            layers.append(self._inner("before", batch))
        if n_layers > 2:
            layers += [self._inner("after", batch)] * (n_layers - 2)
        pairs = self.all_pairs
        if pairs is None:
            columns = plan.tokens[batch].unbind(1)
            parts = [
                torch.stack([columns[t], torch.full_like(columns[t], t)], 1) if p is None else p
                for t, p in enumerate(self.pairs)
            ]
            pairs = torch.cat(parts)
        return PlannedRows(pairs=pairs, layers=(*layers, last), output=output)

    def _inner(self, name: str, batch: Tensor) -> LayerRows:
        """A layer that computes every position, from the rows that enter the first layer or from prefixes."""
        sources = self.before if name == "before" else self.after
        keys, query = self.of_tables[name]
        if len(self.future):
            own = sources.rows(batch)  # [B, T]
            keys = torch.cat([keys, own.masked_fill(self.future, -1).flatten(0, 1)])
            query = torch.cat([query, own[:, self.n_tables :].T.flatten()])
        at = RowIndex.trusted(query, sources.n_rows) if name == "before" else None
        return LayerRows(first=0, keys=RowIndex.trusted(keys, sources.n_rows), query=at)

    def _last(self, batch: Tensor) -> LayerRows:
        """The layer that computes the last position of these rows of the data set only."""
        sources = self.before if self.config.n_layers == 1 else self.after
        keys = sources.table[batch] if self.shares_last else sources.rows(batch)
        first = sources.offsets[-1]
        query = None
        if self.config.n_layers == 1:
            query = RowIndex.trusted(keys[:, -1] - first, sources.n_rows - first)
        return LayerRows(first=first, keys=RowIndex.trusted(keys, sources.n_rows), query=query)

    def _asked(self, batch: Tensor, asked: Tensor) -> LayerRows:
        """The layer that computes the positions that are `asked`, [B, S], of these rows."""
        sources = self.before if self.config.n_layers == 1 else self.after
        begin = self.plan.tokens.shape[1] - asked.shape[1]
        row, position = asked.nonzero(as_tuple=True)
        position = position + begin
        keys = sources.rows(batch)[row]  # [M, T]
        query = keys.gather(1, position[:, None])[:, 0] - sources.offsets[begin]
        if self.config.causal:
            keys = keys.masked_fill(torch.arange(keys.shape[1]) > position[:, None], -1)
        first = sources.offsets[begin]
        at = RowIndex.trusted(query, sources.n_rows - first)
        return LayerRows(first=first, keys=RowIndex.trusted(keys, sources.n_rows), query=at)


class _Sources:
    """Rows that a layer reads, position after position: a table where it is shared, else one for each of the batch."""

    def __init__(self, ids: Tensor, sizes: list[int], shared: list[bool], batch_size: int) -> None:
        counts = [n if is_shared else batch_size for n, is_shared in zip(sizes, shared)]
        self.offsets = [sum(counts[:t]) for t in range(len(counts))]
        self.n_rows, self.shared = sum(counts), shared
        is_shared, offsets = torch.tensor(shared), torch.tensor(self.offsets)
        self.table = torch.where(is_shared, ids + offsets, 0)  # [N, T]
        self.own: Tensor | None = None
        if not all(shared):
            self.own = torch.where(is_shared, 0, torch.arange(batch_size)[:, None] + offsets)  # [B, T]

    def rows(self, batch: Tensor) -> Tensor:
        """[B, T], the row that each position of each of the data set's rows `batch` reads."""
        rows = self.table[batch]
        return rows if self.own is None else rows + self.own
