"""The probes of an ensemble, at an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from grokfast import checks
from grokfast.models.runs import Runs
from grokfast.parts import name_of
from grokfast.probes.base import Probe, View
from grokfast.tasks import Data

LEFT = 0x7FF8_0000_0000_0001  # the bits of a NaN that no operation makes: a column that was not written


class Probes:
    """Several probes of a model with such parameters as columns, `names`.

    Raises TypeError naming a probe whose columns are no names."""

    def __init__(self, probes: Sequence[Probe], data: Data, parameters: Sequence[str]) -> None:
        self._probes, self._data = list(probes), data
        self._columns: list[list[str]] = []
        self._kept: dict[Any, Any] = {}
        for probe in self._probes:
            columns = probe.columns_of(data, parameters)
            if isinstance(columns, str) or not all(isinstance(name, str) for name in columns):
                raise TypeError(f"{name_of(probe)}.columns must return names, got {checks.shown(columns)}")
            self._columns.append([*columns])
        self.names = tuple(name for columns in self._columns for name in columns)

    @torch.no_grad()
    def measure(self, runs: Runs) -> list[Tensor]:
        """Of each probe its columns now, float64 [E, k]; NaN where it has left them, infinite where it has written NaN
        or an infinity, which nobody should take for a gap that was meant.

        Raises ValueError naming a probe that returns something instead of writing it.
        """
        if not self._probes:
            return []
        view = self._view(runs)
        return [_measured(probe, columns, view, runs) for probe, columns in zip(self._probes, self._columns)]

    @torch.no_grad()
    def try_out(self, runs: Runs) -> None:
        """Measure once, before anything is stored or trained.

        Raises ValueError naming a probe that fails to write its columns, or one of them that is not finite.
        """
        if not self._probes:
            return
        view = self._view(runs)
        for probe, columns in zip(self._probes, self._columns):
            try:
                values = _measured(probe, columns, view, runs)
            except torch.OutOfMemoryError:
                return  # in training the runs go on in halves
            except (IndexError, RuntimeError) as error:
                raise ValueError(f"{_must_write(probe, columns)}: {error}") from error
            for name, is_bad in zip(columns, values.isinf().any(0).tolist()):
                if is_bad:
                    raise ValueError(
                        f"{name_of(probe)}.measure must write finite numbers, or leave a column as it is: {name!r} is "
                        "NaN or infinite before the first step"
                    )

    def forget(self) -> None:
        """The runs are others: what probes have kept of them is made anew."""
        self._kept = {}

    def _view(self, runs: Runs) -> View:
        runs.module.eval()
        known: dict[str, Tensor] = {}

        def logits(split: str) -> Tensor:
            if split not in known:
                checks.choice("split", split, runs.rows)
                known[split] = runs.module(runs.rows[split].inputs)
            return known[split]

        return View(
            weights=runs.layout.views(runs.flat.detach()), data=self._data, logits=logits, module=runs.module,
            splits={name: (rows.inputs, rows.targets, rows.exists) for name, rows in runs.rows.items()},
            kept=self._kept,
        )  # fmt: skip


def _measured(probe: Probe, columns: Sequence[str], view: View, runs: Runs) -> Tensor:
    shape = len(runs.flat), len(columns)
    out = torch.full(shape, LEFT, dtype=torch.int64, device=runs.device).view(torch.float64)
    returned = probe.measure(view, out)  # type: ignore[func-returns-value]
    if returned is not None or out.shape != shape:
        got = f"out {[*out.shape]}" if returned is None else checks.shown(returned)
        raise ValueError(f"{_must_write(probe, columns)} and return nothing, got {got}")
    gap = torch.where(out.view(torch.int64) == LEFT, torch.nan, torch.inf).double()
    return torch.where(out.isfinite(), out, gap)


def _must_write(probe: Probe, columns: Sequence[str]) -> str:
    return f"{name_of(probe)}.measure must write its {len(columns)} columns into out [E, {len(columns)}]"
