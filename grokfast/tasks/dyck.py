"""Strings of parentheses: whether they are balanced, and from where on they cannot be (the language Dyck-1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from grokfast import checks, parts
from grokfast.seeds import MAX_SEED, generator
from grokfast.tasks.data import Data, Labels, Split, Task
from grokfast.tasks.sequence import MAX_LENGTH, MAX_ROWS, distinct

Answers = Literal["prefixes", "string"]


@parts.register("dyck")
@dataclass(frozen=True, kw_only=True)
class DyckTask(Task):
    """Strings of L parentheses, half of them balanced. "(" is token 0 and ")" token 1. No string is in both splits.

    The i-th of L answers is 1 where x₁ ... x_i can still become a balanced string of L symbols: where never more were
    closed than opened, and at most L - i are open; else 0. The last one tells whether the string is balanced. Accuracy
    is that of whole rows; each position's own is a column, too.

    n_train // 2 and n_test // 2 rows are drawn from the Catalan(L/2) balanced strings, the others from those that are
    not, each uniformly.

    Args:
        length: L, even, 2 to 32.
        answers: "prefixes", targets [N, L]; or "string", the last one alone, targets [N].
        n_train, n_test: different strings; both together as many as there are of each kind.
        split_seed: draws them; None: the experiment's seed.

    Raises TypeError or ValueError where an argument has the wrong type or is out of range.
    """

    varies: ClassVar[frozenset[str]] = frozenset({"n_train", "split_seed"})

    length: int = 16
    answers: Answers = "prefixes"
    n_train: int = 500
    n_test: int = 500
    split_seed: int | None = None

    def __post_init__(self) -> None:
        fields = checks.Fields(self)
        fields.integer("length", minimum=2, maximum=MAX_LENGTH)
        if self.length % 2:
            raise ValueError(f"length must be even, got {self.length}")
        fields.choice(answers=get_args(Answers))
        fields.integer("n_train", "n_test", minimum=1, maximum=MAX_ROWS)
        fields.integer("split_seed", minimum=0, maximum=MAX_SEED, optional=True)
        balanced = math.comb(self.length, self.length // 2) // (self.length // 2 + 1)
        if (wanted := self.n_train // 2 + self.n_test // 2) > balanced:  # there are always enough of the others
            raise ValueError(
                f"n_train and n_test must have halves of at most {balanced:,} together, the balanced strings of "
                f"{self.length} parentheses, got {wanted:,}"
            )

    def _sizes(self) -> list[tuple[int, int]]:
        """Of the training set and the test set, how many are balanced and how many are not."""
        return [(n // 2, n - n // 2) for n in (self.n_train, self.n_test)]

    @property
    def seq_len(self) -> int:
        return self.length

    def n_rows(self) -> int:
        return self.n_train

    def build(self, *, seed: int = 0) -> Data:
        checks.integer("seed", seed, minimum=0, maximum=MAX_SEED)
        draws = generator(seed if self.split_seed is None else self.split_seed, "split")
        balanced = completions(self.length)
        others = 2 ** torch.arange(self.length + 1)[:, None] - balanced
        sizes = self._sizes()
        kinds = []
        for ways, of_kind in zip((balanced, others), zip(*sizes)):
            numbers = distinct(sum(of_kind), 1, int(ways[-1, 0]), draws) if sum(of_kind) else torch.empty(0, 1).long()
            kinds.append(numbered(numbers[:, 0], ways).split(of_kind))
        splits = {}
        for name, rows in zip(("train", "test"), map(torch.cat, zip(*kinds))):
            x = rows[torch.randperm(len(rows), generator=draws)]
            y = closable(x)
            splits[name] = Split(x, y if self.answers == "prefixes" else y[:, -1])
        return Data(splits=splits, n_tokens=2, n_answers=2)

    def labels(self, *, seed: int = 0) -> Labels:
        return Labels({0: "(", 1: ")"}, {0: "no", 1: "yes"})


def closable(x: Tensor) -> Tensor:
    """[N, L] int64 of strings [N, L]: 1 where the prefix that ends there can become a balanced string of L."""
    opened = (1 - 2 * x).cumsum(1)
    to_come = torch.arange(x.shape[1] - 1, -1, -1)
    return ((opened.cummin(1).values >= 0) & (opened <= to_come)).long()


def completions(length: int) -> Tensor:
    """[length + 1, length + 2] int64: in how many ways r further symbols make a string balanced in which `depth` are
    open, at [r, depth]; of the last column, which is for strings that closed too many, 0."""
    ways = torch.zeros(length + 1, length + 2, dtype=torch.int64)
    ways[0, 0] = 1
    for r in range(1, length + 1):
        ways[r, :length] = ways[r - 1, 1 : length + 1]
        ways[r, 1:-1] += ways[r - 1, :length]
    return ways


def numbered(numbers: Tensor, ways: Tensor) -> Tensor:
    """[N, L]: of the strings that `ways` counts, in lexicographic order, those with these numbers [N]."""
    lost = ways.shape[1] - 1
    depth, found = torch.zeros_like(numbers), []
    for r in range(len(ways) - 2, -1, -1):
        deeper = torch.where(depth == lost, lost, depth + 1)
        closes = numbers >= ways[r, deeper]
        numbers = torch.where(closes, numbers - ways[r, deeper], numbers)
        depth = torch.where(closes, torch.where((depth == lost) | (depth == 0), lost, depth - 1), deeper)
        found.append(closes.long())
    return torch.stack(found, 1)
