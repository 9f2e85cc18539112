"""Characters of a finite group's irreducible representations, from its multiplication table."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from grokfast.seeds import generator

MAX_ORDER = 2048
_DRAWS = 5
_ERROR = 1e-6


class Characters(NamedTuple):
    """values [R, n], complex fp64, χ_ρ(g); degrees [R], int64, χ_ρ(1); classes [n], int64, of each element.

    Sorted by degree, then by Re and Im χ of the elements in order, the largest first: the trivial one is the first.
    """

    values: Tensor
    degrees: Tensor
    classes: Tensor


def characters(table: Tensor) -> Characters:
    """The R irreducible characters of the group whose product gh is table[g, h], int64 [n, n], n at most 2,048.

    After Burnside (1911) and Dixon (1967): they are the common eigenvectors of the class sums. Here of one Hermitian
    sum of them at random, f ∗ φ over the class functions φ with f(g⁻¹) = f̄(g), so that they come out orthonormal.
    Raises TypeError or ValueError where `table` is none of a group, or too large.
    """
    if not isinstance(table, Tensor) or table.dtype != torch.int64:
        got = table.dtype if isinstance(table, Tensor) else type(table).__name__
        raise TypeError(f"table must be an int64 tensor, got {got}")
    n = len(table) if table.ndim else 0
    if table.ndim != 2 or table.shape[1] != n or not 1 <= n <= MAX_ORDER:
        raise ValueError(f"table must be [n, n], n from 1 to {MAX_ORDER:,}, got {list(table.shape)}")
    table, r = table.cpu(), torch.arange(n)
    identities = (table == r).all(1).nonzero()[:, 0]
    if not (len(identities) == 1 and all(torch.equal(t.sort().values, r.expand(n, n)) for t in (table, table.T))):
        raise ValueError("table must be a group's: of one identity, each row and column with every element once")
    identity = int(identities[0])
    inverse = (table == identity).int().argmax(1)
    conjugates = table[table, inverse[:, None]]  # [g, h], g h g⁻¹
    firsts, classes = conjugates.amin(0).unique(return_inverse=True)
    sizes = classes.bincount().double()
    for draw in range(_DRAWS):  # two eigenvalues may come close by chance
        found = _eigenvectors(table, inverse, firsts, classes, sizes, draw)
        values = found.T[:, classes] * (n / sizes[classes]).sqrt()
        values = values * (values[:, identity].conj() / values[:, identity].abs())[:, None]
        degrees = values[:, identity].real.round()
        is_right = degrees.square().sum() == n and (values[:, identity].real - degrees).abs().max() < _ERROR
        # χ is the character of what it projects on: χ ∗ χ = n/χ(1) χ
        if is_right and _is_idempotent(values, degrees, table, inverse, firsts, classes):
            break
    else:
        raise ValueError("table must be a group's: no characters belong to its classes")
    columns = torch.stack([values.real, values.imag], -1).flatten(1)
    keys = torch.cat([-degrees[:, None], columns.mul(1e5).round()], 1).tolist()
    order = sorted(range(len(values)), key=lambda i: keys[i], reverse=True)
    return Characters(values[order], degrees[order].long(), classes)


def _eigenvectors(
    table: Tensor, inverse: Tensor, firsts: Tensor, classes: Tensor, sizes: Tensor, draw: int
) -> Tensor:  # fmt: skip
    """[R, R], each column one of f ∗, in the basis of the classes' indicators over the roots of their sizes."""
    of_class = torch.randn(len(sizes), dtype=torch.complex128, generator=generator(0, "characters", draw))
    f = of_class[classes] + of_class[classes[inverse]].conj()
    sums = _by_class(f[table[firsts][:, inverse]], classes, len(sizes))  # [i, j], Σ f(g_i h⁻¹) over h in class j
    matrix = sums * (sizes[:, None] / sizes).sqrt()
    return torch.linalg.eigh((matrix + matrix.mH) / 2).eigenvectors


def _is_idempotent(
    values: Tensor, degrees: Tensor, table: Tensor, inverse: Tensor, firsts: Tensor, classes: Tensor
) -> bool:
    """Whether χ ∗ χ is n/χ(1) χ, for one sum of all: Σ w_ρ χ_ρ, w at random."""
    weights = torch.randn(len(values), dtype=torch.float64, generator=generator(0, "characters.check"))
    one = (weights[:, None] * values).sum(0)
    squared = one[table[firsts][:, inverse]] @ one
    expected = ((weights.square() / degrees)[:, None] * values).sum(0)[firsts] * len(table)
    return bool((squared - expected).abs().max() <= _ERROR * expected.abs().max().clamp(min=1))


def _by_class(rows: Tensor, classes: Tensor, n_classes: int) -> Tensor:
    """[R, n] -> [R, n_classes], summed over the elements of each class."""
    found = torch.zeros(len(rows), n_classes, dtype=rows.dtype)
    return found.index_add_(1, classes, rows)
