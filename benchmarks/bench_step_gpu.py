"""A whole training step of the p = 97 MLP on a GPU: gradient and AdamW, one model and ensembles, against PyTorch.

python -m benchmarks.bench_step_gpu [--seconds N] [--models 64 256 1024] [--out FILE]

Full batch, half of the pairs, hidden 512, ReLU, cross entropy. What is captured in a CUDA graph takes 10 steps a
replay. FLOPs are those of the three products of a step, whatever a contender multiplies beside them. No further section
is begun after `--seconds`; the last compiles, which takes a minute. What fails, for want of memory say, is said and
left out.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.bench_ops import PRECISIONS, in_tf32
from benchmarks.bench_optimizer_gpu import captured
from benchmarks.interleave import Contender, interleave, report, write
from grokfast import backend, ops
from grokfast.nn import PairMLP, PairMLPConfig
from grokfast.ops.pair_step import Layout, PairStep
from grokfast.tasks import ModularTask, TaskData, build
from grokfast.training import OptimizerConfig
from grokfast.training.update import FlatOptimizer

TITLE = "p = 97 MLP training step"
GRAPH_STEPS = 10
ADAMW: dict[str, Any] = {"lr": 1e-3, "weight_decay": 1.0, "betas": (0.9, 0.98)}
Step = Callable[[], Any]


class Workload:
    """The data and the size of the models; `device` is that of every contender."""

    def __init__(self, p: int = 97, width: int = 512, device: str = "cuda") -> None:
        self.data: TaskData = build(ModularTask(operation="add", p=p, train_fraction=0.5), seed=0)
        self.width, self.device = width, torch.device(device)
        self.tokens, self.targets = self.data.train_inputs.to(device), self.data.train_targets.to(device)

    def flops(self, models: int) -> int:
        return models * 3 * 2 * len(self.targets) * self.data.n_answers * self.width


class GatherMLP(nn.Module):
    """The first layer of two one-hot operands as a gather of two rows: PyTorch at its best."""

    def __init__(self, work: Workload) -> None:
        super().__init__()
        self.a, self.b = (nn.Embedding(work.data.n_tokens, work.width) for _ in range(2))
        self.bias = nn.Parameter(torch.zeros(work.width))
        self.out = nn.Linear(work.width, work.data.n_answers)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(F.relu(self.a(tokens[:, 0]) + self.b(tokens[:, 1]) + self.bias))


def eager(work: Workload, *, two_hot: bool = False, capturable: bool = False, compiled: bool = False) -> Step:
    """One model, F.cross_entropy, AdamW(fused) where the device has it."""
    n = work.data.n_tokens
    dense = nn.Sequential(nn.Linear(2 * n, work.width), nn.ReLU(), nn.Linear(work.width, work.data.n_answers))
    model = (dense if two_hot else GatherMLP(work)).to(work.device)
    x = F.one_hot(work.tokens, n).flatten(1).float() if two_hot else work.tokens
    optimizer = torch.optim.AdamW(model.parameters(), fused=True, capturable=capturable, **ADAMW)

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y)

    mode = "max-autotune"  # with CUDA graphs
    loss = torch.compile(loss_of, mode=mode) if compiled else loss_of
    update = torch.compile(optimizer.step, mode=mode) if compiled else optimizer.step

    def step() -> None:
        optimizer.zero_grad()
        loss(x, work.targets).backward()
        update()

    return step


def by_vmap(work: Workload, models: int) -> Step:
    """torch.func: vmap of grad over stacked parameters."""
    template = GatherMLP(work).to(work.device)
    stacked = {
        name: p.detach().expand(models, *p.shape).clone().requires_grad_() for name, p in template.named_parameters()
    }
    optimizer = torch.optim.AdamW(stacked.values(), fused=True, **ADAMW)

    def loss_of(parameters: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(template, parameters, (work.tokens,)), work.targets)

    grads_of = torch.func.vmap(torch.func.grad(loss_of))

    def step() -> None:
        for name, grad in grads_of({name: p.detach() for name, p in stacked.items()}).items():
            stacked[name].grad = grad
        optimizer.step()

    return step


def by_bmm(work: Workload, models: int) -> Step:
    """PairMLP in plain PyTorch: one batched product for all models, long enough to hide what the host does."""
    model = _models(work, models)
    targets = work.targets.expand(models, -1)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True, **ADAMW)

    def step() -> None:
        with backend.using("reference"):
            optimizer.zero_grad()
            ops.classify(model(work.tokens), targets)[0].sum().backward()
            optimizer.step()

    return step


def fused(work: Workload, models: int, precision: str) -> Step:
    """PairStep and the optimizer's one launch."""
    model = _models(work, models)
    layout = Layout.of({name: p.shape[1:] for name, p in model.named_parameters()})
    flat = torch.zeros(models, layout.n_flat, device=work.device)
    flat[:, : layout.n_parameters] = torch.cat([p.detach().flatten(1) for p in model.parameters()], 1)
    sizes = {"n_tokens": work.data.n_tokens, "n_answers": work.data.n_answers, "width": work.width}
    step = PairStep(layout, work.tokens, work.targets, n_models=models, precision=precision, **sizes)
    optimizer = FlatOptimizer(flat, [OptimizerConfig(**ADAMW)] * models, [None] * models)
    grad, loss = torch.empty_like(flat), torch.empty(models, device=work.device)
    correct = torch.empty(models, dtype=torch.int32, device=work.device)

    def run() -> None:
        step.gradient(flat, grad, loss, correct)
        optimizer.step(flat, grad)

    return run


def _models(work: Workload, models: int) -> PairMLP:
    sizes = {"n_tokens": work.data.n_tokens, "n_answers": work.data.n_answers}
    return PairMLP(PairMLPConfig(width=work.width), **sizes, seeds=range(models)).to(work.device)


def in_a_graph(step: Step) -> Step:
    """Call it GRAPH_STEPS times for one replay of as many steps."""

    def steps() -> None:
        for _ in range(GRAPH_STEPS):
            step()

    replay, calls = captured(steps), itertools.count()

    def run() -> None:
        if next(calls) % GRAPH_STEPS == 0:
            replay()

    return run


def captured_in_tf32(step: Step) -> Step:
    torch.set_float32_matmul_precision("high")
    try:
        return in_a_graph(step)
    finally:
        torch.set_float32_matmul_precision("highest")


def one_model(work: Workload) -> dict[str, Callable[[], Step]]:
    return {
        "eager": lambda: eager(work),
        "eager, tf32": lambda: in_tf32(eager(work)),
        "eager, two-hot": lambda: eager(work, two_hot=True),
        "eager in a CUDA graph": lambda: in_a_graph(eager(work, capturable=True)),
        "eager in a CUDA graph, tf32": lambda: captured_in_tf32(eager(work, capturable=True)),
        **_ours(work, 1),
    }


def ensemble(work: Workload, models: int) -> dict[str, Callable[[], Step]]:
    return {
        "torch.func vmap": lambda: by_vmap(work, models),
        "torch.func vmap, tf32": lambda: in_tf32(by_vmap(work, models)),
        "bmm": lambda: by_bmm(work, models),
        "bmm, tf32": lambda: in_tf32(by_bmm(work, models)),
        **_ours(work, models),
    }


def compiled(work: Workload) -> dict[str, Callable[[], Step]]:
    return {
        "eager": lambda: eager(work),
        "torch.compile, max-autotune": lambda: eager(work, compiled=True, capturable=True),
        "torch.compile, max-autotune, tf32": lambda: in_tf32(eager(work, compiled=True, capturable=True)),
        **_ours(work, 1),
    }


def _ours(work: Workload, models: int) -> dict[str, Callable[[], Step]]:
    return {f"grokfast, {p}": lambda p=p: in_a_graph(fused(work, models, p)) for p in PRECISIONS}  # type: ignore[misc]


def measure(work: Workload, makers: dict[str, Callable[[], Step]], models: int, rounds: int) -> list[dict[str, Any]]:
    """Rows of a table; the first contender is the baseline."""
    contenders = {}
    for name, make in makers.items():
        try:
            step = make()
            for _ in range(2 * GRAPH_STEPS if name.startswith("torch.compile") else 1):
                step()
            repeat = GRAPH_STEPS * (5 if models == 1 else 1)
            contenders[name] = Contender(
                step, repeat=repeat, is_on_gpu=work.device.type == "cuda", flops=work.flops(models)
            )
        except Exception as error:  # a compiler's, or torch.OutOfMemoryError: the others are measured all the same
            print(
                f"{name}, {models} models: left out, {type(error).__name__}: {(str(error).splitlines() or [''])[0]}",
                flush=True,
            )
    rows = interleave(contenders, baseline=next(iter(contenders)), rounds=rounds) if contenders else []
    return [row | {"model_steps_per_s": round(models / row["median_ms"] * 1e3)} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600, help="begin no further section after these")
    parser.add_argument("--models", type=int, nargs="+", default=[64, 256, 1024], help="sizes of the ensembles")
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("needs an NVIDIA GPU and a CUDA build of torch")
    begun, work = time.monotonic(), Workload()
    plan: list[tuple[str, Callable[[], dict[str, Callable[[], Step]]], int, int]] = [
        ("one model", lambda: one_model(work), 1, 20)
    ]
    plan += [(f"{n} models", lambda n=n: ensemble(work, n), n, 5) for n in args.models]  # type: ignore[misc]
    plan += [("one model, compiled", lambda: compiled(work), 1, 20)]
    sections = {}
    for name, makers, models, rounds in plan:
        if time.monotonic() - begun > args.seconds:
            print(f"{name}: left out, no time", flush=True)
            continue
        sections[name] = measure(work, makers(), models, rounds)
        write(TITLE, sections, args.out)
        gc.collect()
        torch.cuda.empty_cache()
    report(TITLE, sections, args.out)


if __name__ == "__main__":
    main()
