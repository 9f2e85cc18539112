"""Where a training step's time goes on a CPU: each call's share, and what its products reach of the measured peak.

python -m benchmarks.step_parts [--recipes nanda,prieto,...] [--steps 40] [--out FILE]

In one run, in turns: the step, untouched; the step with a clock around every call of the extension and of torch's
products; torch's product of two 1,024 x 1,024 matrices, which is the peak; and a copy of 64 MB, the bandwidth.
Operations are counted from what a call was given, those with a relu's hidden layer only where it is not zero, except in
`mlp_rows` and `pair_rows`: these count as dense, and can so exceed the peak. "at least" is what the counted products
take at the peak, "the rest" is Python, torch's other operations, and gaps.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.bench_training import recipe
from benchmarks.interleave import write
from grokfast import backend
from grokfast.training.ensemble import Ensemble
from grokfast.training.memory import keep_freed_memory

RECIPES = "nanda,power,grokfast,multihop,quick,s5,a5,gromov,prieto,digits,parity,quick-tokens"
Parts = dict[str, list[float]]  # seconds and operations of a step, by call


def active_forward(hidden: Tensor, weights: Tensor, *_: Any) -> int:
    return 2 * int(hidden.count_nonzero()) * weights.shape[1]


def active_backward(hidden: Tensor, grad: Tensor, weights: Tensor, x: Tensor | None, *_: Any) -> int:
    return 2 * int(hidden.count_nonzero()) * (2 * grad.shape[1] + (0 if x is None else x.shape[1]))


def folded_rows_forward(*given: Any) -> int:
    to_logits, hidden = given[7:9]
    return active_forward(hidden, to_logits)


def folded_rows_backward(*given: Any) -> int:
    hidden, to_logits, grad = given[10:13]
    return active_backward(hidden, grad, to_logits, None)


def pair_rows(w_a: Tensor, w_b: Tensor, b_in: Any, weight: Tensor, bias: Any, a: Tensor, *_: Any) -> int:
    return 3 * 2 * len(a) * weight.numel()


def mlp_rows(features: Tensor | None, index: Any, target: Tensor, weights: list[Tensor], *_: Any) -> int:
    """Three products of every layer; of a first one by tables none, of one of features no gradient of its input."""
    sizes = [weight.numel() for weight in weights]
    return 2 * len(target) * (3 * sum(sizes[1:]) + (0 if features is None else 2 * sizes[0]))


def linear(x: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    return 2 * x.numel() * len(weight)


COUNTED: dict[str, Callable[..., int]] = {
    own.__name__: own
    for own in (active_forward, active_backward, folded_rows_forward, folded_rows_backward, pair_rows, mlp_rows)
}


class Clock(TorchDispatchMode):
    """Times torch's products into `parts`."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.parts = parts

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        is_linear = func.overloadpacket is torch.ops.mkldnn._linear_pointwise
        counted = linear if is_linear else flop_registry.get(func.overloadpacket)
        if counted is None:
            return func(*args, **kwargs)
        began = time.perf_counter()
        out = func(*args, **kwargs)
        self.parts["torch's products"][0] += time.perf_counter() - began
        self.parts["torch's products"][1] += counted(*args, **kwargs, out_val=out)
        return out


@contextmanager
def clocks(parts: Parts) -> Iterator[None]:
    """A clock around every function of the extension, and around torch's products."""
    extension = backend.load_extension()
    functions = {
        name: own for name in dir(extension) if callable(own := getattr(extension, name)) and not name.startswith("_")
    }

    def timed(name: str, *args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        out = functions[name](*args, **kwargs)
        parts[name][0] += time.perf_counter() - began
        if name in COUNTED:
            parts[name][1] += COUNTED[name](*args)
        return out

    for name in functions:
        setattr(extension, name, partial(timed, name))
    try:
        with Clock(parts):
            yield
    finally:
        for name, own in functions.items():
            setattr(extension, name, own)


def seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def parts_of(name: str, steps: int) -> list[dict[str, Any]]:
    """A row for the step, with the peak in GFLOP/s and the bandwidth in GB/s, and one for each call; medians."""
    with backend.using("auto"):
        ensemble = Ensemble([recipe(name)])
    square, out, much = torch.randn(1024, 1024), torch.empty(1024, 1024), torch.zeros(16 << 20)
    copy = torch.empty_like(much)
    kinds: dict[str, list[float]] = {"step": [], "peak": [], "copy": []}
    all_parts = []
    for _ in range(5):
        ensemble.step()
    for _ in range(steps):
        kinds["step"].append(seconds(ensemble.step))
        kinds["peak"].append(seconds(lambda: torch.mm(square, square, out=out)))
        kinds["copy"].append(seconds(lambda: copy.copy_(much)))
        parts: Parts = defaultdict(lambda: [0.0, 0.0])
        with clocks(parts):
            ensemble.step()
        all_parts.append(parts)
    step, peak, copied = (statistics.median(own) for own in kinds.values())
    calls = [
        {
            "name": call,
            "median_ms": 1e3 * statistics.median(parts[call][0] for parts in all_parts),
            "gflop": statistics.median(parts[call][1] for parts in all_parts) / 1e9,
        }
        for call in sorted({call for parts in all_parts for call in parts})
    ]
    calls = sorted((own for own in calls if own["median_ms"] >= 0.05), key=lambda own: -float(own["median_ms"]))
    gflops, counted = 2 * prod(square.shape) * 1024 / peak / 1e9, sum(own["gflop"] for own in calls)
    whole = {
        "name": "step", "median_ms": 1e3 * step, "gflop": counted, "at_least_ms": 1e3 * counted / gflops,
        "peak_gflops": gflops, "copy_gbps": 2 * much.nbytes / copied / 1e9,
    }  # fmt: skip
    rest = {"name": "the rest", "median_ms": 1e3 * step - sum(own["median_ms"] for own in calls), "gflop": 0.0}
    return [{**row, "ratio": row["median_ms"] / (1e3 * step)} for row in (whole, *calls, rest)]


def said(name: str, step: dict[str, Any], *calls: dict[str, Any]) -> str:
    lines = [
        f"{name}: {step['median_ms']:.2f} ms; products at the peak of {step['peak_gflops']:.0f} GFLOP/s at least "
        f"{step['at_least_ms']:.2f} ms; copies {step['copy_gbps']:.0f} GB/s"
    ]
    for row in calls:
        rate = f"{row['gflop'] / row['median_ms'] * 1e3:8.0f} GFLOP/s" if row["gflop"] else ""
        lines.append(f"  {row['name']:<28}{row['median_ms']:8.2f} ms {row['ratio']:6.0%}{rate}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default=RECIPES, help=f"default: {RECIPES}")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    args = parser.parse_args()
    keep_freed_memory()
    found: dict[str, list[dict[str, Any]]] = {}
    for name in args.recipes.split(","):
        found[name] = parts_of(name, args.steps)
        print(said(name, *found[name]), end="\n\n", flush=True)
        write("Where a step's time goes", found, args.out)


if __name__ == "__main__":
    main()
