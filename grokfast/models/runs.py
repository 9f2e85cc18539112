"""`Runs`: E models in flat memory, with their data: what a Step computes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grokfast.models.base import Model, Spec
from grokfast.nn.masks import Counted, Generated, Masks
from grokfast.seeds import generator
from grokfast.tasks.data import Data
from grokfast.transforms.base import Layout

ALIGNMENT = 16  # elements


class SplitRows(NamedTuple):
    """A split of E data sets: inputs and targets [E, N, ...]. Run e's own are the first counts[e]; the others,
    where another run has more, repeat its first. exists: bool [E, N], which are its own; None: all."""

    inputs: Tensor
    targets: Tensor
    counts: list[int]
    exists: Tensor | None


class Runs:
    """Parameters are one flat [E, P] tensor, of which the module's own are views.

    is_ragged: whether training sets differ in size, or are shown in part; rows of a batch may then be -1, no row.
    largest: rows of the largest batch; None: every step takes all rows. steps: how many have been taken; clock: the
    same of each model on the device, int64 [E]. augment: what is done to a batch [E, B, ...] of some models before it
    is shown; None: nothing. scheduled: of fields of model and loss that change with the step their values, fp64 [E].
    """

    def __init__(
        self,
        spec: Spec,
        models: Sequence[Model],
        data: Sequence[Data],
        seeds: Sequence[int],
        *,
        products: str = "ieee",
        largest: int | None = None,
        has_gaps: bool = False,
    ) -> None:
        self.spec, self.products, self.largest, self._has_gaps = spec, products, largest, has_gaps
        self.augment: Callable[[Tensor, Tensor, slice], tuple[Tensor, Tensor]] | None = None
        self.scheduled: dict[str, Tensor] = {}
        self.device, self.seeds, self.steps = spec.device, list(seeds), 0
        self.clock: Callable[[], Tensor] = lambda: torch.full((len(self.flat),), self.steps, device=self.device)
        self.has_keys = spec.device.type != "cpu"  # of dropout: its masks are drawn on the device, of these
        self._keys = self._keyed()
        self.rows = {
            split: _rows(
                [_typed(d.splits[split].inputs, spec.dtype) for d in data],
                [_typed(d.splits[split].targets, spec.dtype) for d in data],
                self.device,
            )
            for split in spec.data.splits
        }
        self.module = spec.model.initial(spec.data, seeds=seeds, dtype=spec.dtype)
        for i, model in enumerate(models):
            if model != spec.model:  # in what may vary: its initial scale
                own = model.initial(spec.data, seeds=seeds[i : i + 1], dtype=spec.dtype)
                for p, of_one in zip(self.module.parameters(), own.parameters()):
                    p.data[i] = of_one.data[0]
        self._single = self.module  # the form of one model
        if len(seeds) > 1:
            self._single = spec.model.build(spec.data, seeds=seeds[:1], dtype=spec.dtype)
        self.module.to(self.device)
        self._single.to(self.device)
        self.layout = Layout.of({name: p.shape[1:] for name, p in self.module.named_parameters()})
        self._bind(self.flatten([p.detach() for p in self.module.parameters()]))

    @property
    def is_ragged(self) -> bool:
        return self._has_gaps or self.rows["train"].exists is not None

    def flatten(self, tensors: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
        """Tensors [E, ...] as one [E, P], P rounded up with zeros to 64 bytes: a model's rows are aligned as alone."""
        width = sum(t[0].numel() for t in tensors)
        padding = tensors[0].new_zeros(len(tensors[0]), -width % ALIGNMENT)
        return torch.cat([*(t.reshape(len(t), -1) for t in tensors), padding], 1, out=out)

    def _bind(self, flat: Tensor) -> None:
        """Make the module's parameters views of `flat` [E, P]."""
        self.flat = flat
        views = self.layout.views(flat)
        for name, p in self.module.named_parameters():
            p.data = views[name]
        of_models = zip(*(p.detach().unbind() for p in self.module.parameters()))
        # each model's own parameters, for the gradient of one model at a time
        self.own = [{n: p.requires_grad_() for n, p in zip(self.layout.names, of_model)} for of_model in of_models]

    def masks(self, models: slice = slice(None)) -> Masks:
        """Of dropout, for a pass of these models at this step: the same alone as in company."""
        rate = self.scheduled.get("dropout")
        rate = None if rate is None else rate[models]
        if self.has_keys:
            return Counted(self._keys[models], self.clock()[models], rate)
        return Generated([generator(seed, "dropout", self.steps) for seed in self.seeds[models]], rate)

    def _keyed(self) -> Tensor:
        return torch.tensor([generator(seed, "dropout").initial_seed() for seed in self.seeds]).to(self.device)

    def alone(self, e: int) -> Any:
        """Model e as an ensemble of its own."""
        if len(self.flat) == 1:
            return self.module
        for p, of_all in zip(self._single.parameters(), self.module.parameters()):
            p.data = of_all.data[e : e + 1]
        self._single.train(self.module.training)
        return self._single

    def chosen(self, split: str, batch: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Inputs and targets of the rows `batch` [E, B] of a split, None: of all, and which there are, None: all."""
        rows = self.rows[split]
        if batch is None:
            return rows.inputs, rows.targets, rows.exists
        exists = None
        if self.is_ragged:
            exists, batch = batch >= 0, batch.clamp(min=0)
        models = torch.arange(len(batch), device=self.device)[:, None]
        return rows.inputs[models, batch], rows.targets[models, batch], exists

    def chosen_of(self, e: int, split: str, batch: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Those of model e, and their numbers; None: all."""
        rows = self.rows[split]
        if batch is None:
            n = rows.counts[e]
            return rows.inputs[e, :n], rows.targets[e, :n], None
        own = batch[e]
        own = own[own >= 0] if self.is_ragged else own
        return rows.inputs[e].index_select(0, own), rows.targets[e].index_select(0, own), own

    def keep(self, models: Sequence[int]) -> Callable[[], None]:
        """What is to be called to go on with these models only. Where memory is short, nothing has changed by then."""
        index = torch.tensor(models, device=self.device)
        flat, rows = self.flat[index], {}
        for split, of_all in self.rows.items():
            counts = [of_all.counts[i] for i in models]
            n = max(counts)
            rows[split] = SplitRows(
                of_all.inputs[index, :n], of_all.targets[index, :n], counts, _exists(counts, self.device)
            )

        def take() -> None:
            self.rows, self.seeds = rows, [self.seeds[i] for i in models]
            self._keys = self._keyed()
            self.module.seeds = tuple(self.module.seeds[i] for i in models)
            self._bind(flat)

        return take


def _typed(t: Tensor, dtype: torch.dtype) -> Tensor:
    return t.to(dtype) if t.is_floating_point() else t


def _rows(inputs: Sequence[Tensor], targets: Sequence[Tensor], device: torch.device) -> SplitRows:
    counts = [len(one) for one in targets]
    return SplitRows(_stack(inputs).to(device), _stack(targets).to(device), counts, _exists(counts, device))


def _exists(counts: Sequence[int], device: torch.device) -> Tensor | None:
    if len(set(counts)) == 1:
        return None
    return torch.arange(max(counts), device=device) < torch.tensor(counts, device=device)[:, None]


def _stack(parts: Sequence[Tensor]) -> Tensor:
    """[E, N, ...] of tensors [N_e, ...], N the largest N_e; the others go on with their first row."""
    n = max(map(len, parts))
    return torch.stack([torch.cat([part, part[:1].expand(n - len(part), *part.shape[1:])]) for part in parts])
