"""Linear recurrences modulo p: every window of n elements, and what follows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from grokfast import checks, parts
from grokfast.seeds import MAX_SEED, generator
from grokfast.tasks.data import Data, Split, Task
from grokfast.tasks.split import train_size, train_test_split

MAX_WINDOWS, MAX_ANSWERS = 1 << 24, 32


@parts.register("recurrence")
@dataclass(frozen=True, kw_only=True)
class RecurrenceTask(Task):
    """x_(t+n) = c_0 x_t + c_1 x_(t+1) + ... + c_(n-1) x_(t+n-1) mod p: all p^n windows of n elements, in order.

    A row has the tokens x_t ... x_(t+n-1), and its answer is the element after them. With S answers it has the next
    S - 1 elements, too (teacher forcing), T = n + S - 1, and answers [N, S] for each of its last S positions. No window
    of the test set begins a training row; with several answers it may be within one.

    Args:
        p: modulus, at least 2; p^n is at most 2^24.
        coefficients: c_0, ..., c_(n-1), of the oldest element first; (1, 1) is Fibonacci's, (-1, 2) arithmetic
            progressions.
        n_answers: S, 1 to 32; 1 makes targets [N].
        train_fraction: share of the windows shown in training, in (0, 1).
        split_seed: chooses them; None: the experiment's seed.

    Raises TypeError or ValueError where an argument has the wrong type or is out of range, all coefficients are 0 mod
    p, there are too many windows, or no training row is left.
    """

    varies: ClassVar[frozenset[str]] = frozenset({"train_fraction", "split_seed"})

    p: int = 31
    coefficients: tuple[int, ...] = (1, 1)
    n_answers: int = 1
    train_fraction: float = 0.6
    split_seed: int | None = None

    def __post_init__(self) -> None:
        fields = checks.Fields(self)
        fields.integer("p", minimum=2, maximum=MAX_WINDOWS)
        fields.integer("n_answers", minimum=1, maximum=MAX_ANSWERS)
        fields.real("train_fraction", minimum=0, maximum=1, open_minimum=True, open_maximum=True)
        fields.integer("split_seed", minimum=0, maximum=MAX_SEED, optional=True)
        if not isinstance(self.coefficients, (tuple, list)) or not self.coefficients:
            raise TypeError(f"coefficients must be a tuple of integers, got {checks.shown(self.coefficients)}")
        own = tuple(
            checks.integer(f"coefficients[{i}]", c, minimum=-checks.LARGEST_INTEGER)
            for i, c in enumerate(self.coefficients)
        )
        object.__setattr__(self, "coefficients", own)
        if all(c % self.p == 0 for c in own):
            raise ValueError(f"coefficients must not all be 0 mod {self.p}, got {checks.shown(own)}")
        if len(own) > 24 or self.n_windows > MAX_WINDOWS:
            raise ValueError(
                f"coefficients and p must make at most {MAX_WINDOWS:,} windows, all of which are enumerated: "
                f"{len(own)} elements mod {self.p} make {self.p}^{len(own)}"
                + (f" = {self.n_windows:,}" if len(own) <= 24 else "")
            )
        train_size(self.n_windows, self.train_fraction)

    @property
    def n_windows(self) -> int:
        """p^n, training and test together."""
        return self.p ** len(self.coefficients)

    @property
    def seq_len(self) -> int:
        return len(self.coefficients) + self.n_answers - 1

    def n_rows(self) -> int:
        return train_size(self.n_windows, self.train_fraction)

    def build(self, *, seed: int = 0) -> Data:
        checks.integer("seed", seed, minimum=0, maximum=MAX_SEED)
        x = self._elements()
        n, own = len(self.coefficients), seed if self.split_seed is None else self.split_seed
        y = x[:, n] if self.n_answers == 1 else x[:, n:]
        rows = train_test_split(y, self.train_fraction, generator(own, "split"))
        splits = {name: Split(x[own, :-1], y[own]) for name, own in zip(("train", "test"), rows)}
        return Data(splits=splits, n_tokens=self.p, n_answers=self.p)

    def _elements(self) -> Tensor:
        """[p^n, n + S]: the windows in order, and the elements that follow each."""
        n = len(self.coefficients)
        numbers = torch.arange(self.n_windows)
        found = [numbers // self.p ** (n - 1 - i) % self.p for i in range(n)]
        for _ in range(self.n_answers):
            following = torch.zeros_like(numbers)
            for c, element in zip(self.coefficients, found[-n:]):
                following += c % self.p * element % self.p
            found.append(following % self.p)
        return torch.stack(found, 1)
