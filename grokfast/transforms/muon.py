"""Muon: matrices move by their momentum made orthogonal, everything else as with AdamW."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from grokfast import checks, parts
from grokfast.transforms.base import Layout
from grokfast.transforms.optimizers import Optimizer, check_betas
from grokfast.transforms.selection import chosen

if TYPE_CHECKING:
    from torch import Tensor

COEFFICIENTS = (3.4445, -4.775, 2.0315)
CACHED = 2**17  # numbers that a CPU works on at a time: 48 matrices of 97 × 256 take 30 ms rather than 39
EPS = 1e-7  # below this norm a matrix is not divided by its own
Adjustment = Literal["original", "match_rms_adamw"]
Precision = Literal["weights", "bfloat16"]


@parts.register("muon")
@dataclass(frozen=True, kw_only=True)
class Muon(Optimizer):
    """Matrices move by orthogonalised momentum (Jordan et al. 2024, kellerjordan.github.io/posts/muon), as in
    torch.optim.Muon: m ← μ m + (1 − μ) g; u = μ m + (1 − μ) g with Nesterov's form, else m; w ← (1 − lr·weight_decay) w
    − lr·s·NS(u). NS is `newton_schulz`, s depends on the matrix's shape (`adjusted`). Other parameters take AdamW's
    step, as torch.optim.AdamW, at the rate lr·adamw_scale.

    A parameter of more than two axes is a stack of matrices, those of its last two. Matrices of one shape, of all
    models, are multiplied together. All of it is torch operations: it is in no fused update.

    Args:
        momentum, nesterov: μ, and whether u looks ahead.
        orthogonalized: the parameters that are matrices to it: "matrices", those of two axes or more; "hidden", of
            these neither embeddings nor heads; or patterns of names, see selection.chosen. What is no matrix takes
            AdamW's step after all, which a warning says once.
        adjust_lr_fn: "original", s = √max(1, rows/columns); "match_rms_adamw", s = .2 √max(rows, columns), with which
            rates and weight decay are AdamW's (Liu et al. 2025, arXiv 2502.16982).
        ns_steps: of Newton and Schulz.
        ns_precision: of their products: "weights", that of the weights, or "bfloat16", as torch.optim.Muon has it. That
            is a relative error of 1e-2 a step, and faster where the processor multiplies bfloat16.
        adamw_scale, betas, eps: of AdamW's step.
    """

    varies: ClassVar[frozenset[str]] = frozenset({"lr", "weight_decay", "momentum", "betas", "eps", "adamw_scale"})
    rule: ClassVar[str] = ""

    momentum: float = 0.95
    nesterov: bool = True
    orthogonalized: str = "matrices"
    adjust_lr_fn: Adjustment = "original"
    ns_steps: int = 5
    ns_precision: Precision = "weights"
    adamw_scale: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_betas(self)
        fields = checks.Fields(self, "optimizer.")
        fields.real("momentum", minimum=0, maximum=1, open_maximum=True)
        fields.real("eps", "adamw_scale", minimum=0, maximum=checks.LARGEST_REAL)
        fields.integer("ns_steps", minimum=1, maximum=99)
        fields.boolean("nesterov")
        fields.text("orthogonalized")
        fields.choice(adjust_lr_fn=("original", "match_rms_adamw"), ns_precision=("weights", "bfloat16"))

    def state(self, layout: Layout) -> Mapping[str, tuple[int, ...]]:
        """Of matrices, shape after shape, a momentum; of the others, one after the other, AdamW's two averages."""
        groups, others = _split(layout, self.orthogonalized)
        n_others = layout.size - (n := sum(group.size for group in groups))
        return {"momentum_buffer": (n,)} | (dict.fromkeys(("exp_avg", "exp_avg_sq"), (n_others,)) if others else {})

    def update(
        self,
        grad: Tensor,
        weights: Tensor,
        state: Mapping[str, Tensor],
        hyper: Mapping[str, Tensor],
        layout: Layout,
        step: Tensor,
    ) -> None:
        import torch

        groups, others = _split(layout, self.orthogonalized)
        w, g, lr = layout.views(weights), layout.views(grad), hyper["lr"].to(weights.dtype)
        kept = 1 - (hyper["lr"] * hyper["weight_decay"]).to(weights.dtype)
        kept_others = 1 - (hyper["lr"] * hyper["adamw_scale"] * hyper["weight_decay"]).to(weights.dtype)
        for name in chosen(self.decayed, layout, "optimizer.decayed"):
            w[name].mul_(_over(kept_others if name in others else kept, w[name]))
        if groups:
            buffer, share = state["momentum_buffer"], (1 - hyper["momentum"]).to(weights.dtype)
            raw = torch.cat([g[name].reshape(len(grad), -1) for group in groups for name in group.names], 1)
            buffer.lerp_(raw, share.expand_as(raw))
            moved = buffer.lerp(raw, share.expand_as(raw)) if self.nesterov else buffer
            at = 0
            for group in groups:
                own = moved[:, at : at + group.size].reshape(-1, *group.shape)
                made = newton_schulz(own, self.ns_steps, self.ns_precision).reshape(len(weights), group.size)
                made = made * (lr * adjusted(group.shape, self.adjust_lr_fn))
                for name, of_one in zip(group.names, made.split([w[name][0].numel() for name in group.names], 1)):
                    w[name].sub_(of_one.view_as(w[name]))
                at += group.size
        if others:
            from grokfast.transforms import rules

            flat, raw = (torch.cat([of[name].reshape(len(grad), -1) for name in others], 1) for of in (w, g))
            rules.adam(
                flat, raw, state["exp_avg"], state["exp_avg_sq"], step + 1, lr=hyper["lr"] * hyper["adamw_scale"],
                beta1=hyper["beta1"], beta2=hyper["beta2"], eps=hyper["eps"],
                weight_decay=torch.zeros_like(hyper["lr"]), decoupled=True,
            )  # fmt: skip
            for name, of_one in zip(others, flat.split([w[name][0].numel() for name in others], 1)):
                w[name].copy_(of_one.view_as(w[name]))


def newton_schulz(x: Tensor, steps: int = 5, precision: Precision = "weights") -> Tensor:
    """About U Vᵀ of each matrix U S Vᵀ of x [B, m, n], singular values near 1: x ← x / ‖x‖, then `steps` times
    x ← a x + (b A + c A²) x with A = x xᵀ; where there are more rows than columns, of the transpose.

    Where a matrix is twice as wide as high A is made once: P = a + b A + c A² commutes with it, so A ← P A P, and x is
    multiplied by the product of all P at the end, which is half of the work. In bfloat16 that would round too much.
    """
    import torch

    if x.is_cpu and len(x) > (most := max(1, CACHED // max(1, x[0].numel()))):
        return torch.cat([newton_schulz(part, steps, precision) for part in x.split(most)])
    a, b, c = COEFFICIENTS
    is_tall = x.shape[-2] > x.shape[-1]
    own = (x.mT if is_tall else x).to(torch.bfloat16 if precision == "bfloat16" else x.dtype)
    own = own / torch.linalg.vector_norm(own, dim=(-2, -1), keepdim=True).clamp(min=EPS)
    if own.shape[-1] >= 2 * own.shape[-2] and own.dtype is not torch.bfloat16:
        square, product = own @ own.mT, None
        for i in range(steps):
            factor = torch.baddbmm(square, square, square, beta=b, alpha=c)
            factor.diagonal(dim1=-2, dim2=-1).add_(a)
            product = factor if product is None else factor @ product
            square = factor @ square @ factor if i < steps - 1 else square
        own = product @ own
    else:
        for _ in range(steps):
            square = own @ own.mT
            own = torch.baddbmm(own, torch.baddbmm(square, square, square, beta=b, alpha=c), own, beta=a)
    return (own.mT if is_tall else own).to(x.dtype)


def adjusted(shape: tuple[int, ...], adjust_lr_fn: Adjustment) -> float:
    """What the rate is multiplied by for a matrix of so many rows and columns."""
    rows, columns = shape[-2:]
    return math.sqrt(max(1, rows / columns)) if adjust_lr_fn == "original" else 0.2 * math.sqrt(max(rows, columns))


class Group(NamedTuple):
    """Parameters that are matrices of one shape; size: of all of them together."""

    shape: tuple[int, int]
    names: tuple[str, ...]
    size: int


@functools.lru_cache
def _split(layout: Layout, patterns: str) -> tuple[list[Group], list[str]]:
    """The matrices by their shapes, and the others. Warns, once, of what is named and no matrix."""
    shapes = dict(zip(layout.names, layout.shapes))
    named = layout.names if patterns == "matrices" else chosen(patterns, layout, "optimizer.orthogonalized")
    flat = [name for name in named if len(shapes[name]) < 2]
    if flat:
        warnings.warn(f"Muon passes by {', '.join(flat)}, no matrices: they take AdamW's step", stacklevel=2)
    groups: dict[Any, list[str]] = {}
    for name in named:
        if name not in flat:
            groups.setdefault(tuple(shapes[name][-2:]), []).append(name)
    of_shapes = [Group(s, tuple(own), sum(shapes[n].numel() for n in own)) for s, own in groups.items()]
    return of_shapes, [name for name in shapes if name not in named or name in flat]


def _over(values: Tensor, t: Tensor) -> Tensor:
    """[E, 1] for t [E, ...]."""
    return values.view(-1, *[1] * (t.ndim - 1))
