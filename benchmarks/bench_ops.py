"""Fused operations against eager and compiled PyTorch, forward alone and with backward, for one model and for many.

python -m benchmarks.bench_ops [--seconds N] [--models 1 64 512] [--out FILE]

On a GPU the kernels in every precision, and in the same run the ceilings, a copy and large matrix products; on a CPU
the plain path and one model. FLOPs and bytes are what the operation needs, without what the kernels make anew in the
backward. After `--seconds` no further section is begun.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench_optimizer_gpu import captured, copy_of
from benchmarks.interleave import Contender, interleave, report
from grokfast.bench import CASES, Case

PRECISIONS = ("ieee", "tf32x3", "tf32", "bf16")


def in_tf32(step: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> None:
        torch.set_float32_matmul_precision("high")
        step()
        torch.set_float32_matmul_precision("highest")

    return run


def contenders(case: Case, models: int, backward: bool, on_gpu: bool) -> dict[str, Contender]:
    eager = case.step(case.theirs, backward)
    steps = {"eager": eager}
    if on_gpu:
        if case.has_products:
            steps["eager, tf32"] = in_tf32(eager)
        ours = {name: case.step(step, backward) for name, step in case.variants(PRECISIONS, backend="triton").items()}
        steps |= ours
        if models == 1:
            steps["eager in a CUDA graph"] = captured(eager)
            first = next(iter(ours))
            steps[f"{first}, in a CUDA graph"] = captured(ours[first])
    else:
        steps["grokfast"] = case.step(case.ours, backward)
    if backward:
        mode = "max-autotune" if on_gpu and models == 1 else "default"
        steps[f"torch.compile, {mode}"] = case.step(torch.compile(case.theirs, mode=mode), backward)
    share, repeat = 3 if backward else 1, max(1, 20 // models) if on_gpu else 1
    return {
        name: Contender(step, repeat=repeat, is_on_gpu=on_gpu, flops=share * case.flops, bytes=share * case.bytes)
        for name, step in steps.items()
    }


def ceilings() -> dict[str, Contender]:
    """A copy of 1 GB, and square matrix products."""
    n = 8192
    a, b = (torch.randn(n, n, device="cuda") for _ in range(2))
    c, d = a.bfloat16(), b.bfloat16()
    steps = {"fp32": lambda: a @ b, "tf32": in_tf32(lambda: a @ b), "bf16": lambda: c @ d}
    products = {
        f"{n}³ {name}": Contender(step, repeat=3, is_on_gpu=True, flops=2 * n**3) for name, step in steps.items()
    }
    return {"copy": copy_of(2**27), **products}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    parser.add_argument("--seconds", type=float, default=600)
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--models", type=int, nargs="+", default=[1, 64, 512] if on_gpu else [1])
    args = parser.parse_args()
    deadline = time.monotonic() + args.seconds
    sections = {"ceilings": interleave(ceilings(), baseline="copy", rounds=10)} if on_gpu else {}
    for models in args.models:
        for backward in (True, False):
            for name, make in CASES.items():
                if time.monotonic() > deadline:
                    continue
                rows = contenders(make(models, "cuda" if on_gpu else "cpu"), models, backward, on_gpu)
                what = "forward and backward" if backward else "forward"
                section = f"{name}, {what}, {models} model{'s' if models > 1 else ''}"
                sections[section] = interleave(rows, baseline="eager", rounds=15)
                del rows
                gc.collect()
                if on_gpu:
                    torch.cuda.empty_cache()
    report("Fused operations", sections, args.out)


if __name__ == "__main__":
    main()
