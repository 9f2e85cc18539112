"""Fused operations against eager and compiled PyTorch, forward alone and with backward, for one model and for many.

python -m benchmarks.bench_ops [--seconds N] [--models 1 64 512] [--out FILE]

On a GPU the kernels in every precision, and in the same run the ceilings, a copy and large matrix products; on a CPU
the plain path and one model. FLOPs and bytes are what the operation needs, without what the kernels make anew in the
backward. After `--seconds` no further section is begun.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench_optimizer_gpu import captured, copy_of
from benchmarks.interleave import Contender, compare, free, report, write
from grokfast.bench import CASES, Case

TITLE = "Fused operations"
PRECISIONS = ("ieee", "tf32x3", "tf32", "bf16")


def in_tf32(step: Callable[[], Any]) -> Callable[[], Any]:
    """`step` with torch's products of fp32 tensors in tf32; also of what makes, compiles or captures one."""

    def run() -> Any:
        torch.set_float32_matmul_precision("high")
        try:
            return step()
        finally:
            torch.set_float32_matmul_precision("highest")

    return run


def contenders(case: Case, models: int, backward: bool, on_gpu: bool) -> dict[str, Callable[[], Contender]]:
    """The first is the baseline."""
    share, repeat = 3 if backward else 1, max(1, 20 // models) if on_gpu else 1

    def contender(step: Callable[[], Any]) -> Contender:
        return Contender(step, repeat=repeat, is_on_gpu=on_gpu, flops=share * case.flops, bytes=share * case.bytes)

    def eager() -> Callable[[], Any]:
        return case.step(case.theirs, backward)

    makers = {"eager": lambda: contender(eager())}
    if on_gpu:
        if case.has_products:
            makers["eager, tf32"] = lambda: contender(in_tf32(eager()))
        ours = case.variants(PRECISIONS, backend="triton")
        for name, function in ours.items():
            makers[name] = lambda function=function: contender(case.step(function, backward))  # type: ignore[misc]
        if models == 1:
            first, function = next(iter(ours.items()))
            makers["eager in a CUDA graph"] = lambda: contender(captured(eager()))
            makers[f"{first}, in a CUDA graph"] = lambda: contender(captured(case.step(function, backward)))
    else:
        makers["grokfast"] = lambda: contender(case.step(case.ours, backward))
        if backward:
            makers["torch.compile, default"] = lambda: contender(case.step(torch.compile(case.theirs), backward))
    return makers


def compiled(case: Case) -> dict[str, Callable[[], Contender]]:
    """One model forward and backward, with what takes a minute to compile."""

    def compile_it() -> Contender:
        function = torch.compile(case.theirs, mode="max-autotune")
        return Contender(case.step(function, True), repeat=20, is_on_gpu=True, flops=3 * case.flops)

    some = contenders(case, 1, True, True)
    kept = {name: make for name, make in some.items() if name == "eager" or name.startswith("grokfast")}
    return {**kept, "torch.compile, max-autotune": compile_it}


def ceilings() -> dict[str, Callable[[], Contender]]:
    """A copy of 1 GB, and square matrix products."""
    n = 8192
    a, b = (torch.randn(n, n, device="cuda") for _ in range(2))
    c, d = a.bfloat16(), b.bfloat16()
    steps = {"fp32": lambda: a @ b, "tf32": in_tf32(lambda: a @ b), "bf16": lambda: c @ d}

    def product(step: Callable[[], Any]) -> Contender:
        return Contender(step, repeat=3, is_on_gpu=True, flops=2 * n**3)

    return {"copy": lambda: copy_of(2**27), **{f"{n}³ {name}": partial(product, step) for name, step in steps.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    parser.add_argument("--seconds", type=float, default=600)
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--models", type=int, nargs="+", default=[1, 64, 512] if on_gpu else [1])
    args = parser.parse_args()
    deadline = time.monotonic() + args.seconds
    device = "cuda" if on_gpu else "cpu"
    sections = {"ceilings": compare(ceilings(), rounds=10)} if on_gpu else {}
    plan: list[tuple[str, Callable[[], dict[str, Callable[[], Contender]]]]] = []
    for models, backward, (name, make) in itertools.product(args.models, (True, False), CASES.items()):
        what = "forward and backward" if backward else "forward"
        section = f"{name}, {what}, {models} model{'s' if models > 1 else ''}"
        plan.append((section, partial(_contenders, make, models, device, backward)))
    if on_gpu:
        plan += [(f"{name}, compiled", partial(_compiled, make)) for name, make in CASES.items()]
    for section, makers in plan:
        if time.monotonic() > deadline:
            print(f"{section}: left out, no time", flush=True)
            continue
        sections[section] = compare(makers(), rounds=15)
        write(TITLE, sections, args.out)
        free()
    report(TITLE, sections, args.out)


def _contenders(
    make: Callable[[int, str], Case], models: int, device: str, backward: bool
) -> dict[str, Callable[[], Contender]]:
    return contenders(make(models, device), models, backward, device == "cuda")


def _compiled(make: Callable[[int, str], Case]) -> dict[str, Callable[[], Contender]]:
    return compiled(make(1, "cuda"))


if __name__ == "__main__":
    main()
