"""How many linear regions of a network there are around points."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from grokfast import checks
from grokfast.seeds import generator


@torch.no_grad()
def local_complexity(
    preactivations: Callable[[Tensor], Sequence[Tensor]],
    points: Tensor,
    *,
    radius: float,
    n_vertices: int,
    seed: int = 0,
) -> Tensor:
    """Hyperplanes that cut a small neighbourhood of a point, mean over points (Humayun et al. 2024, arXiv 2402.15555,
    section 2): points [E, N, ...] -> float64 [E, layers].

    Around each point, of D numbers, stand n_vertices vertices x ± radius · v_i of a random orthonormal frame v_1, ...,
    v_(n_vertices/2). A unit counts where its preactivation has both signs among them.

    preactivations: of points [E, M, ...] those of each layer, [E, M, ..., width]; units at several positions of a
    sequence count apart. n_vertices: even, 2 to 2 D. seed: draws the frames, the same ones for all E.
    Raises TypeError or ValueError where an argument has the wrong type or is out of range.
    """
    if not isinstance(points, Tensor) or not points.is_floating_point():
        raise TypeError(f"points must be a floating-point tensor, got {getattr(points, 'dtype', checks.shown(points))}")
    if points.ndim < 3 or 0 in points.shape:
        raise ValueError(f"points must be [E, N, ...], none of them empty, got {[*points.shape]}")
    radius = checks.real("radius", radius, minimum=0, open_minimum=True)
    n, shape = points.shape[1], points.shape[2:]
    size = points[0, 0].numel()
    pairs = checks.integer("n_vertices", n_vertices, minimum=2, maximum=2 * size) // 2
    if n_vertices % 2:
        raise ValueError(f"n_vertices must be even, a frame has two for each direction, got {n_vertices}")
    drawn = torch.randn(n, size, pairs, generator=generator(seed, "frame"), dtype=torch.float64)
    frame = radius * torch.linalg.qr(drawn).Q.mT.reshape(n, pairs, *shape)
    offsets = torch.cat([frame, -frame], 1).to(points)  # [N, V, ...]
    counts = []
    for i in range(n):  # one point at a time: V times the memory of a row
        layers = preactivations(points[:, i, None] + offsets[i])
        counts.append(torch.stack([_cut(z).flatten(1).sum(1) for z in layers], 1))
    return torch.stack(counts).double().mean(0)


def _cut(z: Tensor) -> Tensor:
    """[E, V, ...] -> bool [E, ...]."""
    return (z > 0).any(1) & (z < 0).any(1)
