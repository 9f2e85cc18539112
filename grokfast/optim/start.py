"""Transforms that begin later, or stop: each param group says how far that is, so that a state dict does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Start:
    """After `step` steps, and once `when`, called with the number of steps taken, has returned True."""

    def __init__(self, step: int, when: Callable[[int], bool] | None) -> None:
        self.step, self.when = step, when
        self.is_later = bool(step) or when is not None

    def note(self, groups: list[dict[str, Any]]) -> None:
        """Have every group say it, as the first does."""
        if self.is_later:
            first = groups[0]
            for group in groups:
                group.setdefault("grokfast_steps", first.get("grokfast_steps", 0))
                group.setdefault("grokfast_started", first.get("grokfast_started", False))

    def has_come(self, groups: list[dict[str, Any]]) -> bool:
        if not self.is_later or groups[0]["grokfast_started"]:
            return True
        steps = groups[0]["grokfast_steps"]
        if steps < self.step or not (self.when is None or self.when(steps)):
            return False
        for group in groups:
            group["grokfast_started"] = True
        return True

    def count(self, groups: list[dict[str, Any]]) -> None:
        """One more step is taken."""
        for group in groups:
            if "grokfast_steps" in group:  # where a start or stop asks for it
                group["grokfast_steps"] += 1
