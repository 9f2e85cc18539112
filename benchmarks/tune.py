"""Find the fastest tiles of the fused operations' kernels on this GPU, and write them into their table.

python -m benchmarks.tune [--op mlp attention ...] [--models 64] [--seconds N] [--out FILE]

From an operation's own choice one thing is changed at a time, as long as that gains. A tile counts only if its results
are as good as PyTorch's at the same precision (error against fp64 at most twice torch's, of gradients three times), and
no register is spilled. A tile is the same for any number of models, whose sums would otherwise have another order: the
last of `--models` decides. The table is written after every kernel; after `--seconds` no further tile is tried.
Without a GPU: exit code 1.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from triton.runtime.jit import JITFunction

from benchmarks.interleave import machine
from grokfast import ops
from grokfast.ops import configurations

Tile = dict[str, int]
Shape = tuple[int, ...]
Made = tuple[Callable[..., Tensor], list[Tensor]]  # an operation and its tensors
Timer = Callable[[Callable[[], Any], Tile], float]

ROWS, TOKENS = 3830, 113  # of Nanda et al.'s recipe (arXiv 2301.05217)
WORTHWHILE = 0.97  # of the time before, or it stays as it is
PRECISIONS = [
    ("ieee", "float32"),
    ("tf32x3", "float32"),
    ("tf32", "float32"),
    ("bf16", "float32"),
    ("bf16", "bfloat16"),
]


@dataclass
class Operation:
    """Shapes to tune for, what makes its tensors, the kernels' sizes that may change and the least of them.

    `gradients`: which tensors' gradients each backward kernel makes.
    """

    make: Callable[..., Made]
    shapes: list[Shape]
    sizes: tuple[str, ...]
    gradients: list[tuple[int, ...]]
    least: int = 16
    has_products: bool = True


def _draw(device: str, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Normal numbers, those of matrices [..., out, in] over √in."""
    return [torch.randn(s, device=device) * (s[-1] ** -0.5 if i else 1) for i, s in enumerate(shapes)]


def mlp(shape: Shape, models: int, rows: int, device: str) -> Made:
    d_in, hidden, d_out = shape
    shapes = (models, rows, d_in), (models, hidden, d_in), (models, hidden), (models, d_out, hidden), (models, d_out)
    return partial(ops.mlp, activation="relu"), _draw(device, *shapes)


def attention(shape: Shape, models: int, rows: int, device: str) -> Made:
    q, k, v = (torch.randn(models * rows, 4, *shape, device=device) for _ in range(3))
    return ops.attention, [q, k, v]


def linear_cross_entropy(shape: Shape, models: int, rows: int, device: str) -> Made:
    d, classes = shape
    target = torch.randint(classes, (models, rows), device=device)

    def run(x: Tensor, weight: Tensor, **options: Any) -> Tensor:
        return ops.linear_cross_entropy(x, weight, target, reduction="none", **options)

    return run, _draw(device, (models, rows, d), (models, classes, d))


def pair_embed(shape: Shape, models: int, rows: int, device: str) -> Made:
    index = ops.PairIndex(torch.randint(TOKENS, (1, rows, 2), device=device).expand(models, -1, -1), TOKENS, TOKENS)

    def run(w_a: Tensor, w_b: Tensor, bias: Tensor, **options: Any) -> Tensor:
        return ops.pair_embed(w_a, w_b, index, bias, activation="relu", **options)

    return run, _draw(device, (models, TOKENS, *shape), (models, TOKENS, *shape), (models, *shape))


def layer_norm(shape: Shape, models: int, rows: int, device: str) -> Made:
    return ops.layer_norm, _draw(device, (models, rows, *shape), (models, *shape), (models, *shape))


OPERATIONS = {
    "mlp": Operation(mlp, [(128, 512, 128), (256, 1024, 256)], ("BM", "BH", "BK", "BD"), [(0,), (1,), (3,)]),
    "attention": Operation(attention, [(3, 32), (5, 32), (32, 32)], ("BR", "BK"), [(0, 1, 2)]),
    "linear_cross_entropy": Operation(linear_cross_entropy, [(128, 113)], ("BM", "BV", "BK", "BD"), [(0,), (1,)]),
    "pair_embed": Operation(pair_embed, [(128,), (512,)], ("BM", "BH"), [(0, 1, 2)], 1, False),
    "layer_norm": Operation(layer_norm, [(128,), (512,)], ("BM",), [(0, 1, 2)], 1, False),
}


@dataclass
class Problem:
    """`run` makes a kernel's results with the tiles on trial, torch `by_torch` and, in fp64, `exact`."""

    operation: Operation
    run: Callable[[], Sequence[Tensor]]
    by_torch: list[Tensor]
    exact: list[Tensor]
    factor: int  # of torch's error


class _Asked(dict[str, Tile]):
    """A table that notes what is looked up, and has nothing of it."""

    def get(self, name: str, own: Any = None) -> Any:
        self[name] = own
        return own

    def __bool__(self) -> bool:
        return True


def own_tiles(problem: Problem) -> dict[str, Tile]:
    """The keys that a problem looks up, with the operation's own choices."""
    asked = _Asked()
    with configurations.trying(asked):
        problem.run()
    return dict(asked)


def neighbours(tile: Tile, operation: Operation) -> Iterator[Tile]:
    """Tiles that differ in one thing: size or warps halved or doubled, a stage more or less, no register limit."""
    for name in operation.sizes:
        for size in (tile[name] // 2, tile[name] * 2) if name in tile else ():
            least = max(operation.least, tile["TP"]) if name == "BR" else operation.least
            if least <= size <= 128:
                yield {**tile, name: size}
    for warps in (tile["num_warps"] // 2, tile["num_warps"] * 2):
        if 1 <= warps <= 16:
            yield {**tile, "num_warps": warps}
    stages = tile.get("num_stages", 2)
    for other in (stages - 1, stages + 1):
        if 1 <= other <= 4:
            yield {**tile, "num_stages": other}
    if "maxnreg" in tile:
        yield {name: value for name, value in tile.items() if name != "maxnreg"}


def is_as_good(results: Sequence[Tensor], problem: Problem) -> bool:
    """Whether no error is beyond `factor` times torch's largest and one unit of the largest value's last place."""
    for one, two, truth in zip(results, problem.by_torch, problem.exact, strict=True):
        error, yardstick = ((t.double() - truth).abs().max().item() for t in (one, two))
        if not error <= problem.factor * yardstick + torch.finfo(one.dtype).eps * truth.abs().max().item():
            return False
    return True


@contextmanager
def launched() -> Iterator[list[Any]]:
    """The compiled kernels that are launched in a block of code."""
    compiled: list[Any] = []
    run = JITFunction.run

    def noted(*args: Any, **kwargs: Any) -> Any:
        compiled.append(run(*args, **kwargs))
        return compiled[-1]

    JITFunction.run = noted
    try:
        yield compiled
    finally:
        JITFunction.run = run


def seconds_of(problem: Problem, name: str, tile: Tile, timer: Timer) -> float | None:
    """How long it takes; None where the tile cannot be had, spills or is wrong. Memory is filled with NaN."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with configurations.trying({name: tile}), launched() as compiled:
        try:
            torch.use_deterministic_algorithms(True, warn_only=True)
            results = problem.run()
            if any(getattr(kernel, "n_spills", 0) for kernel in compiled):
                return None
        except Exception:  # Triton has many: out of resources, a compiler that gives up, ...
            return None
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        return timer(problem.run, tile) if is_as_good(results, problem) else None


@dataclass
class Found:
    """The fastest tile, its time and that of the operation's own choice (None: not to be had), and what was tried."""

    tile: Tile
    seconds: float | None
    own_seconds: float | None
    tried: list[Tile] = field(default_factory=list)

    @property
    def is_worthwhile(self) -> bool:
        """Faster than the own choice, by more than chance may do."""
        return self.seconds is not None and (self.own_seconds is None or self.seconds < WORTHWHILE * self.own_seconds)


def tune(problem: Problem, name: str, own: Tile, timer: Timer, deadline: float = math.inf) -> Found:
    """From `own`, the fastest of the neighbours, and on from there, until none is worthwhile or time is over."""
    own_seconds = seconds_of(problem, name, own, timer)
    found = Found(own, own_seconds, own_seconds, [own])
    while True:
        times: list[tuple[float, Tile]] = []
        for tile in neighbours(found.tile, problem.operation):
            if tile not in found.tried and time.monotonic() < deadline:
                found.tried.append(tile)
                seconds = seconds_of(problem, name, tile, timer)
                times += [] if seconds is None else [(seconds, tile)]
        best = min(times, key=lambda pair: pair[0], default=None)
        if best is None or (found.seconds is not None and best[0] >= WORTHWHILE * found.seconds):
            return found
        found.seconds, found.tile = best


def problems(
    operation: Operation, shape: Shape, models: int, rows: int, precision: str, dtype: str, device: str
) -> Iterator[Problem]:
    """The forward kernel, then each backward one."""
    torch.manual_seed(0)
    function, drawn = operation.make(shape, models, rows, device)
    drawn = [t.to(getattr(torch, dtype)) for t in drawn]
    options = {"precision": precision} if operation.has_products else {}
    grad: Tensor | None = None
    for which in [(), *operation.gradients]:
        tensors = [t.detach().requires_grad_(i in which) for i, t in enumerate(drawn)]
        exact_tensors = [t.detach().double().requires_grad_(i in which) for i, t in enumerate(drawn)]
        with in_precision(precision):
            by_torch = function(*tensors, backend="reference", **options)
            exact = function(*exact_tensors, backend="reference", **options)
            if not which:
                forward = partial(function, *tensors, backend="triton", **options)
                grad = torch.randn_like(by_torch)
                yield Problem(operation, lambda run=forward: [run()], [by_torch], [exact], factor=2)
                continue
            of_torch = torch.autograd.grad(by_torch, [tensors[i] for i in which], grad)
        of_exact = torch.autograd.grad(exact, [exact_tensors[i] for i in which], grad.double())
        out, wanted = function(*tensors, backend="triton", **options), [tensors[i] for i in which]
        backward = partial(torch.autograd.grad, out, wanted, grad.to(out.dtype), retain_graph=True)
        yield Problem(operation, backward, list(of_torch), list(of_exact), factor=3)


@contextmanager
def in_precision(name: str) -> Iterator[None]:
    """torch's own products in tf32 in a block, where that is the precision."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if name == "tf32" else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def write(path: Path, gpu: str, name: str, found: Found) -> None:
    """Put a tile into the table, or take it out where the operation's own choice is as fast."""
    table = json.loads(path.read_text()) if path.exists() else {"about": {}, "tiles": {}}
    tiles = table["tiles"].setdefault(gpu, {})
    tiles.pop(name, None)
    if found.is_worthwhile:
        tiles[name] = found.tile
    table["tiles"][gpu] = dict(sorted(tiles.items()))
    table["about"][gpu] = machine()
    path.write_text(json.dumps(table, indent=1) + "\n")


def on_gpu(step: Callable[[], Any], tile: Tile) -> float:
    import triton

    return triton.testing.do_bench(step, warmup=5, rep=20, return_mode="median") / 1e3


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", nargs="+", choices=OPERATIONS, default=list(OPERATIONS))
    parser.add_argument("--models", type=int, nargs="+", default=[64])
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--out", type=Path, default=configurations.PATH)
    args = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("needs an NVIDIA GPU and a CUDA build of torch")
        return 1
    gpu = "sm_{}{}".format(*torch.cuda.get_device_capability())
    tune_all(args.op, args.models, ROWS, args.seconds, args.out, gpu, "cuda", on_gpu)
    return 0


def tune_all(
    names: Sequence[str],
    models: Sequence[int],
    rows: int,
    seconds: float,
    out: Path,
    gpu: str,
    device: str,
    timer: Timer,
) -> None:
    """Every kernel of the operations at their shapes and precisions; what is found goes into the table at `out`."""
    deadline = time.monotonic() + seconds
    for op in names:
        operation = OPERATIONS[op]
        kinds = PRECISIONS if operation.has_products else [PRECISIONS[0], PRECISIONS[-1]]
        for shape, n_models, (precision, dtype) in itertools.product(operation.shapes, models, kinds):
            try:
                for problem in problems(operation, shape, n_models, rows, precision, dtype, device):
                    for name, own in own_tiles(problem).items():
                        if time.monotonic() > deadline:
                            return
                        found = tune(problem, name, own, timer, deadline)
                        write(out, gpu, name, found)
                        print(f"{name}: {_said(found)}", flush=True)
            except torch.cuda.OutOfMemoryError:
                print(f"{op} {shape}, {n_models} models: too large for this GPU", flush=True)


def _said(found: Found) -> str:
    own, best = ("not to be had" if t is None else f"{1e6 * t:.1f} µs" for t in (found.own_seconds, found.seconds))
    return f"own choice {own}, of {len(found.tried)} the fastest {best}: {found.tile}"


if __name__ == "__main__":
    sys.exit(main())
