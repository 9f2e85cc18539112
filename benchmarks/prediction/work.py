"""What the launches of a step ask of a GPU, counted: programs, bytes, operations; and which bytes memory must serve.

Plain functions of sizes, with neither Triton nor a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple


class Use(NamedTuple):
    """What a phase of a launch does with an array, of all models together.

    size: bytes of the array that are touched at all; asked: bytes that programs load and store, each for itself.
    loads: what was there before is read; stores: it is written.
    """

    array: str
    size: int
    asked: int
    loads: bool = True
    stores: bool = False


@dataclass(frozen=True)
class Launch:
    """One or `count` launches of a kind that follow one another, all models and programs together.

    Attributes:
        kernel: how a profiler's name of it begins.
        programs: of one launch.
        phases: what programs do one after the other.
        flops: floating-point operations of products; bf16: those of them that are of bf16 numbers in any precision.
        largest: what the largest program asks for and computes, as a multiple of the average.
    """

    name: str
    kernel: str
    programs: int
    phases: tuple[tuple[Use, ...], ...]
    flops: int = 0
    bf16: int = 0
    count: int = 1
    largest: float = 1.0

    @property
    def bytes(self) -> int:
        """That programs ask for: between the processors and the L2 cache."""
        return sum(use.asked for phase in self.phases for use in phase)

    def slowest(self, processors: int) -> float:
        """The share of all bytes and operations of the processor that has most of them to do."""
        return max(-(-self.programs // processors), self.largest) / self.programs


def served(step: Sequence[Launch], cache: int, processors: int) -> list[int]:
    """Bytes that memory serves of each launch of a step that is repeated, with an L2 cache of `cache` bytes before it.

    An array is still in the cache where all that was touched since its last use fits: from launch to launch that is
    what they touch as a whole, from phase to phase of one launch what the programs touch that run at once, one on each
    processor. Of what the two phases themselves touch, half comes in between. What several programs of a launch load
    is loaded from memory once. What is stored goes to memory, unless it stays in the cache until it is overwritten.
    """
    phases = [(i, phase) for i, launch in enumerate(step) for phase in launch.phases]
    running = [min(1.0, processors / launch.programs) for launch in step]

    def stays(array: str, begin: int, end: int) -> bool:
        """From phase `begin` to phase `end`, which comes a step later if it is not larger."""
        last = end if end > begin else end + len(phases)
        between: dict[str, float] = {}
        for k in range(begin, last + 1):
            for use in phases[k % len(phases)][1]:
                share = 0.5 if k in (begin, last) and use.array != array else 1.0
                between[use.array] = max(share * use.size, between.get(use.array, 0))
        is_one_launch = end > begin and phases[begin][0] == phases[end][0]
        return sum(between.values()) * (running[phases[begin][0]] if is_one_launch else 1) <= cache

    found = [0] * len(step)
    for array in sorted({use.array for _, phase in phases for use in phase}):
        uses = [(k, use) for k, (_, phase) in enumerate(phases) for use in phase if use.array == array]
        kept = [stays(array, begin, end) for (begin, _), (end, _) in pairwise([*uses, uses[0]])]  # until the next use
        for i, (k, use) in enumerate(uses):
            launch = phases[k][0]
            if use.loads and not kept[i - 1]:
                found[launch] += use.size
            if use.stores:
                until = i
                while kept[until] and not uses[(until + 1) % len(uses)][1].stores:
                    until = (until + 1) % len(uses)
                found[launch] += 0 if kept[until] else use.size
    return found
