"""Which rows of the training set may be shown at a step."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from grokfast import checks, parts
from grokfast.parts import register
from grokfast.schedules.base import Change
from grokfast.seeds import MAX_SEED, generator
from grokfast.store.records import Record
from grokfast.tasks.data import Data

By = Literal["size", "order", "difficulty", "random"]


@register("curriculum")
@dataclass(frozen=True, kw_only=True)
class Curriculum(Change):
    """Easy rows first (Bengio et al. 2009): the share of the training rows that may be shown grows evenly from `start`
    to all of them, over `steps` steps, fewer than the run's.

    by: "size", rows whose operands' sum is smallest first; "order", as the task has them; "difficulty", by what the
    task gives as `Data.difficulty` (modular ones: how often the result on integers goes round p), equal ones as the
    task has them; "random", in an order drawn by `seed`: what showing fewer rows does by itself.
    """

    varies: ClassVar[frozenset[str]] = frozenset({"start", "steps", "seed"})

    steps: int
    start: float = 0.1
    by: By = "size"
    seed: int = parts.added(0)

    def __post_init__(self) -> None:
        fields = checks.Fields(self, "curriculum.")
        fields.integer("steps", minimum=1)
        fields.real("start", minimum=0, maximum=1, open_minimum=True)
        fields.choice(by=get_args(By))
        fields.integer("seed", minimum=0, maximum=MAX_SEED)

    def rows(self, begin: int, end: int, data: Data) -> Tensor | None:
        at = (torch.arange(begin, end, dtype=torch.float64) / self.steps).clamp(max=1)
        return _first(self.start + (1 - self.start) * at, data, self.by, self.seed)

    def check(self, data: Data) -> None:
        _check_by("curriculum", self.by, data)

    def check_schedule(self, steps: int, eval_every: int) -> None:
        if self.start < 1 and self.steps >= steps:
            raise ValueError(
                f"curriculum.steps must be below schedule.steps, {steps}, or some rows are never shown, "
                f"got {self.steps}"
            )


@register("paced_curriculum")
@dataclass(frozen=True, kw_only=True)
class PacedCurriculum(Change):
    """Easy rows first, at the learner's pace: the share of the training rows that may be shown is `start`, and rises by
    `increment` with each evaluation whose accuracy on the whole training set is at least `threshold` times the share.

    by, seed: see Curriculum.
    """

    varies: ClassVar[frozenset[str]] = frozenset({"start", "increment", "threshold", "seed"})

    start: float = 0.1
    increment: float = 0.1
    threshold: float = 0.9
    by: By = "size"
    seed: int = 0

    def __post_init__(self) -> None:
        fields = checks.Fields(self, "paced_curriculum.")
        fields.real("start", "increment", "threshold", minimum=0, maximum=1, open_minimum=True)
        fields.choice(by=get_args(By))
        fields.integer("seed", minimum=0, maximum=MAX_SEED)

    def rows(self, begin: int, end: int, data: Data) -> Tensor | None:
        return _first(torch.full((end - begin,), self.start, dtype=torch.float64), data, self.by, self.seed)

    def following(self, record: Record) -> PacedCurriculum:
        if not record["train_accuracy"] >= round(self.threshold * self.start, 12):  # NaN is no success
            return self
        return dataclasses.replace(self, start=min(1.0, round(self.start + self.increment, 12)))

    def check(self, data: Data) -> None:
        _check_by("paced_curriculum", self.by, data)

    def check_schedule(self, steps: int, eval_every: int) -> None:
        evaluations = -(-steps // eval_every)  # with steps after them
        if (most := round(self.start + evaluations * self.increment, 12)) < 1:
            raise ValueError(
                f"paced_curriculum.increment must be such that all rows can be shown, got {self.increment}: from "
                f"{self.start} on {evaluations} evaluations raise it to {most:g}"
            )


def _first(share: Tensor, data: Data, by: str, seed: int) -> Tensor:
    """bool [steps, N], a share [steps] of the training rows, the easiest."""
    n = len(data.train)
    if by == "order":
        rank = torch.arange(n)
    else:
        order = torch.randperm(n, generator=generator(seed, "curriculum")) if by == "random" else _ease(data, by)
        rank = torch.empty_like(order).scatter_(0, order, torch.arange(n))
    return rank < (share * n).ceil().clamp(min=1)[:, None]


def _ease(data: Data, by: str) -> Tensor:
    """[N] row numbers, the easiest first."""
    measure = data.train.inputs.flatten(1).sum(1) if by == "size" else data.difficulty
    assert measure is not None
    return measure.argsort(stable=True)


def _check_by(name: str, by: str, data: Data) -> None:
    if by == "difficulty" and data.difficulty is None:
        raise ValueError(
            f"{name}.by must be 'size', 'order' or 'random' for a task without a difficulty of rows (Data.difficulty), "
            "got 'difficulty'"
        )
