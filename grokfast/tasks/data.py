"""`Task` and `Data`: what a task gives a model to learn, as tensors on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from grokfast import checks
from grokfast.parts import Part


class Labels(NamedTuple):
    """What pictures of the data say. tokens, answers: the text of an id, where it is not the number itself. features:
    which ones decide the answer, where only some do."""

    tokens: Mapping[int, str] = MappingProxyType({})
    answers: Mapping[int, str] = MappingProxyType({})
    features: Sequence[int] = ()


@dataclass(frozen=True)
class Task(Part):
    """Base of the tasks. A task of one's own is a frozen dataclass with a `build`."""

    family: ClassVar[str] = "task"

    @property
    def seq_len(self) -> int | None:
        """T, the tokens of an input, where that is known before the data are made."""
        return None

    def n_rows(self) -> int:
        """Training rows, where that is known before the data are made; 0: it is not."""
        return 0

    def missing(self) -> str:
        """What `build` needs and is not there, and how it is had; empty where nothing is."""
        return ""

    def build(self, *, seed: int = 0) -> Data:
        """The data set. `seed` is the experiment's, for what the task itself names no seed for."""
        raise NotImplementedError

    def labels(self, *, seed: int = 0) -> Labels:
        """What is in the data that `build` makes of the same seed, in words."""
        return Labels()

    def attachments(self) -> Mapping[str, Mapping[str, Tensor]]:
        """What a run needs beside the fields and is to be stored with it: by the SHA-256 that the fields name."""
        return {}

    def attach(self, root: Path) -> None:
        """The attachments are in the store at `root`."""


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of a data set.

    inputs: int64 [N, T], token ids; or float [N, D], features.
    targets: int64 [N], a class each; int64 [N, S], the answers at S positions, -1 where none is asked (one is, at
    least, in every row); or float [N, R], real numbers.
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True, kw_only=True, eq=False)
class Data:
    """A task as tensors on the CPU, in named splits: "train", "test" and any others (such as "test_ood").

    Args:
        splits: by name, measured in this order; what is learned is "train".
        n_tokens: every token id is below it; 0 where inputs are features.
        n_answers: every class is below it; where targets are real numbers, R.
        corrupted: [N] bool, which training targets are wrong on purpose; None: none.
        coverage: share of a table's pairs in the training set, what augmentation makes included; None: it makes none.
        difficulty: [N] real numbers, how difficult each training row is; None: no measure of it is known.
        made: [N] bool, which training rows augmentation made of others; None: none.

    Raises TypeError or ValueError naming the split, its shapes, and what is accepted.
    """

    splits: Mapping[str, Split]
    n_tokens: int
    n_answers: int
    corrupted: Tensor | None = None
    coverage: float | None = None
    difficulty: Tensor | None = None
    made: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("train", "test"):
            if name not in self.splits:
                raise ValueError(f"splits must have {name!r}, got {', '.join(map(repr, self.splits))}")
        object.__setattr__(self, "splits", MappingProxyType(dict(self.splits)))
        checks.integer("n_tokens", self.n_tokens, minimum=0)
        checks.integer("n_answers", self.n_answers, minimum=1)
        for name, split in self.splits.items():
            self._check(name, split)
        if self.difficulty is not None and self.difficulty.shape != (n := len(self.train),):
            raise ValueError(f"difficulty must have shape [{n}], one for each training row, "
                             f"got {list(self.difficulty.shape)}")  # fmt: skip

    def _check(self, name: str, split: Split) -> None:
        x, y = split.inputs, split.targets
        for what, t in (("inputs", x), ("targets", y)):
            if not isinstance(t, Tensor):
                raise TypeError(f"{name} must have tensors as {what}, got {checks.shown(t)}")
        if x.ndim != 2 or y.ndim not in (1, 2) or len(x) != len(y) or len(x) == 0:
            raise ValueError(
                f"{name} must have inputs [N, T] or [N, D] and targets [N], [N, S] or [N, R], N at least 1, "
                f"got {list(x.shape)} and {list(y.shape)}"
            )
        if x.is_floating_point() == bool(self.n_tokens) or (not x.is_floating_point() and x.dtype != torch.int64):
            accepted = "int64 token ids" if self.n_tokens else "floating-point features, as n_tokens is 0"
            raise TypeError(f"{name} must have {accepted}, got inputs in {x.dtype}")
        if not y.is_floating_point() and y.dtype != torch.int64:
            raise TypeError(f"{name} must have targets in int64 or floating point, got {y.dtype}")
        train = self.splits["train"]
        if (
            x.shape[1:] != train.inputs.shape[1:]
            or y.shape[1:] != train.targets.shape[1:]
            or y.dtype != train.targets.dtype
        ):
            raise ValueError(f"{name} must have rows like those of train, got {list(x.shape)} and {list(y.shape)}")
        if y.is_floating_point() and (y.ndim != 2 or y.shape[1] != self.n_answers):
            raise ValueError(f"{name} must have real targets [N, {self.n_answers}], got {list(y.shape)}")
        if not y.is_floating_point() and y.ndim == 2:
            if bool((y < 0).all(1).any()):
                raise ValueError(
                    f"{name} must have an answer to every row, row {int((y < 0).all(1).nonzero()[0])} has none"
                )
            y = torch.where(y == -1, 0, y)
        for what, values, end in (("token ids", x, self.n_tokens), ("classes", y, self.n_answers)):
            if values.is_floating_point():
                if not torch.isfinite(values).all():
                    raise ValueError(f"{name} must have finite numbers, got NaN or infinity")
            elif not 0 <= int(values.min()) <= int(values.max()) < end:
                raise ValueError(
                    f"{name} must have {what} in 0..{end - 1}, got {int(values.min())} to {int(values.max())}"
                )

    @property
    def train(self) -> Split:
        return self.splits["train"]

    @property
    def test(self) -> Split:
        return self.splits["test"]

    @property
    def seq_len(self) -> int:
        """T, the tokens of one input; or D, its features."""
        return self.train.inputs.shape[1]

    @property
    def n_positions(self) -> int | None:
        """S, the answer positions of a row; None where a target is one class, or real numbers."""
        y = self.train.targets
        return y.shape[1] if y.ndim == 2 and not self.is_real else None

    @cached_property
    def asked(self) -> Mapping[str, list[int]]:
        """Of each split the answer positions at which some row is asked; none where there are no positions."""
        if self.n_positions is None:
            return {}
        return {name: (one.targets >= 0).any(0).nonzero()[:, 0].tolist() for name, one in self.splits.items()}

    @property
    def is_real(self) -> bool:
        """Whether targets are real numbers."""
        return self.train.targets.is_floating_point()
