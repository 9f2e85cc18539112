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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.bench_optimizer_gpu import captured, copy_of
from benchmarks.interleave import Contender, interleave, report
from grokfast import ops

ROWS, WIDTH, HIDDEN, CLASSES, HEADS, LENGTH = 3830, 128, 512, 113, 4, 3  # the recipe of Nanda et al.
PRECISIONS = ("ieee", "tf32x3", "tf32", "bf16")


@dataclass
class Case:
    """An operation on E models: its inputs, ours, PyTorch's, and what a forward has to compute and move."""

    tensors: list[Tensor]
    ours: Callable[..., Tensor]
    theirs: Callable[..., Tensor]
    flops: int
    bytes: int


def random(*shape: int, device: str, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(shape, device=device)).requires_grad_()


def mlp(models: int, device: str) -> Case:
    tensors = [
        random(models, ROWS, WIDTH, device=device),
        random(models, HIDDEN, WIDTH, device=device, scale=WIDTH**-0.5),
        random(models, HIDDEN, device=device),
        random(models, WIDTH, HIDDEN, device=device, scale=HIDDEN**-0.5),
        random(models, WIDTH, device=device),
    ]

    def theirs(x: Tensor, w_in: Tensor, b_in: Tensor, w_out: Tensor, b_out: Tensor) -> Tensor:
        h = torch.baddbmm(b_in.unsqueeze(1), x, w_in.mT).relu()
        return torch.baddbmm(b_out.unsqueeze(1), h, w_out.mT)

    flops = 4 * models * ROWS * WIDTH * HIDDEN
    return Case(tensors, ops.mlp, theirs, flops, 8 * models * WIDTH * (ROWS + HIDDEN))


def attention(models: int, device: str) -> Case:
    shape = models * ROWS, HEADS, LENGTH, WIDTH // HEADS
    theirs = partial(F.scaled_dot_product_attention, is_causal=True)
    tensors = [random(*shape, device=device) for _ in range(3)]
    numbers = tensors[0].numel()
    return Case(tensors, ops.attention, theirs, 4 * LENGTH * numbers, 4 * 4 * numbers)


def linear_cross_entropy(models: int, device: str) -> Case:
    tensors = [random(models, ROWS, WIDTH, device=device), random(models, CLASSES, WIDTH, device=device, scale=0.1)]
    target = torch.randint(CLASSES, (models, ROWS), device=device)

    def theirs(x: Tensor, weight: Tensor) -> Tensor:
        logits = torch.bmm(x, weight.mT)
        rows = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
        return rows.view(target.shape).mean(1)

    def ours(x: Tensor, weight: Tensor, **options: Any) -> Tensor:
        return ops.linear_cross_entropy(x, weight, target, **options)

    return Case(tensors, ours, theirs, 2 * tensors[0].numel() * CLASSES, 4 * models * WIDTH * (ROWS + CLASSES))


CASES = {"mlp": mlp, "attention": attention, "linear_cross_entropy": linear_cross_entropy}


def stepper(case: Case, function: Callable[..., Tensor], backward: bool) -> Callable[[], Any]:
    if not backward:
        inputs = [t.detach() for t in case.tensors]
        return lambda: function(*inputs)
    grad = torch.randn_like(function(*case.tensors))
    return lambda: torch.autograd.grad(function(*case.tensors), case.tensors, grad)


def in_tf32(step: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> None:
        torch.set_float32_matmul_precision("high")
        step()
        torch.set_float32_matmul_precision("highest")

    return run


def contenders(case: Case, models: int, backward: bool, on_gpu: bool) -> dict[str, Contender]:
    eager = stepper(case, case.theirs, backward)
    steps = {"eager": eager}
    if on_gpu:
        steps["eager, tf32"] = in_tf32(eager)
        for precision in PRECISIONS:
            ours = partial(case.ours, precision=precision, backend="triton")
            steps[f"grokfast, {precision}"] = stepper(case, ours, backward)
        if models == 1:
            steps["eager in a CUDA graph"] = captured(eager)
            steps["grokfast, ieee, in a CUDA graph"] = captured(steps["grokfast, ieee"])
    else:
        steps["grokfast"] = stepper(case, case.ours, backward)
    if backward:
        mode = "max-autotune" if on_gpu and models == 1 else "default"
        steps[f"torch.compile, {mode}"] = stepper(case, torch.compile(case.theirs, mode=mode), backward)
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
