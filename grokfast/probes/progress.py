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
    frequency_energies,
    key_frequencies,
    order_by_product,
    product_means,
    rows_at,
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
        p = view.data.n_answers
        train, test, order = view.once("progress", lambda: _tables(view))
        logits = view.logits("train"), view.logits("test")
        means, energy = product_means(torch.cat(logits, 1), order, p)
        keys = key_frequencies(frequency_energies(means) / energy[:, None], self.threshold)
        component = at_frequencies(means, keys)
        of_sums = component + (means - component).mean(1, keepdim=True)
        out[:, 0] = keys.sum(-1)
        out[:, 1] = _loss_of_sums(of_sums, test, *view.splits["test"][1:])
        excluded = logits[0] - rows_at(component.to(logits[0].dtype), train)
        out[:, 2] = _mean(_losses(excluded, view.splits["train"][1]), view.splits["train"][2])


@functools.lru_cache(maxsize=8)
def _addition(data: Data) -> tuple[list[int], int]:
    """Where a and b stand, and b's sign. Found once: an evaluation that is captured reads nothing of the host."""
    return operand_columns(data), sign_of_sum(data)


def _tables(view: View) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row of both splits the sum [E, N], 0 where there is no row, and the order of all of them by sum."""
    (columns, sign), p = _addition(view.data), view.data.n_answers
    sums, marked = [], []
    for split in ("train", "test"):
        inputs, _, exists = view.splits[split]
        own = _sums(inputs, columns, sign, p)
        sums.append(own if exists is None else own.where(exists, 0))
        marked.append(own if exists is None else own.where(exists, p))
    return sums[0], sums[1], order_by_product(torch.cat(marked, 1), p)


def _sums(inputs: Tensor, columns: Sequence[int], sign: int, p: int) -> Tensor:
    return (inputs[..., columns[0]] + sign * inputs[..., columns[1]]) % p


def _loss_of_sums(of_sums: Tensor, sums: Tensor, targets: Tensor, exists: Tensor | None) -> Tensor:
    """Cross entropy [E] of logits [E, p, C] that are a function of the sum, over the rows that exist."""
    at = of_sums.flatten(1).gather(1, sums * of_sums.shape[2] + targets)
    return _mean(of_sums.logsumexp(-1).gather(1, sums) - at, exists)


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of each row, [E, N]."""
    return logits.logsumexp(-1) - logits.gather(-1, targets[..., None])[..., 0]


def _mean(of_rows: Tensor, exists: Tensor | None) -> Tensor:
    """[E, N] -> [E], over the rows that exist."""
    return of_rows.mean(1) if exists is None else of_rows.where(exists, 0).sum(1) / exists.sum(1)
