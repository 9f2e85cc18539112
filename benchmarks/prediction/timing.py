"""How long launches take: no less than their limits, and, where their instructions are counted, what is likely."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from benchmarks.prediction import issue
from benchmarks.prediction.devices import H200, Ceilings
from benchmarks.prediction.issue import Executed
from benchmarks.prediction.work import Launch, served

EVEN = 1.1  # times the average, up to which a processor's share is as large as the others'
NOTHING: Mapping[str, Executed] = MappingProxyType({})


class Time(NamedTuple):
    """Of a launch, or of a whole step: the least seconds that it takes, by what it waits for, beside those of starting;
    bytes that memory serves; and, where its instructions are counted, the seconds that are likely, from and to."""

    launch: Launch
    memory: int
    parts: dict[str, float]
    starting: float
    likely: tuple[float, float] | None = None

    @property
    def bound(self) -> str:
        longest = max(self.parts, key=self.parts.__getitem__)
        return "launch" if self.parts[longest] < self.starting else longest

    @property
    def issuing(self) -> float:
        """Seconds of its instructions at the highest rate; 0 where they are not counted."""
        return next((value for name, value in self.parts.items() if name.endswith("instructions")), 0.0)

    @property
    def seconds(self) -> float:
        """A limit: no less."""
        return self.starting + max(self.parts.values())


def times(
    step: Sequence[Launch], precision: str, ceilings: Ceilings = H200, executed: Mapping[str, Executed] = NOTHING,
    models: int = 1,
) -> list[Time]:  # fmt: skip
    """Of each launch of a step that is repeated. executed: what each does for one of so many models, by name."""
    found = []
    for launch, memory in zip(step, served(step, int(ceilings.cache), ceilings.processors)):
        one = executed.get(launch.name)
        multiplying = (launch.flops - launch.bf16) / ceilings.flops[precision] + launch.bf16 / ceilings.flops["bf16"]
        if one is not None:  # padding, and what several warps compute, each for itself; of what kind is not counted
            more = max(0, models * one.products - launch.flops)
            multiplying += more / ceilings.flops["bf16" if launch.bf16 else precision]
        share = launch.slowest(ceilings.processors)
        unevenness = share * ceilings.processors
        whose = "one processor's " if unevenness > EVEN else ""
        parts = {
            "memory": memory / ceilings.memory,
            "L2": launch.bytes / ceilings.l2,
            f"{whose}products": unevenness * multiplying,
            "one processor's L2": share * launch.bytes / ceilings.port,
        }
        starting, slower = launch.count * ceilings.launch, memory / ceilings.sustained
        best = worst = 0.0
        if one is not None:
            parts[f"{whose}shared memory"] = unevenness * models * one.shared / ceilings.shared
            parts[f"{whose}instructions"] = issuing = unevenness * models * one.instructions / ceilings.instructions
            of_each = -(-launch.programs // ceilings.processors)  # programs, of which some may be at work at once
            warps = one.warps * min(issue.resident(one, ceilings) // one.warps, of_each)
            best, worst = (ceilings.issue / rate * issuing for rate in issue.pace(warps, ceilings))
        least = max(parts.values())
        likely = (starting + max(least, best), starting + max(least, slower, worst)) if executed else None
        found.append(Time(launch, memory, parts, starting, likely))
    return found


def whole(found: Sequence[Time]) -> Time:
    """The step; something is likely where it is of all its launches."""
    starting, memory = (sum(getattr(time, name) for time in found) for name in ("starting", "memory"))
    step = Launch("step", "", 1, (), count=sum(time.launch.count for time in found))
    ends = [time.likely for time in found if time.likely is not None]
    likely = (sum(best for best, _ in ends), sum(worst for _, worst in ends)) if len(ends) == len(found) else None
    return Time(step, memory, {"launch by launch": sum(max(time.parts.values()) for time in found)}, starting, likely)


def seconds(step: Sequence[Launch], precision: str, ceilings: Ceilings = H200) -> float:
    """Of one step no less than this, by all but instructions."""
    return whole(times(step, precision, ceilings)).seconds


def spent(found: Sequence[Time]) -> str:
    """What a step's time is spent on at least, the most first."""
    total: Counter[str] = Counter()
    for time in found:
        total["launches"] += time.starting
        total[max(time.parts, key=time.parts.__getitem__)] += max(time.parts.values())
    taken = sum(total.values())
    return ", ".join(f"{name} {share / taken:.0%}" for name, share in total.most_common() if share > 0.02 * taken)
