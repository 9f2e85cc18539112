"""A whole training step of the p = 97 MLP on a GPU: gradient and AdamW, one model and ensembles, against PyTorch.

python -m benchmarks.bench_step_gpu [--seconds N] [--models 64 256 1024] [--only ours|others|compiled] [--out FILE]

Full batch, half of the pairs, hidden 512, ReLU, cross entropy. What is captured in a CUDA graph takes 10 steps a
replay. FLOPs are those of the three products of a step, whatever a contender multiplies beside them. One model's
contenders take turns; those of an ensemble, which would not fit into memory together, are timed one after the other.
"in a CUDA graph, tf32" tells what of a gain is algebra and what kernels: the same gathers and products in PyTorch's
operations. No further section is begun after `--seconds`; the last ones compile, which takes minutes. What fails, for
want of memory say, is said and left out.
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
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.bench_ops import PRECISIONS, in_tf32
from benchmarks.bench_optimizer_gpu import ONLY, captured, only
from benchmarks.interleave import Contender, compare, free, one_by_one, report, write
from grokfast.models import PairMLP, PairMLPConfig
from grokfast.ops.pair_step import Layout, PairStep
from grokfast.tasks import Data, ModularTask
from grokfast.transforms.flat import FlatOptimizer
from grokfast.transforms.optimizers import AdamW

TITLE = "p = 97 MLP training step"
GRAPH_STEPS = 10
MODE = "max-autotune"  # with CUDA graphs
ADAMW: dict[str, Any] = {"lr": 1e-3, "weight_decay": 1.0, "betas": (0.9, 0.98)}
Step = Callable[[], Any]


class Workload:
    """The data and the size of the models; `device` is that of every contender."""

    def __init__(self, p: int = 97, width: int = 512, device: str = "cuda") -> None:
        self.data: Data = ModularTask(operation="add", p=p, train_fraction=0.5).build(seed=0)
        self.width, self.device = width, torch.device(device)
        self.tokens, self.targets = self.data.train.inputs.to(device), self.data.train.targets.to(device)

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
    """One model, F.cross_entropy, AdamW(fused), which a compiler makes of foreach."""
    n = work.data.n_tokens
    dense = nn.Sequential(nn.Linear(2 * n, work.width), nn.ReLU(), nn.Linear(work.width, work.data.n_answers))
    model = (dense if two_hot else GatherMLP(work)).to(work.device)
    x = F.one_hot(work.tokens, n).flatten(1).float() if two_hot else work.tokens
    style = {"foreach": True} if compiled else {"fused": True}
    optimizer = torch.optim.AdamW(model.parameters(), capturable=capturable, **style, **ADAMW)

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y)

    loss = torch.compile(loss_of, mode=MODE) if compiled else loss_of
    update = torch.compile(lambda: optimizer.step(), mode=MODE) if compiled else optimizer.step

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


def by_bmm(work: Workload, models: int, *, capturable: bool = False, compiled: bool = False) -> Step:
    """One batched product for all models, their tables as one; long enough to hide what the host does."""
    n, classes, width, device = work.data.n_tokens, work.data.n_answers, work.width, work.device

    def drawn(*shape: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(shape, device=device) * width**-0.5)

    w_a, w_b = drawn(models * n, width), drawn(models * n, width)
    bias, weight, out_bias = drawn(models, 1, width), drawn(models, width, classes), drawn(models, 1, classes)
    first = n * torch.arange(models, device=device)[:, None]
    a, b = (first + tokens for tokens in work.tokens.unbind(1))  # [E, N]
    targets = work.targets.repeat(models)
    style = {"foreach": True} if compiled else {"fused": True}
    optimizer = torch.optim.AdamW([w_a, w_b, bias, weight, out_bias], capturable=capturable, **style, **ADAMW)

    def total() -> Tensor:
        h = F.relu(F.embedding(a, w_a) + F.embedding(b, w_b) + bias)
        logits = torch.baddbmm(out_bias, h, weight)
        return F.cross_entropy(logits.flatten(0, 1), targets) * models

    loss = torch.compile(total, mode=MODE) if compiled else total
    update = torch.compile(lambda: optimizer.step(), mode=MODE) if compiled else optimizer.step

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        update()

    return step


def fused(work: Workload, models: int, precision: str) -> Step:
    """PairStep and the optimizer's one launch."""
    model = _models(work, models)
    layout = Layout.of({name: p.shape[1:] for name, p in model.named_parameters()})
    flat = torch.zeros(models, layout.n_flat, device=work.device)
    flat[:, : layout.n_parameters] = torch.cat([p.detach().flatten(1) for p in model.parameters()], 1)
    sizes = {"n_tokens": work.data.n_tokens, "n_answers": work.data.n_answers, "width": work.width}
    step = PairStep(layout, work.tokens, work.targets, n_models=models, precision=precision, **sizes)
    optimizer = FlatOptimizer(flat, [AdamW(**ADAMW)] * models, [None] * models)
    parts = [] if step.splits == 1 else [step.splits]  # which the optimizer sums, as in training
    grad, loss = flat.new_empty(*parts, *flat.shape), torch.empty(models, device=work.device)
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


def one_model(work: Workload) -> dict[str, Callable[[], Step]]:
    return {
        "eager": lambda: eager(work),
        "eager, tf32": lambda: in_tf32(eager(work)),
        "eager, two-hot": lambda: eager(work, two_hot=True),
        "eager in a CUDA graph": lambda: in_a_graph(eager(work, capturable=True)),
        "eager in a CUDA graph, tf32": in_tf32(lambda: in_a_graph(eager(work, capturable=True))),
        **_ours(work, 1),
    }


def ensemble(work: Workload, models: int) -> dict[str, Callable[[], Step]]:
    return {
        "torch.func vmap": lambda: by_vmap(work, models),
        "torch.func vmap, tf32": lambda: in_tf32(by_vmap(work, models)),
        "bmm": lambda: by_bmm(work, models),
        "bmm, tf32": lambda: in_tf32(by_bmm(work, models)),
        "bmm in a CUDA graph, tf32": in_tf32(lambda: in_a_graph(by_bmm(work, models, capturable=True))),
        **_ours(work, models),
    }


def compiled(work: Workload) -> dict[str, Callable[[], Step]]:
    return {
        "eager": lambda: eager(work),
        "torch.compile, max-autotune": lambda: eager(work, compiled=True, capturable=True),
        "torch.compile, max-autotune, tf32": lambda: in_tf32(eager(work, compiled=True, capturable=True)),
        **_ours(work, 1),
    }


def compiled_ensemble(work: Workload, models: int) -> dict[str, Callable[[], Step]]:
    return {
        "torch.compile of bmm, tf32": lambda: in_tf32(by_bmm(work, models, compiled=True, capturable=True)),
        **only(_ours(work, models), "others"),
    }


def _ours(work: Workload, models: int) -> dict[str, Callable[[], Step]]:
    return {f"grokfast, {p}": lambda p=p: in_a_graph(fused(work, models, p)) for p in PRECISIONS}  # type: ignore[misc]


def measure(
    work: Workload,
    makers: dict[str, Callable[[], Step]],
    models: int,
    rounds: int,
    keep: Callable[[list[dict[str, Any]]], None],
) -> None:
    """`keep` gets the rows of a table, an ensemble's as they are found; the first contender is the baseline."""
    on_gpu = work.device.type == "cuda"

    def contender(make: Callable[[], Step], calls: int) -> Contender:
        step = make()
        for _ in range(calls):
            step()
        repeat = GRAPH_STEPS * (5 if models == 1 else 1)
        return Contender(step, repeat=repeat, is_on_gpu=on_gpu, flops=work.flops(models))

    def with_rates(rows: list[dict[str, Any]]) -> None:
        keep([row | {"model_steps_per_s": round(models / row["median_ms"] * 1e3)} for row in rows])

    all_of_them = {
        name: partial(contender, make, 2 * GRAPH_STEPS if name.startswith("torch.compile") else 0)
        for name, make in makers.items()
    }
    if models == 1:
        with_rates(compare(all_of_them, rounds=rounds))
    else:
        one_by_one(all_of_them, rounds=rounds, keep=with_rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600, help="begin no further section after these")
    parser.add_argument("--models", type=int, nargs="+", default=[64, 256, 1024], help="sizes of the ensembles")
    parser.add_argument("--only", choices=(*ONLY, "compiled"), default="all", help="which contenders")
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("needs an NVIDIA GPU and a CUDA build of torch")
    begun, work = time.monotonic(), Workload()
    plan: list[tuple[str, Callable[[], dict[str, Callable[[], Step]]], int, int]] = []
    if args.only != "compiled":
        plan += [("one model", lambda: only(one_model(work), args.only), 1, 20)]
        plan += [(f"{n} models", lambda n=n: only(ensemble(work, n), args.only), n, 5) for n in args.models]  # type: ignore[misc]
    if args.only in ("all", "compiled"):
        plan += [("one model, compiled", lambda: compiled(work), 1, 20)]
        plan += [(f"{n} models, compiled", lambda n=n: compiled_ensemble(work, n), n, 5) for n in args.models]  # type: ignore[misc]
    sections: dict[str, list[dict[str, Any]]] = {}
    for name, makers, models, rounds in plan:
        if time.monotonic() - begun > args.seconds:
            print(f"{name}: left out, no time", flush=True)
            continue

        def keep(rows: list[dict[str, Any]], name: str = name) -> None:
            sections[name] = rows
            write(TITLE, sections, args.out)

        measure(work, makers(), models, rounds, keep)
        free()
    report(TITLE, sections, args.out)


if __name__ == "__main__":
    main()
