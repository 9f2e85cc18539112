"""How many linear regions of a network there are around points."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from grokfast import checks
from grokfast.seeds import generator

ROWS = 4096  # vertices of all points that are evaluated together


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
    return cuts(preactivations, points, vertices(points, radius=radius, n_vertices=n_vertices, seed=seed))


def vertices(points: Tensor, *, radius: float, n_vertices: int, seed: int = 0) -> Tensor:
    """Where the vertices stand around points [E, N, ...]: [N, n_vertices, ...], the same around those of all E."""
    radius = checks.real("radius", radius, minimum=0, open_minimum=True)
    n, shape, size = points.shape[1], points.shape[2:], points[0, 0].numel()
    pairs = checks.integer("n_vertices", n_vertices, minimum=2, maximum=2 * size) // 2
    if n_vertices % 2:
        raise ValueError(f"n_vertices must be even, a frame has two for each direction, got {n_vertices}")
    drawn = torch.randn(n, size, pairs, generator=generator(seed, "frame"), dtype=torch.float64)
    frame = radius * torch.linalg.qr(drawn).Q.mT.reshape(n, pairs, *shape)
    return torch.cat([frame, -frame], 1).to(points)


@torch.no_grad()
def cuts(preactivations: Callable[[Tensor], Sequence[Tensor]], points: Tensor, offsets: Tensor) -> Tensor:
    """Units whose preactivation has both signs among a point's vertices, mean over points: float64 [E, layers].

    points [E, N, ...]; offsets [N, V, ...]: `vertices`. As many points go together as are ROWS vertices.
    """
    n, n_vertices, counts = *offsets.shape[:2], []
    size = max(1, ROWS // n_vertices)
    for at in range(0, n, size):
        some = slice(at, at + size)
        around = points[:, some, None] + offsets[some]  # [E, n, V, ...]
        layers = preactivations(around.flatten(1, 2))
        counts.append(torch.stack([_cut(z.unflatten(1, (-1, n_vertices))).flatten(2).sum(2) for z in layers], 2))
    return torch.cat(counts, 1).double().mean(1)


def _cut(z: Tensor) -> Tensor:
    """[E, n, V, ...] -> bool [E, n, ...]."""
    return (z.amax(2) > 0) & (z.amin(2) < 0)
