"""Compile every shipped Triton kernel for GPUs that need not be here, and read its registers, spills and shared memory.

python -m benchmarks.resources [--out FILE] [--capability 80 90 100]     # exits with 1 where a kernel spills

TRITON_INTERPRET must not be set: the interpreter takes the compiler's place.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability
from triton.compiler import ASTSource

from benchmarks.interleave import machine

MODULES = (
    "grokfast.optim.kernels",
    "grokfast.ops.mlp.kernels",
    "grokfast.ops.linear_cross_entropy.kernels",
    "grokfast.ops.attention.kernels",
    "grokfast.training.kernels",
    "grokfast.ops.pair_embed.kernels",
    "grokfast.ops.layer_norm.kernels",
    "grokfast.ops.batch.kernels",
    "grokfast.ops.gathered_attention.kernels",
    "grokfast.ops.linear.kernels",
    "grokfast.ops.read_rows.kernels",
    "grokfast.ops.pair_step.launches",
)


def compile_offline(config: dict[str, Any], capability: int) -> dict[str, Any]:
    """A row of the table: what ptxas says of one configuration (keys of `shipped()`) on one compute capability.

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
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(compiled.asm["ptx"])
        file.flush()
        command = [get_ptxas(capability).path, "-v", f"--gpu-name={sm_arch_from_capability(capability)}", file.name]
        said = subprocess.run([*command, "-o", "/dev/null"], capture_output=True, text=True, check=True).stderr
    spills = [int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", said)]
    registers = re.search(r"Used (\d+) registers", said)
    if not spills or registers is None:
        raise RuntimeError(f"ptxas said something unexpected of {config['name']}: {said}")
    return {
        "kernel": config["name"],
        "sm": capability,
        "warps": config["num_warps"],
        "registers": int(registers[1]),
        "spilled_bytes": sum(spills),
        "shared_bytes": compiled.metadata.shared,
        "vector_loads": len(re.findall(r"ld\.global[^;]*v4", compiled.asm["ptx"])),
    }


def _row(module: str, i: int, capability: int) -> dict[str, Any]:
    return compile_offline(importlib.import_module(module).shipped()[i], capability)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the table there as JSON")
    parser.add_argument("--capability", type=int, nargs="+", default=[80, 90, 100])
    args = parser.parse_args()
    places = [
        (name, i, capability)
        for name in MODULES
        for i, config in enumerate(importlib.import_module(name).shipped())
        for capability in args.capability
        if capability in config.get("capabilities", args.capability)
    ]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as workers:
        rows = list(workers.map(_row, *zip(*places), chunksize=4))
    for row in rows:
        print(
            f"sm_{row['sm']:<4} {row['registers']:>4} registers {row['spilled_bytes']:>5} bytes spilled "
            f"{row['shared_bytes']:>7} shared  {row['kernel']}"
        )
    if args.out is not None:
        about = {**machine(), "triton": triton.__version__, "compiled_for": args.capability}
        args.out.write_text(json.dumps({"title": "Kernel resources", "machine": about, "rows": rows}, indent=1) + "\n")
    return int(any(row["spilled_bytes"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
