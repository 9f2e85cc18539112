"""What a launch executes, and how fast its instructions are likely to be issued.

An instruction of a warp takes a scheduler's slot, whatever it computes; a processor of a GPU has four slots a cycle.
Counts are those of `benchmarks.count_instructions`: compiled kernels, executed on the CPU, in PTX.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.instructions import TABLE, of_step
from benchmarks.prediction.devices import Ceilings
from benchmarks.prediction.work import Launch

MANY, FEW = 256, 16  # models that are counted, and from which on they are taken for as many
# Registers of a thread, by kernel-resources.json: of kernels with products 128 to 255, of others at most 112.
HUNGRY, OTHERS = 255, 112
# Cycles from a warp's instruction to its next. It issues in order; the result of arithmetic is there after 4 cycles
# (measured by others on every generation since Volta), and without independent instructions between it waits for it;
# one of shared memory takes about 30. ASSUMED: between every one and every second instruction has to wait for 4.
CYCLES = 4, 8
# Of four slots, what is likely to be used where warps are many. ASSUMED.
LIKELY = 3.0, 2.0


class Executed(NamedTuple):
    """What a launch executes for one of its models: instructions of warps; warps and registers (of a thread) of a
    program; operations of tensor cores; bytes of shared memory."""

    instructions: int
    warps: int = 8
    registers: int = 255
    products: int = 0
    shared: int = 0


def executed(
    name: str, models: int, precision: str, step: Sequence[Launch], table: Path = TABLE
) -> dict[str, Executed]:
    """Launches of a step by name, as far as they are counted; all are PyTorch's that are not. Empty where none is."""
    counted = of_step(name, MANY if models >= FEW else 1, precision, table)
    found = {}
    for launch in step:
        own = next((one for one in counted if launch.kernel and one.kernel == launch.kernel), None)
        if own is not None:
            counted.remove(own)
            registers = HUNGRY if launch.flops else OTHERS
            found[launch.name] = Executed(own.instructions, own.warps, registers, own.products, own.shared)
    return found


def resident(one: Executed, ceilings: Ceilings) -> int:
    """Warps of a kernel that a processor has at once where there are programs enough, by registers and threads."""
    of_program = 32 * one.warps
    registers = (one.registers + -one.registers % 8) * of_program
    programs = min(ceilings.programs, ceilings.threads // of_program, ceilings.registers // registers)
    return max(1, programs) * one.warps


def pace(warps: float, ceilings: Ceilings) -> tuple[float, float]:
    """Instructions that a processor with so many warps is likely to issue in a cycle: at best, and at worst."""
    best, worst = (min(likely, warps / cycles) for likely, cycles in zip(LIKELY, CYCLES))
    return min(best, ceilings.issue), min(worst, ceilings.issue)
