"""What the fused operations gain on this machine, against eager and compiled PyTorch, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.benchmark import Timer

from grokfast import ops

ROWS, WIDTH, HIDDEN, CLASSES, HEADS, LENGTH = 3830, 128, 512, 113, 4, 3  # Nanda et al.'s recipe (arXiv 2301.05217)


@dataclass
class Case:
    """An operation on E models: its inputs, ours, PyTorch's, and what a forward has to compute and move at least."""

    tensors: list[Tensor]
    ours: Callable[..., Tensor]
    theirs: Callable[..., Tensor]
    flops: int
    bytes: int
    has_products: bool = True

    def variants(self, precisions: Sequence[str], **options: Any) -> dict[str, Callable[..., Tensor]]:
        """Ours by name, in each precision if there are products."""
        if not self.has_products:
            return {"grokfast": partial(self.ours, **options)}
        return {f"grokfast, {name}": partial(self.ours, precision=name, **options) for name in precisions}

    def step(self, function: Callable[..., Tensor], backward: bool) -> Callable[[], Any]:
        """`function` on the inputs, and with `backward` the gradients of all of them."""
        if not backward:
            inputs = [t.detach() for t in self.tensors]
            return lambda: function(*inputs)
        grad = torch.randn_like(function(*self.tensors))
        return lambda: torch.autograd.grad(function(*self.tensors), self.tensors, grad)


def mlp(models: int, device: str) -> Case:
    tensors = [
        _random(models, ROWS, WIDTH, device=device),
        _random(models, HIDDEN, WIDTH, device=device, scale=WIDTH**-0.5),
        _random(models, HIDDEN, device=device),
        _random(models, WIDTH, HIDDEN, device=device, scale=HIDDEN**-0.5),
        _random(models, WIDTH, device=device),
    ]

    def theirs(x: Tensor, w_in: Tensor, b_in: Tensor, w_out: Tensor, b_out: Tensor) -> Tensor:
        h = torch.baddbmm(b_in.unsqueeze(1), x, w_in.mT).relu()
        return torch.baddbmm(b_out.unsqueeze(1), h, w_out.mT)

    flops = 4 * models * ROWS * WIDTH * HIDDEN
    return Case(tensors, ops.mlp, theirs, flops, 8 * models * WIDTH * (ROWS + HIDDEN))


def attention(models: int, device: str) -> Case:
    shape = models * ROWS, HEADS, LENGTH, WIDTH // HEADS
    theirs = partial(F.scaled_dot_product_attention, is_causal=True)
    tensors = [_random(*shape, device=device) for _ in range(3)]
    numbers = tensors[0].numel()
    return Case(tensors, ops.attention, theirs, 4 * LENGTH * numbers, 4 * 4 * numbers)


def linear_cross_entropy(models: int, device: str) -> Case:
    tensors = [_random(models, ROWS, WIDTH, device=device), _random(models, CLASSES, WIDTH, device=device, scale=0.1)]
    target = torch.randint(CLASSES, (models, ROWS), device=device)

    def theirs(x: Tensor, weight: Tensor) -> Tensor:
        logits = torch.bmm(x, weight.mT)
        return F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(target.shape).mean(1)

    def ours(x: Tensor, weight: Tensor, **options: Any) -> Any:
        return ops.linear_cross_entropy(x, weight, target, **options)

    return Case(tensors, ours, theirs, 2 * tensors[0].numel() * CLASSES, 4 * models * WIDTH * (ROWS + CLASSES))


def pair_embed(models: int, device: str) -> Case:
    tensors = [
        _random(models, CLASSES, HIDDEN, device=device),
        _random(models, CLASSES, HIDDEN, device=device),
        _random(models, HIDDEN, device=device),
    ]
    pairs = torch.randint(CLASSES, (1, ROWS, 2), device=device).expand(models, -1, -1)
    index = ops.PairIndex(pairs, CLASSES, CLASSES)
    number = torch.arange(models, device=device)[:, None]

    def theirs(w_a: Tensor, w_b: Tensor, bias: Tensor) -> Tensor:
        return (w_a[number, pairs[..., 0]] + w_b[number, pairs[..., 1]] + bias[:, None]).relu()

    def ours(w_a: Tensor, w_b: Tensor, bias: Tensor, **options: Any) -> Tensor:
        return ops.pair_embed(w_a, w_b, index, bias, activation="relu", **options)

    numbers = models * ROWS * HIDDEN
    return Case(tensors, ours, theirs, 3 * numbers, 4 * (numbers + 2 * tensors[0].numel()), has_products=False)


def layer_norm(models: int, device: str) -> Case:
    tensors = [
        _random(models, ROWS, WIDTH, device=device),
        _random(models, WIDTH, device=device),
        _random(models, WIDTH, device=device),
    ]

    def theirs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:]) * weight[:, None] + bias[:, None]

    numbers = tensors[0].numel()
    return Case(tensors, ops.layer_norm, theirs, 8 * numbers, 8 * numbers, has_products=False)


CASES: dict[str, Callable[[int, str], Case]] = {
    "mlp": mlp,
    "attention": attention,
    "linear_cross_entropy": linear_cross_entropy,
    "pair_embed": pair_embed,
    "layer_norm": layer_norm,
}


def measure(models: int, device: str, seconds: float) -> Iterator[tuple[str, str, float | str]]:
    """(what, how, median seconds, or why there are none) of every operation; `seconds` are spent on each figure."""
    precisions = ("ieee", "tf32x3", "tf32", "bf16") if device == "cuda" else ("ieee",)
    for name, make in CASES.items():
        case = make(models, device)
        for backward in (False, True):
            ways = {"eager": case.theirs, "torch.compile": torch.compile(case.theirs)}
            ways |= case.variants(precisions)
            for how, function in ways.items():
                what = f"ops.{name}, {'forward and backward' if backward else 'forward'}"
                try:
                    timer = Timer("step()", globals={"step": case.step(function, backward)})
                    yield what, how, timer.blocked_autorange(min_run_time=seconds).median
                except RuntimeError as error:  # no compiler, or not enough memory
                    yield what, how, str(error).strip().partition("\n")[0]


def _random(*shape: int, device: str, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(shape, device=device)).requires_grad_()
