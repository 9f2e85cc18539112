"""A step of Muon against torch.optim.Muon (with torch's AdamW for vectors): on one model, and on an ensemble of 16.

python -m benchmarks.bench_muon [--out benchmarks/results/cpu-muon.json]   # interleaved: the ratios to quote
pytest benchmarks/bench_muon.py                   # the same steps under pytest-benchmark

torch multiplies in bfloat16, one matrix after the other; grokfast in the weights' fp32 unless asked for bfloat16.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.interleave import Contender, interleave, report
from grokfast.optim import Muon
from grokfast.transforms import Layout
from grokfast.transforms.flat import FlatOptimizer
from grokfast.transforms.muon import Muon as MuonConfig
from grokfast.transforms.muon import Precision

Shapes = list[tuple[int, ...]]
_BLOCK: Shapes = [(384, 128), (128, 128), (512, 128), (512,), (128, 512), (128,)]
SHAPES: dict[str, Shapes] = {
    "MLP of 32, mod 23": [(23, 32), (23, 32), (32,), (23, 32), (23,)],
    "quick's MLP, 75k parameters": [(97, 256), (97, 256), (256,), (97, 256), (97,)],
    "nanda's transformer, 226k parameters": [(114, 128), (3, 128), (113, 128), *_BLOCK],
}
MODELS = 16
OPTIONS = {"lr": 1e-3, "weight_decay": 0.1}


def gradients(shapes: Shapes, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def parameters(shapes: Shapes, seed: int) -> list[nn.Parameter]:
    params = [nn.Parameter(t) for t in gradients(shapes, seed)]
    for p, grad in zip(params, gradients(shapes, seed + MODELS)):
        p.grad = grad
    return params


def by_torch(shapes: Shapes, models: int) -> Contender:
    optimizers: list[torch.optim.Optimizer] = []
    for model in range(models):
        params = parameters(shapes, model)
        optimizers.append(torch.optim.Muon([p for p in params if p.ndim == 2], **OPTIONS))
        optimizers.append(torch.optim.AdamW([p for p in params if p.ndim < 2], **OPTIONS))
    return Contender(lambda: [one.step() for one in optimizers])


def by_face(shapes: Shapes, precision: Precision) -> Contender:
    return Contender(Muon(parameters(shapes, 0), ns_precision=precision, **OPTIONS).step)


def by_ensemble(shapes: Shapes, models: int, precision: Precision) -> Contender:
    flat, grad = (
        torch.stack([torch.cat([t.flatten() for t in gradients(shapes, seed + at)]) for seed in range(models)])
        for at in (0, MODELS)
    )
    config = MuonConfig(ns_precision=precision, **OPTIONS)
    layout = Layout.of({str(i): shape for i, shape in enumerate(shapes)})
    optimizer = FlatOptimizer(flat, [config] * models, [None] * models, layout)
    return Contender(lambda: optimizer.step(flat, grad))


ONE = {
    "torch.optim.Muon": lambda shapes: by_torch(shapes, 1),
    "grokfast.optim.Muon, fp32": lambda shapes: by_face(shapes, "weights"),
    "grokfast.optim.Muon, bfloat16": lambda shapes: by_face(shapes, "bfloat16"),
    "ensemble of 1, fp32": lambda shapes: by_ensemble(shapes, 1, "weights"),
}
SIXTEEN = {
    f"{MODELS} × torch.optim.Muon": lambda shapes: by_torch(shapes, MODELS),
    f"ensemble of {MODELS}, fp32": lambda shapes: by_ensemble(shapes, MODELS, "weights"),
    f"ensemble of {MODELS}, bfloat16": lambda shapes: by_ensemble(shapes, MODELS, "bfloat16"),
}


@pytest.mark.filterwarnings("ignore:Muon passes by")
@pytest.mark.parametrize("name", [*ONE, *SIXTEEN])
@pytest.mark.parametrize("size", SHAPES)
def test_muon_step(benchmark, size, name):  # type: ignore[no-untyped-def]
    made = (ONE | SIXTEEN)[name](SHAPES[size])
    benchmark.group = f"step of Muon, {size}, {'one model' if name in ONE else f'{MODELS} models'}"
    benchmark.pedantic(made.step, rounds=10, warmup_rounds=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    parser.add_argument("--rounds", type=int, default=60)
    given = parser.parse_args()
    sections = {}
    for size, shapes in SHAPES.items():
        for what, kinds, rounds in (("one model", ONE, given.rounds), (f"{MODELS} models", SIXTEEN, given.rounds // 4)):
            contenders = {name: make(shapes) for name, make in kinds.items()}
            sections[f"{size}, {what}"] = interleave(contenders, baseline=next(iter(contenders)), rounds=rounds)
    report("A step of Muon", sections, given.out)


if __name__ == "__main__":
    main()
