"""Hyper-parameters as functions of the step. Where two change the same one, they must not overlap."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, get_args

import torch
from torch import Tensor

from grokfast import checks
from grokfast.parts import register
from grokfast.schedules.base import Change, Moment


def _steps(begin: int, end: int) -> Tensor:
    return torch.arange(begin, end, dtype=torch.float64)


@register("warmup")
@dataclass(frozen=True, kw_only=True)
class Warmup(Change):
    """value · step/steps during the first `steps` steps, from 0 on; then the value itself. `of`: which."""

    varies: ClassVar[frozenset[str]] = frozenset({"steps"})

    steps: int
    of: str = "lr"

    def __post_init__(self) -> None:
        fields = checks.Fields(self, "warmup.")
        fields.integer("steps", minimum=1)
        fields.text("of")

    def values(self, begin: int, end: int, current: Mapping[str, float]) -> Mapping[str, Tensor]:
        at = _steps(begin, end)
        return {self.of: torch.where(at < self.steps, current[self.of] * (at / self.steps), math.nan)}


@register("cosine")
@dataclass(frozen=True, kw_only=True)
class Cosine(Change):
    """From the value at step `begin` down to `to` at step `end`, along half a cosine (Loshchilov & Hutter 2017, arXiv
    1608.03983, equation 5, without restarts), and `to` from then on. end None: the schedule's last step."""

    varies: ClassVar[frozenset[str]] = frozenset({"to", "begin", "end"})

    of: str = "lr"
    to: float = 0.0
    begin: int = 0
    end: int | None = None

    def __post_init__(self) -> None:
        fields = checks.Fields(self, "cosine.")
        fields.text("of")
        fields.real("to")
        fields.integer("begin", minimum=0)
        fields.integer("end", minimum=self.begin + 1, optional=True)

    def values(self, begin: int, end: int, current: Mapping[str, float]) -> Mapping[str, Tensor]:
        at, last = _steps(begin, end), current["steps"] if self.end is None else self.end
        share = ((at - self.begin) / max(last - self.begin, 1)).clamp(max=1)
        value = self.to + (current[self.of] - self.to) * (1 + torch.cos(math.pi * share)) / 2
        return {self.of: torch.where(at >= self.begin, value, math.nan)}


@register("step_decay")
@dataclass(frozen=True, kw_only=True)
class StepDecay(Change):
    """The value times `factor` from each of the steps `at` on."""

    varies: ClassVar[frozenset[str]] = frozenset({"factor"})

    at: tuple[int, ...]
    of: str = "lr"
    factor: float = 0.1

    def __post_init__(self) -> None:
        fields = checks.Fields(self, "step_decay.")
        fields.text("of")
        fields.real("factor", minimum=0)
        at = self.at if isinstance(self.at, (tuple, list)) else (self.at,)
        at = tuple(checks.integer(f"step_decay.at[{i}]", step, minimum=0) for i, step in enumerate(at))
        if not at or list(at) != sorted(set(at)):
            raise ValueError(f"step_decay.at must be increasing steps, at least one, got {checks.shown(self.at)}")
        object.__setattr__(self, "at", at)

    def values(self, begin: int, end: int, current: Mapping[str, float]) -> Mapping[str, Tensor]:
        at = _steps(begin, end)
        passed = (at[:, None] >= torch.tensor(self.at, dtype=torch.float64)).sum(1).double()
        return {self.of: torch.where(passed > 0, current[self.of] * self.factor**passed, math.nan)}


@register("switch")
@dataclass(frozen=True, kw_only=True)
class Switch(Change):
    """The value is `to` from step `at` on, or `after` the run has memorised or generalised, `delay` steps later: from
    the first step after the evaluation that established it, the last of the `criteria.sustain` in a row."""

    varies: ClassVar[frozenset[str]] = frozenset({"to", "at", "delay"})

    of: str
    to: float
    at: int | None = None
    after: Moment | None = None  # type: ignore[misc]
    delay: int = 0  # type: ignore[misc]

    def __post_init__(self) -> None:
        fields = checks.Fields(self, "switch.")
        fields.text("of")
        fields.real("to")
        fields.integer("at", minimum=0, optional=True)
        if self.after is not None:
            fields.choice(after=get_args(Moment))
        fields.integer("delay", minimum=0)
        if (self.at is None) == (self.after is None):
            raise ValueError(f"switch needs at, a step, or after, a moment: got at={self.at}, after={self.after}")
        if self.delay and self.after is None:
            raise ValueError(f"switch.delay is counted from after, a moment; got delay={self.delay}, at={self.at}")

    def values(self, begin: int, end: int, current: Mapping[str, float]) -> Mapping[str, Tensor]:
        at = _steps(begin, end)
        return {self.of: torch.full_like(at, self.to).where(at >= (self.at or 0), math.nan)}
