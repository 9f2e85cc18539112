"""At which steps a run's snapshots are taken, and how that is written."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

from grokfast import checks

_FORMS = re.compile(r"(every|log):([0-9]+)|[0-9]+(,[0-9]+)*")
MOST = 100  # a decade


def written(argument: str, said: Any) -> str | None:
    """The text of what is meant: "0,100,1000" for these steps, "every:500", or "log:8", eight a decade; None: none.

    Steps may also be given as a sequence. Raises TypeError or ValueError that begins with `argument`.
    """
    if said is None or (isinstance(said, str) and said.strip().lower() in ("", "none")):
        return None
    if not isinstance(said, str):
        if not isinstance(said, Iterable):
            raise TypeError(f"{argument} must be steps, 'every:N' or 'log:N', got {checks.shown(said)}")
        steps = {checks.integer(f"{argument}[{i}]", step, minimum=0) for i, step in enumerate(said)}
        return ",".join(map(str, sorted(steps))) or None
    text = said.replace(" ", "")
    found = _FORMS.fullmatch(text)
    if found is None:
        raise ValueError(f"{argument} must be steps like '0,100,1000', 'every:N' or 'log:N', got {checks.shown(said)}")
    if found[1] is None:
        return written(argument, list(map(int, text.split(","))))
    most = MOST if found[1] == "log" else None
    return f"{found[1]}:{checks.integer(f'{argument} {found[1]}', int(found[2]), minimum=1, maximum=most)}"


class Times:
    """The steps of a text of `written`. Both "every" and "log" begin at step 0; "log:n" has 10^(i/n), rounded."""

    def __init__(self, text: str | None) -> None:
        kind, _, number = (text or "").rpartition(":")
        self._kind, self._number = kind, int(number) if kind else 0
        self._steps = sorted(map(int, text.split(","))) if text and not kind else []

    def __contains__(self, step: int) -> bool:
        return self.next(step) == step

    def next(self, step: int) -> int | None:
        """The first of them that is not before `step`; None: there is none any more."""
        if self._kind == "every":
            return -(-step // self._number) * self._number
        if self._kind == "log":
            if step < 1:
                return 0
            i = max(0, math.floor(self._number * math.log10(step)) - 1)
            while (found := round(10 ** (i / self._number))) < step:
                i += 1
            return found
        return next((own for own in self._steps if own >= step), None)

    def last(self) -> int:
        """The last of a list of steps; 0 where they have no end."""
        return self._steps[-1] if self._steps else 0
