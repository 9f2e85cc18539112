"""Sparse parity: the product of k signs among n (Barak et al. 2022, arXiv 2207.08799; Merrill et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from grokfast import checks, parts
from grokfast.seeds import MAX_SEED, generator
from grokfast.tasks.data import Data, Labels, Split, Task

MAX_N, MAX_ROWS = 1 << 14, 1 << 22


@parts.register("parity")
@dataclass(frozen=True, kw_only=True)
class ParityTask(Task):
    """Rows of n random signs ±1; the target, ±1, is the product of the same k of them.

    Targets are real numbers [N, 1], as the hinge loss wants them. Rows are drawn at random, each by itself.

    Args:
        n: signs of a row.
        k: how many of them count, 1 to n; which ones, `split_seed` decides.
        n_train, n_test: rows of the splits.
        split_seed: draws the rows; None: the experiment's seed.

    Merrill et al. (arXiv 2303.11873) train (40, 3) with 1,000 rows: memorised, then a phase transition.
    Raises TypeError or ValueError where an argument has the wrong type or is out of range.
    """

    varies: ClassVar[frozenset[str]] = frozenset({"n_train", "split_seed"})

    n: int = 40
    k: int = 3
    n_train: int = 1000
    n_test: int = 1000
    split_seed: int | None = None

    def __post_init__(self) -> None:
        fields = checks.Fields(self)
        fields.integer("n", minimum=1, maximum=MAX_N)
        fields.integer("k", minimum=1)
        if self.k > self.n:
            raise ValueError(f"k must be at most n, {self.n}, got {self.k}")
        fields.integer("n_train", "n_test", minimum=1, maximum=MAX_ROWS)
        fields.integer("split_seed", minimum=0, maximum=MAX_SEED, optional=True)

    def n_rows(self) -> int:
        return self.n_train

    def build(self, *, seed: int = 0) -> Data:
        own, counting = self._own(seed), self._counting(seed)

        def drawn(rows: int, purpose: str) -> Split:
            bits = torch.randint(0, 2, (rows, self.n), generator=generator(own, purpose))
            signs = (2 * bits - 1).float()
            return Split(signs, signs[:, counting].prod(1, keepdim=True))

        splits = {"train": drawn(self.n_train, "split"), "test": drawn(self.n_test, "test")}
        return Data(splits=splits, n_tokens=0, n_answers=1)

    def labels(self, *, seed: int = 0) -> Labels:
        return Labels(features=self._counting(seed).tolist())

    def _own(self, seed: int) -> int:
        return seed if self.split_seed is None else self.split_seed

    def _counting(self, seed: int) -> Tensor:
        """[k], which signs count."""
        return torch.randperm(self.n, generator=generator(self._own(seed), "parity"))[: self.k]
