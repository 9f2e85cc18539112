"""Finite groups: all pairs of elements and the answer of one operation (Chughtai et al. 2023, arXiv 2302.03025)."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from grokfast import checks, parts
from grokfast.tasks.table import Table

GroupOperation = Literal["composition", "conjugation", "aba"]
MAX_ORDER = 2048
MAX_DEGREE = 4096  # points that a group acts on
_NAME = re.compile(r"([CDSAQ])([1-9][0-9]{0,3})")
_CYCLES = re.compile(r"(\(\s*\d+(\s+\d+)*\s*\))+")
_Q8 = "(0 2 1 3)(4 6 5 7);(0 4 1 5)(2 7 3 6)"  # left multiplication by i and j of 1, -1, i, -i, j, -j, k, -k


@parts.register("group")
@dataclass(frozen=True, kw_only=True)
class GroupTask(Table):
    """An operation of a finite group, and how its table is split. See `Table.build` for what comes out.

    Elements are permutations, numbered in lexicographic order, the identity is 0; (a∘b)(x) = a(b(x)).

    Args:
        group: "C12" cyclic, "D59" dihedral (of order 118), "S5" symmetric, "A5" alternating, "Q8" quaternions, a
            product "C2xS3", or generators in cycles, "(0 1 2);(0 1)"; of order at most 2,048.
        operation: "composition" a∘b, "conjugation" a∘b∘a⁻¹, "aba" a∘b∘a.
        train_fraction, split_seed, stratified, label_noise, noise_seed, layout, augment: see Table.

    Chughtai et al. train S5 at 40%: all 50 runs generalise, after 93,556 epochs in the median.
    Raises TypeError or ValueError where an argument is out of range, or the group is none, or too large.
    """

    group: str = "S5"
    operation: GroupOperation = "composition"

    def __post_init__(self) -> None:
        fields = checks.Fields(self)
        fields.text("group")
        fields.choice(operation=get_args(GroupOperation))
        elements(self.group)
        self.check_table()

    @property
    def n_symbols(self) -> int:
        return len(elements(self.group)[0])

    def sizes(self) -> Mapping[str, int]:
        return {self.operation: self.n_symbols**2}

    def tables(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        n, products = self.n_symbols, composition(self.group)  # [n, n]
        if self.operation != "composition":
            third = np.arange(n) if self.operation == "aba" else inverses(self.group)
            products = products[products, third[:, None]]
        pairs = torch.cartesian_prod(torch.arange(n), torch.arange(n))
        return {self.operation: (pairs, torch.from_numpy(products.reshape(-1).astype(np.int64)))}

    def negatives(self) -> Tensor:
        """The inverses."""
        return torch.from_numpy(inverses(self.group))


@functools.lru_cache(maxsize=8)
def elements(name: str) -> tuple[np.ndarray, tuple[int, ...]]:
    """A group's permutations [n, degree] in lexicographic order, and points whose images tell them apart.

    Raises ValueError where the text names no group, or a larger one.
    """
    group = _group(name)
    order = int(group.order())
    if order > MAX_ORDER:
        raise ValueError(
            f"group must have at most {MAX_ORDER:,} elements, {checks.shown(name)} has {order:,}: its table would have "
            f"{order**2:,} pairs, {24 * order**2 / 1e9:,.3g} GB"
        )
    found = np.array(sorted(group.generate_dimino(af=True)), dtype=np.int64).reshape(order, -1)
    found.setflags(write=False)
    return found, tuple(group.base) or (0,)


@functools.lru_cache(maxsize=8)
def composition(name: str) -> np.ndarray:
    """[n, n], which element a∘b is."""
    found, base = elements(name)
    weights = found.shape[1] ** np.arange(len(base))
    codes = found[:, base] @ weights
    order = np.argsort(codes)
    products = np.empty((len(found), len(found)), dtype=np.int64)
    images = found[:, base]  # of every b
    for a, permutation in enumerate(found):
        products[a] = order[np.searchsorted(codes, permutation[images] @ weights, sorter=order)]
    products.setflags(write=False)
    return products


def inverses(name: str) -> np.ndarray:
    """[n], which element a⁻¹ is."""
    return np.nonzero(composition(name) == 0)[1]  # the identity is the first in lexicographic order


def _group(name: str) -> Any:
    """sympy's group."""
    from sympy.combinatorics import Permutation, PermutationGroup
    from sympy.combinatorics.group_constructs import DirectProduct

    text = " ".join(name.split())
    if text.startswith("("):
        generators = [part.strip() for part in text.split(";")]
        if not all(map(_CYCLES.fullmatch, generators)):
            raise ValueError(f"group must have generators written '(0 1 2)(3 4);(0 1)', got {checks.shown(name)}")
        cycles = [[[*map(int, c.split())] for c in re.findall(r"\(([^)]*)\)", g)] for g in generators]
        points = [point for own in cycles for cycle in own for point in cycle]
        if max(points) >= MAX_DEGREE or any(len({p for c in own for p in c}) < sum(map(len, own)) for own in cycles):
            raise ValueError(
                f"group must have generators of disjoint cycles of points below {MAX_DEGREE}, got {checks.shown(name)}"
            )
        return PermutationGroup([Permutation(own, size=max(points) + 1) for own in cycles])
    factors = [_named(factor, name) for factor in text.replace("×", "x").split("x")]
    return factors[0] if len(factors) == 1 else DirectProduct(*factors)


def _named(factor: str, whole: str) -> Any:
    from sympy.combinatorics import named_groups

    found = _NAME.fullmatch(factor.strip())
    if found is None or (found[1] == "Q" and found[2] != "8"):
        raise ValueError(
            "group must be C<n>, D<n>, S<n>, A<n>, Q8, a product such as C2xS3, or generators such as '(0 1 2);(0 1)', "
            f"got {checks.shown(whole)}"
        )
    kind, n = found[1], int(found[2])
    if kind == "Q":
        return _group(_Q8)
    most = {"C": MAX_ORDER, "D": MAX_ORDER // 2, "S": 12, "A": 12}[kind]  # beyond, not even the order is asked for
    if n > most:
        raise ValueError(f"group must have at most {MAX_ORDER:,} elements, {kind}{n} has more")
    makers = {"C": "Cyclic", "D": "Dihedral", "S": "Symmetric", "A": "Alternating"}
    return getattr(named_groups, f"{makers[kind]}Group")(n)
