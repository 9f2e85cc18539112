"""The probes of an ensemble, at an evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from grokfast import checks
from grokfast.models.runs import Runs
from grokfast.parts import name_of
from grokfast.probes.base import Probe, View
from grokfast.tasks import Data


class Probes:
    """Several probes of a model with such parameters as columns, `names`.

    Raises TypeError naming a probe whose columns are no names."""

    def __init__(self, probes: Sequence[Probe], data: Data, parameters: Sequence[str]) -> None:
        self._probes, self._data = list(probes), data
        self._columns: list[list[str]] = []
        for probe in self._probes:
            columns = probe.columns_of(data, parameters)
            if isinstance(columns, str) or not all(isinstance(name, str) for name in columns):
                raise TypeError(f"{name_of(probe)}.columns must return names, got {checks.shown(columns)}")
            self._columns.append([*columns])
        self.names = tuple(name for columns in self._columns for name in columns)

    @torch.no_grad()
    def measure(self, runs: Runs) -> list[Tensor]:
        """Of each probe its columns now, float64 [E, k]; what it has not written is NaN.

        Raises ValueError naming a probe that returns something instead of writing it.
        """
        if not self._probes:
            return []
        runs.module.eval()
        known: dict[str, Tensor] = {}

        def logits(split: str) -> Tensor:
            if split not in known:
                checks.choice("split", split, runs.rows)
                known[split] = runs.module(runs.rows[split].inputs)
            return known[split]

        view = View(
            weights=runs.layout.views(runs.flat.detach()), data=self._data, logits=logits, module=runs.module,
            splits={name: (rows.inputs, rows.targets, rows.exists) for name, rows in runs.rows.items()},
        )  # fmt: skip
        found = []
        for probe, columns in zip(self._probes, self._columns):
            out = torch.full((len(runs.flat), len(columns)), torch.nan, dtype=torch.float64, device=runs.device)
            returned = probe.measure(view, out)  # type: ignore[func-returns-value]
            if returned is not None:
                raise ValueError(
                    f"{name_of(probe)}.measure must write its {len(columns)} columns into out [E, {len(columns)}] and "
                    f"return nothing, got {checks.shown(returned)}"
                )
            found.append(out)
        return found
