"""Compile every shipped Triton kernel for GPUs that need not be here, and read its registers, spills and shared memory.

python -m benchmarks.resources [--out FILE] [--capability 80 90 100] [--also 86 89 120] [--known FILE] [--as-triton]

Exits with 1 where a kernel spills 100 bytes or needs more shared memory than a program may have; warns where one spills
less, as one version of Triton may and another not. For the GPUs of `--also`, which have the least of that memory, only
those kernels that need most of it are compiled. --known takes from an earlier table of the same Triton what is
unchanged since, with everything that it is compiled from, and had at most 240 registers of 255 there. --as-triton gives
ptxas the option that some versions of Triton (3.7) give it against a fault of ptxas, which changes the registers of a
few kernels. TRITON_INTERPRET must not be set: the interpreter takes the compiler's place.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import itertools
import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import compiler as nvidia_compiler
from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from benchmarks.folder import folder
from benchmarks.interleave import machine
from benchmarks.prediction.shipped import shipped
from grokfast.ops.configurations import LEAST_SHARED_BYTES, SHARED_BYTES

HUNGRIEST = 3
FAR = 240  # registers, of 255
MANY = 100  # bytes that a kernel spills and loads again
ALLOCATION = "--regAllocOptLevel=2"
TRITONS_OPTIONS = [ALLOCATION] if ALLOCATION in inspect.getsource(nvidia_compiler) else []


def compile_offline(config: dict[str, Any], capability: int) -> Any:
    """One configuration (keys of `shipped()`) as Triton compiles it to PTX for one compute capability.

    As at a launch, pointers and the numbers in "aligned" are multiples of 16, and those in "ones" are known to be 1.
    A configuration with "capabilities" is launched on those only.
    """
    kernel, constants = config["kernel"], config["constants"] | dict.fromkeys(config.get("ones", []), 1)
    signature = {**config["signature"], **dict.fromkeys(constants, "constexpr")}
    aligned = [name for name, kind in config["signature"].items() if kind.startswith("*")] + config.get("aligned", [])
    attrs = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    options = {"num_warps": config["num_warps"], "num_stages": config.get("num_stages", 2), "enable_fp_fusion": True}
    options |= {"maxnreg": config["maxnreg"]} if "maxnreg" in config else {}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attrs)
    with no_machine_code():
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@contextmanager
def no_machine_code() -> Iterator[None]:
    """Triton stops at PTX, and keeps what it made in a folder of its own."""
    with mock.patch.object(nvidia_compiler.CUDABackend, "make_cubin", return_value=b""), triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(folder() / "triton")
        yield


def resources(compiled: Any, capability: int, ptxas_options: Sequence[str] = ()) -> dict[str, Any]:
    """What ptxas says of a compiled kernel: registers, bytes spilled and shared, and the loads of 16 bytes."""
    registers, spilled = assemble(get_ptxas(capability).path, compiled.asm["ptx"], capability, ptxas_options)
    return {
        "registers": registers,
        "spilled_bytes": spilled,
        "shared_bytes": compiled.metadata.shared,
        "shared_limit": SHARED_BYTES.get(capability, LEAST_SHARED_BYTES),
        "vector_loads": len(re.findall(r"ld\.global[^;]*v4", compiled.asm["ptx"])),
    }


def assemble(ptxas: str, text: str, capability: int, options: Sequence[str] = ()) -> tuple[int, int]:
    """Registers of a thread, and bytes that it spills and loads again, of a kernel in PTX."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(text)
        file.flush()
        command = [ptxas, "-v", f"--gpu-name={sm_arch_from_capability(capability)}", file.name, *options]
        said = subprocess.run([*command, "-o", "/dev/null"], capture_output=True, text=True, check=False).stderr
    spills = [int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", said)]
    registers = re.search(r"Used (\d+) registers", said)
    if not spills or registers is None:
        raise RuntimeError(f"{ptxas} said something unexpected: {said}")
    return int(registers[1]), sum(spills)


def _row(ptxas_options: Sequence[str], i: int, capability: int) -> dict[str, Any]:
    """Of the table."""
    config = shipped()[i]
    about = {"kernel": config["name"], "from": fingerprint(config), "sm": capability, "warps": config["num_warps"]}
    return {**about, **resources(compile_offline(config, capability), capability, ptxas_options)}


def fingerprint(config: dict[str, Any]) -> str:
    """Of all that a configuration is compiled from, source code included.

    Triton's own keys depend on more: the line at which a kernel begins, and what was looked at before it.
    """
    facts = {name: value for name, value in config.items() if name not in ("name", "kernel")}
    written: set[str] = set()
    _read(config["kernel"], written)
    return hashlib.sha256(repr((sorted(written), sorted(facts.items()))).encode()).hexdigest()[:16]


def _read(kernel: JITFunction, written: set[str]) -> None:
    """Add a kernel's source, that of all it calls, and the constants of the modules that they use."""
    if kernel.src in written:
        return
    written.add(kernel.src)
    own = [vars(value) for value in kernel.__globals__.values() if isinstance(value, ModuleType)]
    places = [kernel.__globals__, *(names for names in own if names["__name__"].startswith("grokfast"))]
    for name, place in itertools.product(kernel.fn.__code__.co_names, places):
        value = place.get(name)
        if isinstance(value, JITFunction):
            _read(value, written)
        elif isinstance(value, (tl.constexpr, int, float, str)):
            written.add(f"{name} = {value!r}")


def _known(table: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Rows of a table that are far from spilling, by what they were compiled from, and for what."""
    content = json.loads(table.read_text())
    rows = content["rows"] if content["machine"]["triton"] == triton.__version__ else []
    return {(row.get("from"), row["sm"]): row for row in rows if row["registers"] <= FAR and not row["spilled_bytes"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the table there as JSON")
    parser.add_argument("--capability", type=int, nargs="+", default=[80, 90, 100])
    parser.add_argument("--also", type=int, nargs="*", default=[86, 89, 120])
    parser.add_argument("--known", type=Path, help="a table that this made before")
    parser.add_argument("--as-triton", action="store_true", help="with what Triton has ptxas do beside")
    args = parser.parse_args()
    compiled = partial(_row, TRITONS_OPTIONS if args.as_triton else [])
    configs = shipped()
    places = [
        (i, capability)
        for capability in args.capability
        for i, config in enumerate(configs)
        if capability in config.get("capabilities", args.capability)
    ]
    known = {} if args.known is None else _known(args.known)
    rows_of = {(i, capability): known.get((fingerprint(configs[i]), capability)) for i, capability in places}
    unknown = [place for place, row in rows_of.items() if row is None]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as workers:
        if unknown:
            rows_of |= zip(unknown, workers.map(compiled, *zip(*unknown), chunksize=4))
        rows = [row for row in rows_of.values() if row is not None]
        # Where less memory is shared, those are in danger that need most of it elsewhere.
        everywhere = [
            (row["shared_bytes"], i)
            for row, (i, capability) in zip(rows, places)
            if capability == args.capability[0] and "capabilities" not in configs[i]
        ]
        few = [(i, capability) for capability in args.also for _, i in sorted(everywhere)[-HUNGRIEST:]]
        rows += workers.map(compiled, *zip(*few)) if few else []
    for row in rows:
        print(
            f"sm_{row['sm']:<4} {row['registers']:>4} registers {row['spilled_bytes']:>5} bytes spilled "
            f"{row['shared_bytes']:>7} shared  {row['kernel']}"
        )
    if args.out is not None:
        about = {**machine(), "triton": triton.__version__, "compiled_for": args.capability + args.also}
        args.out.write_text(json.dumps({"title": "Kernel resources", "machine": about, "rows": rows}, indent=1) + "\n")
    for row in rows:
        if row["spilled_bytes"]:
            spilled = f"{row['spilled_bytes']} bytes on sm_{row['sm']}"
            print(f"Warning: Triton {triton.__version__} spills {spilled}: {row['kernel']}")
    return int(any(row["spilled_bytes"] >= MANY or row["shared_bytes"] > row["shared_limit"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
