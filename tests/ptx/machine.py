"""machine.cpp, built once for each state of its sources, and what it shares with Python."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from benchmarks.folder import folder

LANES = 32
HERE = Path(__file__).parent
FLAGS = ["-std=c++20", "-O2", "-march=native", "-ffp-contract=off", "-shared", "-fPIC"]


class Instruction(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("op", "guard", "negated", "first", "n", "size", "count", "width")),
        ("offset", ctypes.c_int64), ("line", ctypes.c_int32), ("flops", ctypes.c_int32),
    ]  # fmt: skip


class Constant(ctypes.Structure):
    _fields_ = [("slot", ctypes.c_int32), ("width", ctypes.c_int32), ("value", ctypes.c_uint64)]


class Counts(ctypes.Structure):
    """Of a launch: instructions of warps; bytes of global memory, those that several lanes ask for once; barriers;
    fp32 operations outside of matrix products, and in them; bytes of shared memory, 128 for each turn that it takes."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in ("instructions", "loaded", "stored", "barriers", "flops", "mma_flops", "shared")
    ]


class Launch(ctypes.Structure):
    _fields_ = [
        ("grid", ctypes.c_int32 * 3),
        *((name, ctypes.c_int32) for name in (
            "threads", "file_bytes", "shared_bytes", "n_code", "n_constants", "n_regions", "shift", "only_counts",
        )),
        ("seed", ctypes.c_uint64), ("code", ctypes.POINTER(Instruction)), ("operands", ctypes.POINTER(ctypes.c_int32)),
        ("constants", ctypes.POINTER(Constant)), ("regions", ctypes.POINTER(ctypes.c_uint64)), ("counts", Counts),
        ("said", ctypes.c_char * 4096),
    ]  # fmt: skip


def why_not() -> str:
    """Why the machine cannot be built here; empty where it can."""
    compiler = _compiler()
    if compiler is None:
        return "no C++ compiler"
    command = [compiler, "-std=c++20", "-fsyntax-only", "-xc++", "-"]
    program = "#include <bit>\ntemplate <auto F> int f() { return F(); }\nint x = f<([] { return 1; })>();\n"
    ran = subprocess.run(command, input=program, capture_output=True, text=True, check=False)
    return "" if ran.returncode == 0 else f"{compiler} does not know C++20"


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++"))


@functools.cache
def machine() -> ctypes.CDLL:
    """The library, from `folder` where it was built before."""
    sources = sorted(HERE.glob("*.cpp"))
    texts = [path.read_bytes() for path in [*sources, HERE / "machine.h"]]
    state = hashlib.sha256(b"".join([*texts, " ".join(FLAGS).encode()])).hexdigest()[:16]
    built = folder() / f"machine-{state}.so"
    if not built.exists():
        new = built.with_suffix(f".{os.getpid()}")
        subprocess.run([_compiler(), *FLAGS, *map(str, sources), "-o", str(new)], check=True)
        new.replace(built)
    library = ctypes.CDLL(str(built))
    library.name_of.restype = ctypes.c_char_p
    return library


@functools.cache
def operations() -> dict[str, tuple[int, tuple[int, ...]]]:
    """By name: number and the bytes of the operands, where these are always the same."""
    library = machine()
    return {
        library.name_of(op).decode(): (op, tuple(library.width_of(op, i) for i in range(library.n_widths(op))))
        for op in range(library.n_operations())
    }
