"""grokfast's layers in the places of torch's on a CPU, where a swap is to cost nothing: attention, MLP, a GPT's block.

python -m benchmarks.bench_layers [--rounds N] [--out FILE]

The rule of grokfast.ops.dispatch, which sends small products and attention to torch's own layers, comes from here: the
contender "extension" is the C++ extension at any size. Run it with OMP_WAIT_POLICY=passive and without.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import grokfast
from benchmarks.interleave import Contender, interleave, report, write
from grokfast import ops
from grokfast.ops import dispatch

TITLE = "Layers on a CPU"
SEQUENCES = [(64, 4, 3, 32), (512, 4, 3, 32), (64, 4, 16, 32), (16, 4, 64, 32), (4, 4, 256, 64)]  # B, H, T, dh
ROWS = [(64, 64, 256), *((n, 128, 512) for n in (64, 256, 1024, 2048, 4096)), (64, 256, 1024)]  # N, d, h
BLOCKS = [(64, 3, 128, 4), (16, 64, 128, 4), (4, 256, 128, 4)]  # B, T, d, heads
REPEAT = 1 << 24  # multiplications: smaller steps are repeated, so that a round is no shorter


class CausalSelfAttention(nn.Module):
    """As nanoGPT has it, without dropout."""

    def __init__(self, d: int, n_heads: int) -> None:
        super().__init__()
        self.c_attn, self.c_proj, self.n_heads = nn.Linear(d, 3 * d), nn.Linear(d, d), n_heads

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.size()
        q, k, v = self.c_attn(x).split(d, dim=2)
        k = k.view(b, t, self.n_heads, d // self.n_heads).transpose(1, 2)
        q = q.view(b, t, self.n_heads, d // self.n_heads).transpose(1, 2)
        v = v.view(b, t, self.n_heads, d // self.n_heads).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=None, dropout_p=0, is_causal=True)
        return self.c_proj(y.transpose(1, 2).contiguous().view(b, t, d))


class Block(nn.Module):
    """x + attention(norm(x)), x + mlp(norm(x))."""

    def __init__(self, d: int, attention: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.ln_1, self.attn, self.ln_2, self.mlp = nn.LayerNorm(d), attention, nn.LayerNorm(d), mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


def stack(d: int, h: int, activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(d, h), activation, nn.Linear(h, d))


def contender(function: Callable[..., Tensor], inputs: list[Tensor], backward: bool, work: int) -> Contender:
    """`function` of the inputs, and with `backward` the gradients of these and of its parameters."""
    repeat = max(1, REPEAT // work)
    if not backward:
        inputs = [t.detach() for t in inputs]

        def forward() -> None:
            with torch.no_grad():
                function(*inputs)

        return Contender(forward, repeat=repeat)
    wanted = [*inputs, *(function.parameters() if isinstance(function, nn.Module) else ())]
    grad = torch.randn_like(function(*inputs))
    return Contender(lambda: torch.autograd.grad(function(*inputs), wanted, grad), repeat=repeat)


def by_the_extension(layer: nn.Module) -> Callable[..., Tensor]:
    class Forced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            rule, dispatch.TORCHS_OWN["mlp"] = dispatch.TORCHS_OWN["mlp"], 0
            try:
                return self.layer(x)
            finally:
                dispatch.TORCHS_OWN["mlp"] = rule

    return Forced()


def attention(b: int, h: int, t: int, dh: int) -> tuple[dict[str, Any], list[Tensor], int]:
    packed = torch.randn(b, t, 3, h, dh)
    inputs = [packed[:, :, i].transpose(1, 2).requires_grad_() for i in range(3)]

    def torchs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ops.attention(q, k, v, backend="reference")

    return {"torch": torchs, "grokfast": ops.attention, "plain PyTorch": plain}, inputs, b * h * t * t * dh


def mlp(n: int, d: int, h: int, activation: nn.Module) -> tuple[dict[str, Any], list[Tensor], int]:
    torchs = stack(d, h, activation)
    ours = grokfast.nn.MLP.from_linear(torchs)
    contenders = {"torch": torchs, "grokfast": ours, "extension": by_the_extension(ours)}
    return contenders, [torch.randn(n, d, requires_grad=True)], n * d * h


def block(b: int, t: int, d: int, n_heads: int) -> tuple[dict[str, Any], list[Tensor], int]:
    torchs = Block(d, CausalSelfAttention(d, n_heads), stack(d, 4 * d, nn.GELU()))
    ours = Block(d, grokfast.nn.Attention(d, n_heads), grokfast.nn.MLP.from_linear(stack(d, 4 * d, nn.GELU())))
    return {"torch": torchs, "grokfast": ours}, [torch.randn(b, t, d, requires_grad=True)], 12 * b * t * d * d


def sections() -> dict[str, Callable[[], tuple[dict[str, Any], list[Tensor], int]]]:
    made: dict[str, Callable[[], Any]] = {}
    for b, h, t, dh in SEQUENCES:
        made[f"attention, B {b}, H {h}, T {t}, dh {dh}"] = lambda b=b, h=h, t=t, dh=dh: attention(b, h, t, dh)
    for (n, d, h), act in itertools.product(ROWS, (nn.ReLU, nn.GELU)):
        made[f"MLP, N {n}, d {d}, h {h}, {act.__name__}"] = lambda n=n, d=d, h=h, act=act: mlp(n, d, h, act())
    for b, t, d, heads in BLOCKS:
        made[f"block of nanoGPT, B {b}, T {t}, d {d}"] = lambda b=b, t=t, d=d, heads=heads: block(b, t, d, heads)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    found: dict[str, list[dict[str, Any]]] = {}
    for (name, make), backward in itertools.product(sections().items(), (False, True)):
        functions, inputs, work = make()
        made = {one: contender(function, inputs, backward, work) for one, function in functions.items()}
        section = f"{name}, {'forward and backward' if backward else 'forward'}"
        found[section] = interleave(made, baseline="torch", rounds=arguments.rounds)
        print(section, {row["name"]: row["ratio"] for row in found[section]}, flush=True)
        if arguments.out:
            write(TITLE, found, arguments.out)
    report(TITLE, found, arguments.out)


if __name__ == "__main__":
    main()
