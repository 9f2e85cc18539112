"""Data diversification: rows of a second task mixed into the training set of a first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from grokfast import checks, parts
from grokfast.seeds import MAX_SEED, generator
from grokfast.tasks.data import Data, Labels, Split, Task


@parts.register("mixture")
@dataclass(frozen=True, kw_only=True)
class MixtureTask(Task):
    """The first task, with training rows of the second behind its own; what is tested is the first.

    Both have rows of T tokens, and targets of one kind, classes. They share no token and no answer: those of the second
    come after those of the first. The splits are the first's, and the second's with "_second" after their names:
    "test_second".

    Args:
        first, second: tasks, their texts, or mappings of "kind" and fields: mixture(first=modular, second=parity).
        ratio: rows of the second in the training set, to those of the first, above 0; at most all that there are.
        mix_seed: draws them, without replacement; None: the experiment's seed.

    Raises TypeError or ValueError where an argument has the wrong type or is out of range, or the tasks do not match.
    """

    varies: ClassVar[frozenset[str]] = frozenset({"ratio", "mix_seed"})

    first: Task
    second: Task
    ratio: float = 0.5
    mix_seed: int | None = None

    def __post_init__(self) -> None:
        fields = checks.Fields(self)
        for name in ("first", "second"):
            task = parts.chosen("task", getattr(self, name), argument=name)
            if task is None:
                raise TypeError(f"{name} must be a task, got {checks.shown(getattr(self, name))}")
            object.__setattr__(self, name, task)
        fields.real("ratio", minimum=0, maximum=checks.LARGEST_REAL, open_minimum=True)
        fields.integer("mix_seed", minimum=0, maximum=MAX_SEED, optional=True)
        lengths = self.first.seq_len, self.second.seq_len
        if None not in lengths and lengths[0] != lengths[1]:
            raise ValueError(f"second must have rows of {lengths[0]} tokens, as first has, got {lengths[1]}")
        if n := self.first.n_rows():
            self._n_mixed(n, self.second.n_rows() or None)

    def missing(self) -> str:
        return self.first.missing() or self.second.missing()

    @property
    def seq_len(self) -> int | None:
        return self.first.seq_len or self.second.seq_len

    def n_rows(self) -> int:
        n = self.first.n_rows()
        return n + self._n_mixed(n) if n else 0

    def build(self, *, seed: int = 0) -> Data:
        """Both tasks' rows, of the second round(ratio · N) of the training set, in the order in which it has them."""
        first, second = self.first.build(seed=seed), self.second.build(seed=seed)
        _check_alike(first, second)
        n = len(second.train)
        mixed = self._n_mixed(len(first.train), n)
        draws = generator(seed if self.mix_seed is None else self.mix_seed, "mixture")
        drawn = torch.randperm(n, generator=draws)[:mixed].sort().values
        shifted = {
            name: Split(
                split.inputs + first.n_tokens,
                split.targets.where(split.targets < 0, split.targets + first.n_answers),
            )
            for name, split in second.splits.items()
        }
        own, more = first.train, shifted.pop("train")
        train = Split(torch.cat([own.inputs, more.inputs[drawn]]), torch.cat([own.targets, more.targets[drawn]]))
        others = {f"{name}_second": split for name, split in shifted.items()}
        if both := [name for name in others if name in first.splits]:
            raise ValueError(f"first must have no split {both[0]!r}, which is the second's")
        return Data(
            splits={**first.splits, "train": train, **others},
            n_tokens=first.n_tokens + second.n_tokens,
            n_answers=first.n_answers + second.n_answers,
            corrupted=torch.cat([_marked(first, "corrupted"), _marked(second, "corrupted")[drawn]]),
            made=torch.cat([_marked(first, "made"), _marked(second, "made")[drawn]]),
            coverage=first.coverage,
        )

    def labels(self, *, seed: int = 0) -> Labels:
        data, first, second = self.first.build(seed=seed), self.first.labels(seed=seed), self.second.labels(seed=seed)
        later = self.second.build(seed=seed)
        return Labels(
            {**first.tokens, **{data.n_tokens + i: second.tokens.get(i, str(i)) for i in range(later.n_tokens)}},
            {**first.answers, **{data.n_answers + i: second.answers.get(i, str(i)) for i in range(later.n_answers)}},
        )

    def attachments(self) -> Mapping[str, Mapping[str, Tensor]]:
        return {**self.first.attachments(), **self.second.attachments()}

    def attach(self, root: Path) -> None:
        self.first.attach(root)
        self.second.attach(root)

    def _n_mixed(self, n: int, there: int | None = None) -> int:
        """Rows of the second task to `n` of the first, of so many that there are (None: not known yet)."""
        found = round(self.ratio * n)
        if found < 1 or (there is not None and found > there):
            most = "" if there is None else f" and at most the {there:,} that second has for training"
            raise ValueError(f"ratio must make at least one row of the second task{most}, got {self.ratio}: {found:,} "
                             f"to {n:,} of the first")  # fmt: skip
        return found


def _check_alike(first: Data, second: Data) -> None:
    """Raise ValueError unless rows of both fit into one data set."""
    for name, data in (("first", first), ("second", second)):
        if not data.n_tokens or data.is_real:
            raise ValueError(f"{name} must have token ids as inputs and classes as targets, to be kept apart")
    one, other = (f"inputs [N, {data.seq_len}] and targets {_targets(data)}" for data in (first, second))
    if one != other:
        raise ValueError(f"second must have {one}, as first has, got {other}")


def _targets(data: Data) -> str:
    return "[N]" if data.n_positions is None else f"[N, {data.n_positions}]"


def _marked(data: Data, what: str) -> Tensor:
    rows: Tensor | None = getattr(data, what)
    return torch.zeros(len(data.train), dtype=torch.bool) if rows is None else rows
