"""Launches of Triton kernels on CPU tensors: compiled to PTX as a GPU's would be, and that executed on the CPU.

What Triton's interpreter does not see is seen here: the code that the compiler made, threads and barriers between them,
shared memory, copies that are under way, alignment, and what rounds where. TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.launches import Launch, taking
from benchmarks.resources import no_machine_code
from tests.ptx import machine
from tests.ptx.parse import Kernel, parse

INTEGERS = {"i1": np.uint8, "i8": np.int8, "i16": np.int16, "i32": np.int32, "i64": np.int64, "u64": np.uint64}
FLOATS = {"fp32": np.float32, "f32": np.float32, "fp64": np.float64}
TABLE = "p_entries"  # tensors of a kernel with this parameter are named in a table, not among its arguments
_kernels: dict[tuple[int, str], tuple[Kernel, int, int]] = {}


class Fault(RuntimeError):
    """A kernel did what ends it on a GPU, or cannot be emulated."""


@dataclass
class Ran:
    """A launch that was made."""

    name: str
    grid: tuple[int, ...]
    threads: int
    instructions: int
    loaded: int
    stored: int
    barriers: int
    flops: int
    mma_flops: int
    shared: int


@dataclass
class Seen:
    """What ran, and what a GPU may do otherwise: "kernel: what, file:line, and the other's file:line"."""

    launches: list[Ran] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    copies: set[str] = field(default_factory=set)  # likewise, where lanes have rounded copies of a sum differently


@contextmanager
def emulated(capability: int = 80, seed: int = 0, *, only_counts: bool = False) -> Iterator[Seen]:
    """Launches in a block of code run here; `seed` is that of the order of programs and warps.

    only_counts: an order of magnitude faster, with products that are zero and nothing found. What is counted is the
    same, as long as what a kernel does next depends on no result of a product.
    Raises Fault where a kernel reads or writes outside of its tensors, or at an address that is not aligned.
    """
    seen = Seen()

    def take(launch: Launch, arguments: dict[str, Any]) -> None:
        if 0 in launch.grid:
            return
        bits, tensors = _passed(launch, arguments)
        execute(
            *kernel_of(launch, capability), launch.grid, bits, tensors, seed + len(seen.launches), seen, only_counts
        )

    with taking(capability, take):
        yield seen


def kernel_of(launch: Launch, capability: int) -> tuple[Kernel, int, int]:
    """A launch's code, its shared memory in bytes and its threads."""
    key = capability, launch.facts
    if key not in _kernels:
        function = getattr(importlib.import_module(launch.module), launch.name)
        source = ASTSource(function, launch.signature, launch.constants, launch.attributes)
        with no_machine_code():
            made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.options)
        _kernels[key] = parse(made.asm["ptx"]), made.metadata.shared, 32 * made.metadata.num_warps
    return _kernels[key]


def _passed(launch: Launch, arguments: dict[str, Any]) -> tuple[list[int], list[Tensor]]:
    """The bits of each parameter of the compiled kernel, and the tensors that it may touch."""
    bits, tensors = [], []
    for name, kind in launch.signature.items():
        value = arguments[name]
        if isinstance(value, Tensor):
            tensors.append(value)
        if kind == "constexpr":
            continue
        if kind.startswith("*"):
            bits.append(value.data_ptr())
        elif kind in FLOATS:
            bits.append(int.from_bytes(FLOATS[kind](value).tobytes(), "little"))
        else:
            bits.append(int.from_bytes(np.array(value).astype(INTEGERS[kind]).tobytes(), "little"))
    if TABLE in arguments:
        tensors += [t for t in gc.get_objects() if type(t) in (Tensor, torch.nn.Parameter) and t.device.type == "cpu"]
    return bits, tensors


def execute(
    kernel: Kernel, shared: int, threads: int, grid: tuple[int, ...], bits: list[int], tensors: list[Tensor],
    seed: int, seen: Seen, only_counts: bool = False,
) -> None:  # fmt: skip
    """Run a parsed kernel; `bits` are its parameters, and it may touch `tensors` and nothing else."""
    assert threads % machine.LANES == 0
    spans = sorted(
        (s.data_ptr(), s.data_ptr() + s.nbytes()) for s in (t.untyped_storage() for t in tensors) if s.nbytes()
    )
    spans = [span for i, span in enumerate(spans) if i == 0 or span != spans[i - 1]]
    sizes = (*grid, 1, 1)[:3]
    constants = list(kernel.constants)
    constants += [(slot, 4, (*sizes, threads)[which]) for slot, which in kernel.of_launch]
    constants += [
        (slot, width, _parameter(bits[which] if which < len(bits) else 0, kind, width))
        for slot, width, which, kind in kernel.parameters
    ]
    launch = machine.Launch(
        (ctypes.c_int32 * 3)(*sizes), threads, kernel.file_bytes, shared, len(kernel.code), len(constants), len(spans),
        min(kernel.smallest, 4).bit_length() - 1, only_counts, seed,
        (machine.Instruction * len(kernel.code))(*kernel.code),
        (ctypes.c_int32 * len(kernel.operands))(*kernel.operands),
        (machine.Constant * len(constants))(*constants),
        (ctypes.c_uint64 * (2 * len(spans)))(*(edge for span in spans for edge in span)),
    )  # fmt: skip
    failed = machine.machine().run(ctypes.byref(launch))
    said: list[str] = []
    for line in launch.said.decode().splitlines():
        kind, first, other, text = line.split("\t")
        where = [f"{kernel.places.get(int(at), '?')} (PTX line {at})" for at in (first, other)]
        found = f"{kernel.name}, {' and '.join(dict.fromkeys(where))}: {text}"
        seen.copies.add(found) if kind == "copies" else said.append(found)
    if failed:
        raise Fault(said[-1])
    seen.findings += said
    counts = {name: getattr(launch.counts, name) for name, _ in machine.Counts._fields_}
    seen.launches.append(Ran(kernel.name, tuple(grid), threads, **counts))


def _parameter(bits: int, kind: str, width: int) -> int:
    """A parameter in a register, which may be wider."""
    size = int(kind[1:])
    bits &= (1 << size) - 1
    if kind[0] == "s" and bits >> (size - 1):
        bits -= 1 << size
    return bits & ((1 << 8 * width) - 1)
