"""One optimizer step with each transform around torch's AdamW, against torch's fused AdamW alone and against others.

python -m benchmarks.bench_transforms [--only WORD] [--spectral] [--out benchmarks/results/cpu-transforms.json]
pytest benchmarks/bench_transforms.py                              # the same steps under pytest-benchmark

Others' are the packages pytorch_optimizer, grokfast-pytorch and grokadamw where they are installed, and plain loops
over tensors of what no package has.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.bench_optimizer import SHAPES
from benchmarks.interleave import Contender, interleave, report, write
from grokfast import (
    EGD,
    EMA,
    L1,
    Chain,
    Compression,
    GrokAdamW,
    GrokFast,
    MultiEMA,
    NormClamp,
    NormClip,
    Nuclear,
    OrthoGrad,
    Spherical,
)  # fmt: skip
from grokfast.transforms import Transform

ROUNDS = dict(zip(SHAPES, (40, 8)))
OPTIONS: dict[str, Any] = {"lr": 1e-3, "weight_decay": 1.0, "betas": (0.9, 0.98)}
BASELINE = "torch AdamW(fused=True)"
TRANSFORMS: dict[str, Transform] = {
    type(one).__name__: one
    for one in (
        EMA(), MultiEMA(), GrokAdamW(), OrthoGrad(), NormClip(1.0), NormClamp(30.0), Spherical(), L1(), Compression(),
        EGD(), Nuclear(),
    )
}  # fmt: skip
TRANSFORMS["OrthoGrad, EMA, NormClip"] = Chain(OrthoGrad(), EMA(), NormClip(1.5, parameters="matrices"))
SPECTRAL = ("EGD", "Nuclear")  # whose step takes seconds at 10 M parameters
Params = Sequence[nn.Parameter]
Make = Callable[[Params], Callable[[], Any]]


def ours(params: Params, transform: Transform) -> Callable[[], Any]:
    return GrokFast(torch.optim.AdamW(params, fused=True, **OPTIONS), transform).step


def packaged(package: str, name: str) -> Make:
    """An optimizer of another package; ImportError where it is not installed."""

    def made(params: Params) -> Callable[[], Any]:
        kind = getattr(importlib.import_module(package), name)
        if name == "OrthoGrad":  # around another
            return kind(torch.optim.AdamW(params, fused=True, **OPTIONS)).step  # type: ignore[no-any-return]
        betas = (0.9, 0.98, 0.9999)[: 3 if name == "AdEMAMix" else 2]
        return kind(params, **{**OPTIONS, "betas": betas}).step  # type: ignore[no-any-return]

    return made


def looped(before: Callable[[Tensor], None] | None, after: Callable[[Params], None] | None = None) -> Make:
    """torch's fused AdamW with what a script would write for every tensor before it, and for all after it."""

    def made(params: Params) -> Callable[[], Any]:
        optimizer = torch.optim.AdamW(params, fused=True, **OPTIONS)

        @torch.no_grad()
        def step() -> None:
            if before is not None:
                for p in params:
                    before(p)
            optimizer.step()
            if after is not None:
                after(params)

        return step

    return made


def polar(x: Tensor) -> Tensor:
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    return u @ v


def egd(p: Tensor) -> None:
    if p.ndim > 1:
        assert p.grad is not None
        p.grad = polar(p.grad)


def nuclear(p: Tensor) -> None:
    if p.ndim > 1:
        assert p.grad is not None
        p.grad.add_(polar(p), alpha=1e-4)


def l1(p: Tensor) -> None:
    assert p.grad is not None
    p.grad.add_(p.sign(), alpha=1e-4)


def compression(p: Tensor) -> None:
    assert p.grad is not None
    p.grad.add_(p, alpha=0.02)


def norm_clip(params: Params) -> None:
    for p in params:
        if p.ndim > 1:
            p.copy_(torch.renorm(p, 2, 0, 1.0))


def spherical(params: Params) -> None:
    for p in params:
        if p.ndim > 1:
            p.copy_(nn.functional.normalize(p, dim=1))


def norm_clamp(params: Params) -> None:
    length = torch.nn.utils.get_total_norm(params)
    torch._foreach_mul_(params, 30.0 / length)


PEERS: dict[str, dict[str, Make]] = {
    "EMA": {
        "pytorch_optimizer.GrokFastAdamW": packaged("pytorch_optimizer", "GrokFastAdamW"),
        "grokfast_pytorch.GrokFastAdamW": packaged("grokfast_pytorch", "GrokFastAdamW"),
    },
    "MultiEMA": {"pytorch_optimizer.AdEMAMix": packaged("pytorch_optimizer", "AdEMAMix")},
    "GrokAdamW": {"grokadamw.GrokAdamW": packaged("grokadamw", "GrokAdamW")},
    "OrthoGrad": {"pytorch_optimizer.OrthoGrad": packaged("pytorch_optimizer", "OrthoGrad")},
    "NormClip": {"torch.renorm in a loop": looped(None, norm_clip)},
    "NormClamp": {"torch's total norm and foreach": looped(None, norm_clamp)},
    "Spherical": {"F.normalize in a loop": looped(None, spherical)},
    "OrthoGrad, EMA, NormClip": {},
    "L1": {"sign in a loop": looped(l1)},
    "Compression": {"add in a loop": looped(compression)},
    "EGD": {"torch.linalg.svd in a loop": looped(egd)},
    "Nuclear": {"torch.linalg.svd in a loop": looped(nuclear)},
}


def contender(make: Make, shapes: Sequence[tuple[int, ...]]) -> Contender:
    """A model's parameters, its fixed gradients, and one way to take a step."""
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    grads = [torch.randn(shape, generator=generator) for shape in shapes]
    step = make(params)

    def restore() -> None:
        for p, grad in zip(params, grads):
            p.grad = grad

    return Contender(step, restore)


def makers(name: str) -> dict[str, Make]:
    """A transform and its peers, after the baseline."""
    baseline = {BASELINE: looped(None)}
    return {**baseline, f"GrokFast(AdamW, {name})": lambda params: ours(params, TRANSFORMS[name]), **PEERS[name]}


LARGE = list(SHAPES)[1]
CASES = [
    (size, name, way)
    for size in SHAPES
    for name in TRANSFORMS
    if name not in SPECTRAL or size != LARGE
    for way in makers(name)
]


@pytest.mark.parametrize(("size", "name", "way"), CASES)
def test_step_with_a_transform(benchmark, size, name, way):  # type: ignore[no-untyped-def]
    try:
        chosen = contender(makers(name)[way], SHAPES[size])
    except ImportError as error:
        pytest.skip(f"{way} is not there: {error}")
    benchmark.group = f"optimizer step with {name}, {size}"
    benchmark.pedantic(chosen.step, setup=chosen.prepare, rounds=10, warmup_rounds=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="transforms whose names have this in them")
    parser.add_argument("--spectral", action="store_true", help="time EGD and Nuclear at 10 M parameters, too: minutes")
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    options = parser.parse_args()
    sections = {}
    for size, shapes in SHAPES.items():
        for name in (name for name in TRANSFORMS if options.only in name):
            if name in SPECTRAL and size == LARGE and not options.spectral:
                continue
            contenders = {}
            for way, make in makers(name).items():
                try:
                    contenders[way] = contender(make, shapes)
                except ImportError as error:
                    print(f"left out: {way}, {error}")
            rounds = max(2, ROUNDS[size] // 20) if name in SPECTRAL else ROUNDS[size]
            sections[f"{name}, {size}"] = interleave(contenders, baseline=BASELINE, rounds=rounds, warmup=2)
            write("Transforms", sections, options.out)
    report("Transforms", sections, options.out)


if __name__ == "__main__":
    main()
