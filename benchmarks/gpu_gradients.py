"""Gradients of whole training steps at full size against fp64, in every precision, before anything is timed.

python -m benchmarks.gpu_gradients [--names nanda ...] [--products tf32 ...] [--models 1 256] [--seconds N] [--out FILE]

The kernels' gradients of the first and the last model of an ensemble, parameter by parameter, beside PyTorch's of the
model as anybody writes it, in fp64 and in fp32 with products of the same precision (their operands rounded as the
kernels round them). An error may be twice PyTorch's, by their norms. Weights are random, biases too. Exits with 1 where
one is larger. After `--seconds` none is begun.
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.interleave import free, write
from benchmarks.predict_step import PRECISIONS, configurations
from grokfast import Experiment, backend, checks
from grokfast.training.ensemble import Ensemble

NAMES = ("nanda", "p = 97 MLP", "power")
ALLOWED = 2.0  # times PyTorch's own error
NOISE = 0.02
aten = torch.ops.aten
ROUNDED = {
    "tf32": lambda t: (t.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32),
    "bf16": lambda t: t.bfloat16().float(),
}


class Rounded(TorchDispatchMode):
    """PyTorch's fp32 products, also in a backward pass, of operands of a lower precision."""

    PRODUCTS = (aten.mm, aten.bmm, aten.addmm, aten.baddbmm)

    def __init__(self, precision: str) -> None:
        super().__init__()
        self.rounded = ROUNDED[precision]

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket in self.PRODUCTS and args[-1].dtype == torch.float32:
            args = (*args[:-2], *map(self.rounded, args[-2:]))
        return function(*args, **(kwargs or {}))


def gradients(
    experiments: list[Experiment], models: list[int], flat: Tensor | None, rows: int | None
) -> tuple[Tensor, Ensemble]:
    """Gradients of some models of an ensemble, at its own weights or at `flat` [E, P], on as many rows."""
    ensemble = Ensemble(experiments)
    if flat is not None:
        ensemble.flat.copy_(flat)
    chosen = None
    if rows is not None:  # all over the data
        n = len(ensemble.experiments[0].task.build(seed=experiments[0].seed).train.inputs)
        chosen = (torch.arange(rows) * n // rows).to(ensemble.device).expand(len(experiments), -1).contiguous()
    _, _, grad = ensemble.gradient(chosen)
    grad = grad.sum(0) if grad.ndim == 3 else grad  # in parts, which the optimizer sums
    return grad[models].detach(), ensemble


def check(name: str, products: str, models: int, device: str = "cuda", **changes: Any) -> dict[str, Any]:
    """A row of the table: the largest error of a parameter's gradient, in multiples of PyTorch's own."""
    base = configurations()[name].override({"device": device, **changes})
    rows = base.schedule.batch_size
    ours = [base.override({"seed": seed, "products": products}) for seed in range(models)]
    some = sorted({0, models - 1})
    with torch.no_grad():
        first = Ensemble(ours)
        drawn = torch.randn(first.flat.shape[1], generator=torch.Generator().manual_seed(1)) * NOISE
        flat = first.flat + drawn.to(first.flat.device)
        del first
    grad, ensemble = gradients(ours, some, flat, rows)
    views, layout = ensemble.runs.layout.views(grad), ensemble.runs.layout
    theirs = [base.override({"seed": seed, "engine": "reference", "products": "ieee"}) for seed in some]
    with backend.using("reference"):
        with Rounded(products) if products in ROUNDED else nullcontext():
            torch_grad, _ = gradients(theirs, list(range(len(some))), flat[some], rows)
        double = [one.override({"precision": "float64"}) for one in theirs]
        exact_grad, _ = gradients(double, list(range(len(some))), flat[some].double(), rows)
    of_torch, of_exact = layout.views(torch_grad), layout.views(exact_grad)
    found = {of: _ratio(views[of], of_torch[of], of_exact[of]) for of in views}
    worst = max(found, key=found.__getitem__)
    passed = found[worst] <= ALLOWED and torch.isfinite(grad).all().item()
    title = f"{name}, {products}, {'one model' if models == 1 else f'{models} models'}"
    verdict = "good" if passed else f"WRONG: more than {ALLOWED:g}"
    return {"name": title, "worst": worst, "ratio": round(found[worst], 3), "verdict": verdict}


def _ratio(got: Tensor, by_torch: Tensor, exact: Tensor) -> float:
    """Of the norms of two errors; one unit in the last place is allowed to both. Infinity where it is not a number."""
    one_bit = torch.finfo(got.dtype).eps * exact.norm().item()
    error, yardstick = ((t.double() - exact).norm().item() for t in (got, by_torch))
    return float("inf") if error != error else error / max(yardstick + one_bit / ALLOWED, 1e-300)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", choices=configurations(), default=list(NAMES))
    parser.add_argument("--products", nargs="+", choices=PRECISIONS, default=["tf32", "ieee", "bf16", "tf32x3"])
    parser.add_argument("--models", type=int, nargs="+", default=[1, 256], help="sizes of the ensembles")
    parser.add_argument("--seconds", type=float, default=600, help="begin none after these")
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    args = parser.parse_args()
    for count in args.models:
        checks.integer("--models", count, minimum=1)
    if not torch.cuda.is_available():
        raise SystemExit("needs an NVIDIA GPU and a CUDA build of torch")
    begun, failures = time.monotonic(), 0
    rows: list[dict[str, Any]] = []
    for products in args.products:
        for models in args.models:
            for name in args.names:
                if time.monotonic() - begun > args.seconds:
                    print(f"{name}, {products}, {models}: left out, no time", flush=True)
                    continue
                try:
                    row = check(name, products, models)
                except Exception as error:  # a compiler's, no memory: the others are of interest all the same
                    why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
                    row = {"name": f"{name}, {products}, {models}", "verdict": f"FAILED: {why}"}
                free()
                rows.append(row)
                failures += row["verdict"] != "good"
                print(", ".join(map(str, row.values())), flush=True)
                write("Full-size gradients", {"against fp64": rows}, args.out)
    return int(failures > 0)


if __name__ == "__main__":
    raise SystemExit(main())
