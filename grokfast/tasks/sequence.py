"""Short sequences of symbols: sorted, reversed or copied, one answer after the other; counted, or continued."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from grokfast import checks, parts
from grokfast.seeds import MAX_SEED, generator
from grokfast.tasks.data import Data, Labels, Split, Task

SequenceOperation = Literal["sort", "reverse", "copy", "count", "next"]
ONE_ANSWER = ("count", "next")
MAX_LENGTH, MAX_SYMBOLS, MAX_ROWS = 32, 1024, 1 << 20


@parts.register("sequence")
@dataclass(frozen=True, kw_only=True)
class SequenceTask(Task):
    """x₁ ... x_L = y₁ ... y_L: sequences of L symbols, and what becomes of them. No sequence is in both splits.

    A row has the tokens x₁ ... x_L = y₁ ... y_(L-1), 2 L of them, and L answers, y₁ ... y_L: the i-th is told by what
    stands before it (teacher forcing), so that a causal model learns all of them at once. Accuracy is that of whole
    rows; each answer's own is a column, too. "count" and "next" have one answer, and the tokens x₁ ... x_L =.

    Args:
        operation: "sort" (ascending, equal symbols too), "reverse" or "copy"; "count": how often symbol 0 occurs, 0 to
            L; "next": x_(L+1) of arithmetic progressions x_i = a + i·d mod n_symbols, which are the sequences then.
        length: L, 1 to 32; at least 2 for "next".
        n_symbols: symbols are 0..n_symbols-1; "=" is n_symbols.
        n_train, n_test: different sequences, drawn at random; both together at most n_symbols^length, or n_symbols²
            progressions.
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
        if self.operation == "next" and self.length == 1:
            raise ValueError("length must be at least 2 for 'next', as one element tells no step, got 1")
        rows, there = self.n_train + self.n_test, self.n_symbols**self._n_drawn
        if rows > there:
            what = "progressions mod" if self.operation == "next" else f"sequences of {self.length} out of"
            most = f"the {there:,} {what} {self.n_symbols} symbols"
            raise ValueError(f"n_train and n_test must be at most {most} together, got {rows:,}")

    @property
    def _n_drawn(self) -> int:
        """Symbols that decide a row: a progression's are its first element and its step."""
        return 2 if self.operation == "next" else self.length

    @property
    def seq_len(self) -> int:
        return self.length + 1 if self.operation in ONE_ANSWER else 2 * self.length

    def n_rows(self) -> int:
        return self.n_train

    def build(self, *, seed: int = 0) -> Data:
        checks.integer("seed", seed, minimum=0, maximum=MAX_SEED)
        draws = generator(seed if self.split_seed is None else self.split_seed, "split")
        drawn = distinct(self.n_train + self.n_test, self._n_drawn, self.n_symbols, draws)
        drawn, answers = self._answered(drawn)
        tokens = torch.cat([drawn, torch.full_like(drawn[:, :1], self.n_symbols)], 1)
        if answers.ndim == 2:
            tokens = torch.cat([tokens, answers[:, :-1]], 1)
        train, test = slice(self.n_train), slice(self.n_train, None)
        splits = {"train": Split(tokens[train], answers[train]), "test": Split(tokens[test], answers[test])}
        n_answers = self.length + 1 if self.operation == "count" else self.n_symbols
        return Data(splits=splits, n_tokens=self.n_symbols + 1, n_answers=n_answers)

    def labels(self, *, seed: int = 0) -> Labels:
        return Labels({self.n_symbols: "="})

    def _answered(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Sequences [N, L] and answers [N, L] or [N] of what was drawn."""
        match self.operation:
            case "sort":
                return x, x.sort(1).values
            case "reverse":
                return x, x.flip(1)
            case "copy":
                return x, x
            case "count":
                return x, (x == 0).sum(1)
        terms = (x[:, :1] + torch.arange(self.length + 1) * x[:, 1:]) % self.n_symbols
        return terms[:, :-1], terms[:, -1]


def distinct(wanted: int, length: int, n_symbols: int, draws: torch.Generator) -> Tensor:
    """[wanted, length], that many different sequences of symbols, in the order in which they were drawn."""
    there = n_symbols**length
    if there <= 4 * wanted:
        numbers = torch.randperm(there, generator=draws)[:wanted]
        return numbers[:, None] // n_symbols ** torch.arange(length) % n_symbols
    found: dict[tuple[int, ...], None] = {}
    while len(found) < wanted:
        rows = torch.randint(0, n_symbols, (wanted, length), generator=draws)
        found.update(dict.fromkeys(map(tuple, rows.tolist())))
    return torch.tensor([*found][:wanted])
