"""How far a sweep is, counted from its events."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping

from grokfast.store.run import ENDED
from grokfast.sweeps.runner import Event


class Progress:
    """Runs by status, steps taken and steps to come. `limits` has the most steps that each run can take, by its id."""

    def __init__(self, limits: Mapping[str, int], statuses: Mapping[str, str]) -> None:
        self.limits = dict(limits)
        self.status = dict(statuses)
        self.grokked = 0
        self.errors: dict[str, str] = {}
        self.begun = time.monotonic()
        self._last: dict[str, int] = {}
        self._first: dict[str, int] = {}
        self._ends: list[int] = []

    def take(self, event: Event) -> None:
        """Count one event."""
        run, was_known = event.run_id, event.run_id in self._last
        ended_before = self.status.get(run) in ENDED
        self.status[run] = event.status
        if event.status == "failed":
            self.errors[run] = event.error or ""
            return
        if event.status == "running" and not was_known:
            self._first[run] = event.steps
        self._last[run] = max(event.steps, self._last.get(run, 0))
        if event.status in ENDED and not ended_before:
            self._ends.append(event.steps)
            self.grokked += event.phase == "grokking"

    def counts(self) -> Counter[str]:
        """The number of runs by status."""
        return Counter(self.status.values())

    @property
    def steps(self) -> int:
        """Steps of all runs since the beginning of this call."""
        return sum(self._last[run] - first for run, first in self._first.items())

    def rate(self) -> float:
        """Steps of all runs per second."""
        return self.steps / max(time.monotonic() - self.begun, 1e-9)

    def seconds_left(self) -> float | None:
        """As if the other runs were as long as those that have ended; None before the first step."""
        if not self.steps:
            return None
        mean = sum(self._ends) / len(self._ends) if self._ends else None
        left = 0.0
        for run, status in self.status.items():
            if status not in ENDED:
                limit = self.limits[run]
                left += max((limit if mean is None else min(mean, limit)) - self._last.get(run, 0), 0)
        return left / self.rate()
