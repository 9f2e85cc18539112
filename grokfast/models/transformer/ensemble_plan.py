"""The plan of an ensemble: which rows the layers of E models compute, each for its own data set, in common shapes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grokfast import checks
from grokfast.models.transformer.model import TransformerConfig
from grokfast.models.transformer.plan import Plan, _Layout, _Sources
from grokfast.ops.batch import read_tokens
from grokfast.ops.read_rows import EnsembleIndex, known_readers, take
from grokfast.ops.read_rows.readers import Known
from grokfast.ops.rows import PairIndex


@dataclass(frozen=True)
class EnsembleLayer:
    """The rows of one layer.

    Attributes:
        keys: [E, R, S], for each row of the layer's output the incoming rows that it attends to.
        own: [E, R], for each row of the layer's output its own incoming row; None: the r-th.
    """

    keys: EnsembleIndex
    own: EnsembleIndex | None


@dataclass(frozen=True)
class EnsembleRows:
    """A batch of every model as the rows to compute.

    Attributes:
        pairs: [E, R, 2], token and position of each row that enters the first layer; where they are the same for all
            models and batches, as an index whose readers are known.
        layers: one for each layer.
        output: [E, B], the computed row of each row of the batch; None: the r-th.
    """

    pairs: Tensor | PairIndex
    layers: tuple[EnsembleLayer, ...]
    output: EnsembleIndex | None


class EnsemblePlan:
    """Plan for data sets tokens [E, N, T], one per model: one plan of them all, whose tables hold what any of them has.

    n_tokens and n_positions are the rows of the models' tables (n_positions None: T).

    So the shapes are the same for every model, and depend on the models that the plan was made for, not on those that
    are left: what a model computes does not change when others leave. Indices lie on the device of `tokens`; a batch
    that is there, too, costs a few operations of fixed shapes that wait for nothing, so that they can stand in a CUDA
    graph once `rows` has been called with a batch of that size.

    Raises:
        TypeError, ValueError: config is no TransformerConfig, tokens is not an int64 tensor [E, N, T], not empty, of
            numbers in [0, n_tokens), or T is more than n_positions.
    """

    def __init__(
        self, config: TransformerConfig, tokens: Tensor, *, n_tokens: int, n_positions: int | None = None
    ) -> None:
        if not isinstance(tokens, Tensor) or tokens.dtype != torch.int64:
            raise TypeError(f"tokens must be an int64 tensor, got {getattr(tokens, 'dtype', type(tokens).__name__)}")
        if tokens.ndim != 3 or tokens.numel() == 0:
            raise ValueError(f"tokens must be [E, N, T], not empty, got {list(tokens.shape)}")
        _, self.n_rows, seq_len = tokens.shape
        self.seq_len = seq_len
        n_tokens = checks.integer("n_tokens", n_tokens, minimum=1)
        n_positions = checks.integer("n_positions", seq_len if n_positions is None else n_positions, minimum=seq_len)
        low, high = (int(edge) for edge in tokens.aminmax())
        if low < 0 or high >= n_tokens:
            raise ValueError(f"tokens must be in [0, {n_tokens}), got {low if low < 0 else high}")
        self.config, self.device, self.tables = config, tokens.device, (n_tokens, n_positions)
        self._plan = Plan(config, tokens.flatten(0, 1))  # of all rows, model after model
        self._models = torch.arange(len(tokens))
        self._layouts: dict[int, _EnsembleLayout] = {}
        self._all_rows: EnsembleRows | None = None

    @property
    def n_models(self) -> int:
        """E."""
        return len(self._models)

    def keep(self, models: Sequence[int]) -> EnsemblePlan:
        """The plan of these models only, with the same tables."""
        kept = copy.copy(self)
        kept._models = self._models[list(models)]
        kept._layouts, kept._all_rows = {}, None
        return kept

    def rows(self, batch: Tensor | None = None) -> EnsembleRows:
        """The rows to compute for rows `batch` [E, B] of the data sets, int64 on their device; None: for all, in order.

        Raises ValueError or TypeError where batch is no [E, B] int64 on that device. Its entries are not checked.
        """
        if batch is None:
            if self._all_rows is None:
                every = torch.arange(self.n_rows, device=self.device).expand(self.n_models, -1)
                self._all_rows = self._layout(self.n_rows).rows(every, changes=False)
            return self._all_rows
        if not isinstance(batch, Tensor) or batch.dtype != torch.int64:
            raise TypeError(f"batch must be an int64 tensor, got {getattr(batch, 'dtype', type(batch).__name__)}")
        if batch.ndim != 2 or len(batch) != self.n_models or batch.shape[1] == 0 or batch.device != self.device:
            accepted = f"[{self.n_models}, B], not empty, on {self.device}"
            raise ValueError(f"batch must be {accepted}, got {list(batch.shape)} on {batch.device}")
        return self._layout(batch.shape[1]).rows(batch)

    def shares_output(self, size: int) -> bool:
        """Whether several rows of a batch of `size` rows may read one row of the last layer."""
        return self._layout(size).output is not None

    def own_positions(self, size: int) -> int:
        """At how many positions each row of a batch of `size` rows enters the first layer by itself, not by a table."""
        return sum(pairs is None for pairs in self._layout(size).pairs)

    def _layout(self, size: int) -> _EnsembleLayout:
        if size not in self._layouts:
            self._layouts[size] = _EnsembleLayout(self, size)
        return self._layouts[size]


class _EnsembleLayout:
    """What batches of one size have in common: `_Layout` of all data sets, its tensors by model and on the device."""

    def __init__(self, ensemble: EnsemblePlan, size: int) -> None:
        plan, models, device = ensemble._plan, ensemble._models, ensemble.device
        self.config, self.n_models = plan.config, len(models)
        of_all = _Layout(plan, size)
        self.n_tables = of_all.n_tables

        def by_model(table: Tensor) -> Tensor:
            return table.view(-1, ensemble.n_rows, *table.shape[1:])[models].to(device)

        self.before = _DeviceSources(of_all.before, by_model)
        self.after = _DeviceSources(of_all.after, by_model)
        self.of_tables = {n: (keys.to(device), own.to(device)) for n, (keys, own) in of_all.of_tables.items()}
        self.tokens = by_model(plan.tokens)
        self.pairs = [None if pairs is None else pairs.to(device) for pairs in of_all.pairs]
        self.all_pairs: PairIndex | None = None
        if of_all.all_pairs is not None:
            pairs = of_all.all_pairs.to(device).expand(self.n_models, -1, -1)
            self.all_pairs = PairIndex(pairs, *ensemble.tables)
        self.columns = [torch.full((size,), t, device=device) for t in range(len(self.pairs))]
        self.static = {name: self._tables_only(name) for name in self.of_tables if self.n_tables == len(self.pairs)}
        self.output: Tensor | None = None
        self.last_table: EnsembleLayer | None = None
        if of_all.last_table is not None:
            self.output = by_model(plan.prefix_ids[:, -1:])
            self.n_outputs = len(plan.some_rows[-1])
            keys = of_all.last_table.keys.index.to(device).expand(self.n_models, -1, -1)
            sources = self.before if self.config.n_layers == 1 else self.after
            own = EnsembleIndex(keys[..., -1], sources.n_rows)  # of the last position
            self.last_table = EnsembleLayer(EnsembleIndex(keys, sources.n_rows), own)

    def rows(self, batch: Tensor, *, changes: bool = True) -> EnsembleRows:
        """changes: whether it is one of many batches, whose readers are looked for in each."""
        n_layers = self.config.n_layers
        layers: list[EnsembleLayer] = []
        if n_layers > 1:
            layers.append(self._inner("before", batch, changes))
        if n_layers > 2:
            layers += [self._inner("after", batch, changes)] * (n_layers - 2)
        output = None
        if self.last_table is None:
            layers.append(self._last(batch, changes))
        else:
            assert self.output is not None
            layers.append(self.last_table)
            output = EnsembleIndex(take(self.output, batch)[..., 0], self.n_outputs)
        return EnsembleRows(self._pairs(batch), tuple(layers), output)

    def _pairs(self, batch: Tensor) -> Tensor | PairIndex:
        if self.all_pairs is not None:
            return self.all_pairs
        tokens = take(self.tokens, batch)  # [E, B, T]
        parts = [
            torch.stack([tokens[..., t], self.columns[t].expand_as(batch)], -1)
            if pairs is None
            else pairs.expand(self.n_models, -1, -1)
            for t, pairs in enumerate(self.pairs)
        ]
        return torch.cat(parts, 1)

    def _inner(self, name: str, batch: Tensor, changes: bool) -> EnsembleLayer:
        """A layer that computes every position, from the rows that enter the first layer or from prefixes."""
        if name in self.static:
            return self.static[name]
        sources = self.before if name == "before" else self.after
        keys, own = sources.read(*self.of_tables[name], batch, self.n_tables, self.config.causal, changes)
        return EnsembleLayer(keys, own if name == "before" else None)

    def _last(self, batch: Tensor, changes: bool) -> EnsembleLayer:
        """The layer that computes the last position only."""
        sources = self.before if self.config.n_layers == 1 else self.after
        none = self.of_tables["before"]
        tables, own, last = none[0][:0], none[1][:0], len(self.pairs) - 1
        return EnsembleLayer(*sources.read(tables, own, batch, last, self.config.causal, changes))

    def _tables_only(self, name: str) -> EnsembleLayer:
        """The same where every position is a table: one for all batches."""
        sources = self.before if name == "before" else self.after
        keys, query = (EnsembleIndex(t.expand(self.n_models, *t.shape), sources.n_rows) for t in self.of_tables[name])
        return EnsembleLayer(keys, query if name == "before" else None)


class _DeviceSources:
    """`_Sources` by model, on the device."""

    def __init__(self, sources: _Sources, by_model: Callable[[Tensor], Tensor]) -> None:
        self.n_rows = sources.n_rows
        self.table = by_model(sources.table)  # [E, N, T]
        self.own = None if sources.own is None else sources.own.contiguous().to(self.table.device)  # [B, T]
        self.begin, self.is_table = sources.offsets, sources.shared
        self._known: dict[tuple[int, int], Known] = {}

    def read(
        self, keys: Tensor, own: Tensor, batch: Tensor, first: int, causal: bool, changes: bool
    ) -> tuple[EnsembleIndex, EnsembleIndex]:
        """Keys and own rows of these table rows, and then of rows `batch` [E, B] at the positions from `first` on."""
        found = read_tokens(keys, own, self.table, self.own, batch, first, causal)
        which = len(keys), first  # rows of a batch's own are read alike in every batch, and tables as often
        if changes and which not in self._known:
            self._known[which] = known_readers(found[0][:1], self.begin, self.n_rows, self.is_table)
        known = self._known[which] if changes else None
        return EnsembleIndex(found[0], self.n_rows, known), EnsembleIndex(found[1], self.n_rows)
