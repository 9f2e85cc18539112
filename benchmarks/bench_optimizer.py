"""One optimizer step with a gradient filter, against torch's fused AdamW alone and against the filters as plain loops.

python -m benchmarks.bench_optimizer [--out FILE]     # interleaved: the ratios to quote
pytest benchmarks/bench_optimizer.py                   # the same steps under pytest-benchmark
"""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.interleave import Contender, interleave, report
from grokfast import EMA, MA, GrokFast, NormClip, OrthoGrad
from grokfast.transforms import Chain, Transform

WINDOW = 100
# The Nanda transformer, and something with the shape of a small language model: 150 tensors, 10 M parameters.
SHAPES = {
    "227k parameters in 12 tensors": [
        (114, 128), (3, 128), (128, 128), (128, 128), (128, 128), (128, 128), (512, 128), (512,), (128, 512), (128,),
        (64, 113), (64, 113),
    ],
    "10 M parameters in 150 tensors": [(256, 524)] * 75 + [(256,)] * 75,
}  # fmt: skip
ROUNDS = {"227k parameters in 12 tensors": 300, "10 M parameters in 150 tensors": 25}


CLIP = NormClip(1.5, parameters="matrices")
FILTERS: dict[str, Transform] = {
    "ema": EMA(), "ma": MA(WINDOW), "orthograd": OrthoGrad(), "norm_clip": CLIP, "all": Chain(OrthoGrad(), EMA(), CLIP)
}  # fmt: skip


class PlainEMA:
    """The original's loop over tensors (Lee et al. 2024), out of place."""

    def __init__(self) -> None:
        self.ema: dict[int, Tensor] = {}

    def __call__(self, params: list[nn.Parameter]) -> None:
        for i, p in enumerate(params):
            assert p.grad is not None
            self.ema[i] = self.ema.get(i, p.grad) * 0.98 + p.grad * 0.02
            p.grad = p.grad + self.ema[i] * 2.0


class PlainMA:
    """The original's loop: a deque of gradients, all of them added up at every step."""

    def __init__(self) -> None:
        self.windows: dict[int, deque[Tensor]] = {}

    def __call__(self, params: list[nn.Parameter]) -> None:
        for i, p in enumerate(params):
            assert p.grad is not None
            window = self.windows.setdefault(i, deque(maxlen=WINDOW))
            window.append(p.grad)
            if len(window) == WINDOW:
                p.grad = p.grad + sum(window) / len(window) * 5.0


def contender(kind: str, shapes: list[tuple[int, ...]]) -> Contender:
    """A model's parameters, its fixed gradients, and one way to take a step; MA windows are filled."""
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    grads = [torch.randn(shape, generator=generator) for shape in shapes]
    options = {"lr": 1e-3, "weight_decay": 1.0, "betas": (0.9, 0.98)}

    def restore() -> None:
        for p, grad in zip(params, grads):
            p.grad = grad

    restore()
    plain: Callable[[list[nn.Parameter]], None] | None = {"plain-ema": PlainEMA, "plain-ma": PlainMA}.get(
        kind, lambda: None
    )()
    if plain is not None:
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(params, foreach=True, **options)  # type: ignore[arg-type]
    else:
        optimizer = torch.optim.AdamW(params, fused=True, **options)  # type: ignore[arg-type]
        if kind != "fused":
            optimizer = GrokFast(optimizer, FILTERS[kind])

    def step() -> None:
        if plain is not None:
            plain(params)
        optimizer.step()

    if kind.endswith("ma"):
        for _ in range(WINDOW if kind in ("ma", "plain-ma") else 1):
            restore()
            step()
    return Contender(step, restore)


CONTENDERS = {
    "torch AdamW(fused=True), no filter": "fused",
    "GrokFast(AdamW, EMA)": "ema",
    f"GrokFast(AdamW, MA({WINDOW}))": "ma",
    "GrokFast(AdamW, OrthoGrad)": "orthograd",
    "GrokFast(AdamW, NormClip)": "norm_clip",
    "GrokFast(AdamW, OrthoGrad, EMA, NormClip)": "all",
    "AdamW(foreach) + plain-loop EMA": "plain-ema",
    f"AdamW(foreach) + plain-loop MA({WINDOW})": "plain-ma",
}


@pytest.mark.parametrize("name", CONTENDERS)
@pytest.mark.parametrize("size", SHAPES)
def test_optimizer_step(benchmark, size, name):  # type: ignore[no-untyped-def]
    chosen = contender(CONTENDERS[name], SHAPES[size])
    benchmark.group = f"optimizer step, {size}"
    benchmark.pedantic(chosen.step, setup=chosen.prepare, rounds=10, warmup_rounds=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    out = parser.parse_args().out
    sections = {}
    for size, shapes in SHAPES.items():
        contenders = {name: contender(kind, shapes) for name, kind in CONTENDERS.items()}
        baseline = next(iter(contenders))
        sections[size] = interleave(contenders, baseline=baseline, rounds=ROUNDS[size])
    report("Optimizer step", sections, out)


if __name__ == "__main__":
    main()
