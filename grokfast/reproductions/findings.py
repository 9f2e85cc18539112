"""A published claim beside what came out here, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["reproduced", "refuted", "undecided", "control"]


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a paper says, and where.

    value: a number, or a mean or median of n; spread: the standard deviation over n. values: of single runs, where they
    are published; a run that did not reach what is measured is infinite.
    """

    value: float
    source: str
    spread: float | None = None
    n: int | None = None
    values: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One claim and what became of it.

    what: in words. quantity: what is measured: findings of one quantity share an axis. claim: what was tested, so that
    another outcome would have been another verdict. values: of each seed, NaN where there is none, infinite where a run
    did not reach it. estimate, low, high: the mean, share or median, and its 95% interval. test: its name; p: its
    p-value, NaN where it has none. unit: "share" of one, "steps" or a plain "number".
    verdict: "reproduced" where the interval lies inside of what the claim allows, "refuted" where it lies outside,
    "undecided" where it does both, or there are too few runs; "control" where nothing is claimed.
    """

    what: str
    quantity: str
    claim: str
    published: Published | None
    values: tuple[float, ...]
    estimate: float
    low: float
    high: float
    test: str
    p: float = math.nan
    unit: Literal["share", "steps", "number"] = "share"
    verdict: Verdict

    def words(self) -> dict[str, str]:
        """A row of a table."""
        published = ""
        if self.published is not None:
            published = self._number(self.published.value)
            published += "" if self.published.spread is None else f" ± {self._number(self.published.spread)}"
        ours = self._number(self.estimate)
        if not math.isnan(self.low):
            ours += f" [{self._number(self.low)}, {self._number(self.high)}]"
        return {
            "what": self.what,
            "published": published,
            "here, 95%": ours,
            "n": str(sum(not math.isnan(value) for value in self.values)),
            "claim": self.claim,
            "test": self.test + ("" if math.isnan(self.p) else f", p {self.p:.2g}"),
            "verdict": self.verdict,
        }

    def plain(self) -> dict[str, Any]:
        """As JSON values; what is not finite is None."""
        source = self.published
        return {
            "what": self.what,
            "quantity": self.quantity,
            "unit": self.unit,
            "published": None if source is None else {
                "value": _finite(source.value), "spread": source.spread, "n": source.n, "source": source.source,
                "values": [_finite(value) for value in source.values],
            },
            "values": [_finite(value) for value in self.values],
            "estimate": _finite(self.estimate),
            "interval": [_finite(self.low), _finite(self.high)],
            "claim": self.claim,
            "test": self.test,
            "p": _finite(self.p),
            "verdict": self.verdict,
        }  # fmt: skip

    def _number(self, value: float) -> str:
        if not math.isfinite(value):
            infinite = "never" if self.unit == "steps" else "∞"
            return infinite if value == math.inf else "unknown"
        return {"share": f"{value:.4f}", "steps": f"{value:,.0f}", "number": f"{value:.3g}"}[self.unit]


@dataclass(frozen=True)
class Summary:
    """The verdict on all claims together: refuted where one is, reproduced where all are."""

    findings: Sequence[Finding]
    counts: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        verdicts = [found.verdict for found in self.findings if found.verdict != "control"]
        counts = {name: verdicts.count(name) for name in ("reproduced", "refuted", "undecided")}
        object.__setattr__(self, "counts", {name: n for name, n in counts.items() if n})

    @property
    def verdict(self) -> str:
        if "refuted" in self.counts:
            return "refuted"
        return "reproduced" if {*self.counts} == {"reproduced"} else "undecided"

    def __str__(self) -> str:
        n = sum(self.counts.values())
        said = ", ".join(f"{count} {name}" for name, count in self.counts.items())
        return f"{self.verdict}: of {n} claim{'s' if n != 1 else ''} {said}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
