"""How far a model of modular addition computes it by a few frequencies."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grokfast import checks, parts
from grokfast.measures.progress import (
    at_frequencies,
    by_product,
    centred_energy,
    frequency_energies,
    key_frequencies,
)
from grokfast.probes.base import Probe, View
from grokfast.tasks.data import Data
from grokfast.tasks.operands import operand_columns, sign_of_sum


@parts.register("progress")
@dataclass(frozen=True, kw_only=True)
class Progress(Probe):
    """Progress measures of a ± b mod p (Nanda et al. 2023, arXiv 2301.05217): see analysis.progress_measures.

    key_frequencies: how many have at least `threshold` of the logits' energy now. restricted_loss and excluded_loss are
    of these. It takes the logits of all pairs, as one more evaluation does.
    """

    threshold: float = 0.01

    def __post_init__(self) -> None:
        checks.Fields(self).real("threshold", minimum=0, maximum=1, open_minimum=True, open_maximum=True)

    def columns(self, data: Data) -> Sequence[str]:
        (columns, sign), p = _addition(data), data.n_answers
        sums = _sums(torch.cat([data.train.inputs, data.test.inputs]), columns, sign, p)
        if not torch.equal(sums.bincount(minlength=p), torch.full((p,), p)):
            raise ValueError(f"probe progress is of tasks whose rows are all {p}² pairs, got {len(sums):,} rows")
        return ["key_frequencies", "restricted_loss", "excluded_loss"]

    def measure(self, view: View, out: Tensor) -> None:
        (columns, sign), p = _addition(view.data), view.data.n_answers
        logits, sums = [view.logits(split) for split in ("train", "test")], []
        for split in ("train", "test"):
            inputs, _, exists = view.splits[split]
            own = _sums(inputs, columns, sign, p)
            sums.append(own if exists is None else own.where(exists, p))
        grouped = by_product(torch.cat(logits, 1), torch.cat(sums, 1), p)
        means = grouped.mean(-2, dtype=torch.float64)  # [E, p, C]
        keys = key_frequencies(frequency_energies(means) / centred_energy(grouped)[:, None], self.threshold)
        component = at_frequencies(means, keys)
        of_sums = component + (means - component).mean(1, keepdim=True)
        out[:, 0] = keys.sum(-1)
        out[:, 1] = _loss(_rows(of_sums, sums[1]), *view.splits["test"][1:])
        out[:, 2] = _loss(logits[0] - _rows(component.to(logits[0].dtype), sums[0]), *view.splits["train"][1:])


@functools.lru_cache(maxsize=8)
def _addition(data: Data) -> tuple[list[int], int]:
    """Where a and b stand, and b's sign. Found once: an evaluation that is captured reads nothing of the host."""
    return operand_columns(data), sign_of_sum(data)


def _sums(inputs: Tensor, columns: Sequence[int], sign: int, p: int) -> Tensor:
    return (inputs[..., columns[0]] + sign * inputs[..., columns[1]]) % p


def _rows(of_sums: Tensor, sums: Tensor) -> Tensor:
    """[E, p, C] at [E, N] -> [E, N, C]; at p, where no row is, at 0."""
    sums = sums % of_sums.shape[1]
    return of_sums.gather(1, sums[..., None].expand(*sums.shape, of_sums.shape[2]))


def _loss(logits: Tensor, targets: Tensor, exists: Tensor | None) -> Tensor:
    """Cross entropy [E] over the rows that exist."""
    of_rows = logits.logsumexp(-1) - logits.gather(-1, targets[..., None])[..., 0]
    return of_rows.mean(1) if exists is None else of_rows.where(exists, 0).sum(1) / exists.sum(1)
