"""One optimizer step with a gradient filter on a GPU, ordinary and captured in a CUDA graph, against torch's.

python -m benchmarks.bench_optimizer_gpu [--out FILE]

A step moves at least 7 streams of 4 bytes a parameter for AdamW (p, m, v read and written, g read), 9 with an EMA, 11
with a MA. The ceiling is the rate of a copy in the same run.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from benchmarks.bench_optimizer import SHAPES, WINDOW, PlainEMA
from benchmarks.interleave import Contender, compare, free, report, write
from grokfast import EMA, MA, GrokFast, backend
from grokfast.transforms.flat import FlatOptimizer
from grokfast.transforms.optimizers import AdamW

GPU_SHAPES = {**SHAPES, "125 M parameters in 150 tensors": [(1024, 1626)] * 75 + [(512,)] * 75}
REPEAT = {"227k parameters in 12 tensors": 50, "10 M parameters in 150 tensors": 20}
OPTIONS: dict[str, Any] = {"lr": 1e-3, "weight_decay": 1.0, "betas": (0.9, 0.98)}
MODELS = 512
ONLY = ("all", "ours", "others")
Maker = TypeVar("Maker")
TITLE = "Optimizer step on a GPU"


def stepper(kind: str, engine: str, shapes: list[tuple[int, ...]], graph: bool) -> Callable[[], Any]:
    """One way to take a step on fixed gradients."""
    params = [nn.Parameter(torch.randn(shape, device="cuda")) for shape in shapes]
    raw = [torch.randn(shape, device="cuda") for shape in shapes]
    style = {"fused": True} if kind.startswith("fused") else {"foreach": True}
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(params, capturable=graph, **style, **OPTIONS)
    plain = PlainEMA() if kind.endswith("plain-ema") else None
    if kind in ("ema", "ma"):
        optimizer = GrokFast(optimizer, EMA() if kind == "ema" else MA(WINDOW))
    for p, grad in zip(params, raw):
        p.grad = grad

    def step() -> None:
        if plain is not None:
            for p, grad in zip(params, raw):
                p.grad = grad
            plain(params)
        with backend.using(engine):
            optimizer.step()

    return captured(step) if graph else step


def captured(step: Callable[[], Any]) -> Callable[[], Any]:
    """Replays `step`, whose tensors it keeps: memory that a graph reads and writes must not be given to others."""
    gc.collect()  # not while a graph is captured
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def replay(kept: Callable[[], Any] = step) -> None:
        graph.replay()

    return replay


def only(makers: Mapping[str, Maker], which: str) -> dict[str, Maker]:
    """ "ours", those named grokfast; "others", which are the rest and "grokfast, tf32", to compare with; or all."""
    kept = {
        "ours": lambda name: name.startswith("grokfast"),
        "others": lambda name: not name.startswith("grokfast") or name == "grokfast, tf32",
        "all": lambda name: True,
    }[which]
    return {name: make for name, make in makers.items() if kept(name)}


def engines() -> list[str]:
    extension = backend.extension()
    return ["triton", *(["cuda"] if extension is not None and extension.with_cuda else [])]


def contenders(size: str, shapes: list[tuple[int, ...]], graph: bool) -> dict[str, Callable[[], Contender]]:
    """The first is the baseline."""
    total = sum(torch.Size(shape).numel() for shape in shapes)
    kinds = [("AdamW(fused)", "fused", "auto", 7), ("AdamW(foreach)", "foreach", "auto", 7)]
    for engine in engines():
        kinds.append((f"GrokFast(AdamW, EMA), {engine}", "ema", engine, 9))
        if total < 50e6:
            kinds.append((f"GrokFast(AdamW, MA({WINDOW})), {engine}", "ma", engine, 11))
    if not graph:  # the loop makes new tensors at every step, which a graph cannot keep
        kinds += [("AdamW(foreach) + plain-loop EMA", "foreach-plain-ema", "auto", 9)]
        kinds += [("AdamW(fused) + plain-loop EMA", "fused-plain-ema", "auto", 9)]

    def make(kind: str, engine: str, streams: int) -> Contender:
        step, moved = stepper(kind, engine, shapes, graph), streams * 4 * total
        return Contender(step, repeat=REPEAT.get(size, 5), is_on_gpu=True, bytes=moved)

    rows = {name: partial(make, kind, engine, streams) for name, kind, engine, streams in kinds}
    return rows | {"copy": partial(copy_of, total)}


def copy_of(numbers: int) -> Contender:
    a, b = (torch.empty(numbers, device="cuda") for _ in range(2))
    return Contender(lambda: a.copy_(b), repeat=5, is_on_gpu=True, bytes=8 * numbers)


def ensemble() -> dict[str, Callable[[], Contender]]:
    """512 models of 227k parameters, flat [E, P], each with its own hyper-parameters; torch on the same tensor."""
    width = sum(torch.Size(shape).numel() for shape in SHAPES["227k parameters in 12 tensors"])
    width += -width % 16
    total = MODELS * width

    def flat_optimizer(engine: str) -> Contender:
        flat, grad = (torch.randn(MODELS, width, device="cuda") for _ in range(2))
        configs = [AdamW(lr=1e-3, weight_decay=0.1 * (i % 10), betas=(0.9, 0.98)) for i in range(MODELS)]
        optimizer = FlatOptimizer(flat, configs, [EMA()] * MODELS)

        def step() -> None:
            with backend.using(engine):
                optimizer.step(flat, grad)

        return Contender(step, repeat=5, is_on_gpu=True, bytes=9 * 4 * total)

    def by_torch(kind: str, streams: int) -> Contender:
        step = stepper(kind, "auto", [(MODELS, width)], graph=False)
        return Contender(step, repeat=5, is_on_gpu=True, bytes=streams * 4 * total)

    return {
        "AdamW(fused)": lambda: by_torch("fused", 7),
        "AdamW(foreach) + plain-loop EMA": lambda: by_torch("foreach-plain-ema", 9),
        **{f"FlatOptimizer, EMA, {engine}": partial(flat_optimizer, engine) for engine in engines()},
        "copy": lambda: copy_of(total),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    out = parser.parse_args().out
    if not torch.cuda.is_available():
        raise SystemExit("needs an NVIDIA GPU and a CUDA build of torch")
    sections: dict[str, list[dict[str, Any]]] = {}
    for size, shapes in GPU_SHAPES.items():
        for graph in (False, True):
            name = f"{size}, in a CUDA graph" if graph else size
            sections[name] = compare(contenders(size, shapes, graph), rounds=20)
            write(TITLE, sections, out)
            free()
    sections[f"{MODELS} models of 227k parameters"] = compare(ensemble(), rounds=20)
    report(TITLE, sections, out)


if __name__ == "__main__":
    main()
