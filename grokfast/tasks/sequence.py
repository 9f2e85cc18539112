"""Short sequences of symbols: sorted, reversed or copied, one answer after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from grokfast import checks, parts
from grokfast.seeds import MAX_SEED, generator
from grokfast.tasks.data import Data, Split, Task

SequenceOperation = Literal["sort", "reverse", "copy"]
MAX_LENGTH, MAX_SYMBOLS, MAX_ROWS = 32, 1024, 1 << 20


@parts.register("sequence")
@dataclass(frozen=True, kw_only=True)
class SequenceTask(Task):
    """x₁ ... x_L = y₁ ... y_L: sequences of L symbols, and what becomes of them. No sequence is in both splits.

    A row has the tokens x₁ ... x_L = y₁ ... y_(L-1), 2 L of them, and L answers, y₁ ... y_L: the i-th is told by what
    stands before it (teacher forcing), so that a causal model learns all of them at once. Accuracy is that of whole
    rows; each answer's own is a column, too.

    Args:
        operation: "sort" (ascending, equal symbols too), "reverse" or "copy".
        length: L, 1 to 32.
        n_symbols: symbols are 0..n_symbols-1; "=" is n_symbols.
        n_train, n_test: different sequences, drawn at random; both together at most n_symbols^length.
        split_seed: draws them; None: the experiment's seed.

    Raises TypeError or ValueError where an argument has the wrong type or is out of range.
    """

    varies: ClassVar[frozenset[str]] = frozenset({"n_train", "split_seed"})

    operation: SequenceOperation = "sort"
    length: int = 5
    n_symbols: int = 10
    n_train: int = 1000
    n_test: int = 1000
    split_seed: int | None = None

    def __post_init__(self) -> None:
        fields = checks.Fields(self)
        fields.choice(operation=get_args(SequenceOperation))
        fields.integer("length", minimum=1, maximum=MAX_LENGTH)
        fields.integer("n_symbols", minimum=1, maximum=MAX_SYMBOLS)
        fields.integer("n_train", "n_test", minimum=1, maximum=MAX_ROWS)
        fields.integer("split_seed", minimum=0, maximum=MAX_SEED, optional=True)
        rows, there = self.n_train + self.n_test, self.n_symbols**self.length
        if rows > there:
            raise ValueError(
                f"n_train and n_test must be at most the {there:,} sequences of {self.length} out of {self.n_symbols} "
                f"symbols together, got {rows:,}"
            )

    @property
    def seq_len(self) -> int:
        return 2 * self.length

    def n_rows(self) -> int:
        return self.n_train

    def build(self, *, seed: int = 0) -> Data:
        checks.integer("seed", seed, minimum=0, maximum=MAX_SEED)
        drawn = self._distinct(generator(seed if self.split_seed is None else self.split_seed, "split"))
        answers = {"sort": drawn.sort(1).values, "reverse": drawn.flip(1), "copy": drawn}[self.operation]
        equals = torch.full_like(drawn[:, :1], self.n_symbols)
        tokens = torch.cat([drawn, equals, answers[:, :-1]], 1)
        train, test = slice(self.n_train), slice(self.n_train, None)
        splits = {"train": Split(tokens[train], answers[train]), "test": Split(tokens[test], answers[test])}
        return Data(splits=splits, n_tokens=self.n_symbols + 1, n_answers=self.n_symbols)

    def _distinct(self, draws: torch.Generator) -> Tensor:
        """n_train + n_test different sequences, in the order in which they were drawn."""
        wanted, there = self.n_train + self.n_test, self.n_symbols**self.length
        if there <= 4 * wanted:
            numbers = torch.randperm(there, generator=draws)[:wanted]
            return numbers[:, None] // self.n_symbols ** torch.arange(self.length) % self.n_symbols
        found: dict[tuple[int, ...], None] = {}
        while len(found) < wanted:
            rows = torch.randint(0, self.n_symbols, (wanted, self.length), generator=draws)
            found.update(dict.fromkeys(map(tuple, rows.tolist())))
        return torch.tensor([*found][:wanted])
