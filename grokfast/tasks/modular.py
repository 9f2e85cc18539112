"""Modular arithmetic: all pairs (a, b) mod p and the answer of one operation (Power et al. 2022, arXiv 2201.02177)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from grokfast import checks, parts
from grokfast.tasks import polynomial
from grokfast.tasks.table import Table

OPERATIONS = ("add", "sub", "mul", "div", "a2+b2", "a2+ab+b2", "a2+ab+b2+a", "a3+ab", "a3+ab2+b", "conditional")

MAX_P = 8192  # p² pairs are enumerated; no polynomial below reaches 2^41


@parts.register("modular")
@dataclass(frozen=True, kw_only=True)
class ModularTask(Table):
    """One operation on 0..p-1, and how its table is split. See `build` for what comes out.

    Args:
        operation: "add" a+b, "sub" a-b, "mul" a·b, "div" a/b, "a2+b2", "a2+ab+b2", "a2+ab+b2+a", "a3+ab", "a3+ab2+b"
            (digits are powers), "conditional" a/b if b is odd, else a-b; or any polynomial, "a^2 + 3*a*b + 1"; all
            mod p.
        p: modulus, 2 to 8192; prime for "div" and "conditional".
        train_fraction, split_seed, stratified, label_noise, noise_seed, layout: see Table.
        b_nonzero: leave b = 0 out, as "div" always does.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, operation no polynomial, p not prime where it must be, or no training
            pair is left.
    """

    operation: str = "add"
    p: int = 97
    b_nonzero: bool = False

    def __post_init__(self) -> None:
        fields = checks.Fields(self)
        fields.integer("p", minimum=2, maximum=MAX_P)
        fields.text("operation")
        if self.operation not in OPERATIONS:
            try:
                object.__setattr__(self, "operation", polynomial.written(self.operation))
            except ValueError as error:
                names, near = ", ".join(map(repr, OPERATIONS)), checks.nearest(self.operation, OPERATIONS)
                raise ValueError(f"operation must be one of {names}, or {str(error)[18:]}{near}") from error
        if self.operation in ("div", "conditional") and not _is_prime(self.p):
            raise ValueError(f"p must be prime for operation {self.operation!r}, which divides by b, got p={self.p}")
        fields.boolean("b_nonzero")
        self.check_table()

    @property
    def b_minimum(self) -> int:
        """The smallest b: 1 where b = 0 is left out, else 0."""
        return int(self.b_nonzero or self.operation == "div")

    @property
    def n_symbols(self) -> int:
        return self.p

    @property
    def n_pairs(self) -> int:
        return self.p * (self.p - self.b_minimum)

    def table(self) -> tuple[Tensor, Tensor]:
        pairs = torch.cartesian_prod(torch.arange(self.p), torch.arange(self.b_minimum, self.p))  # [n_pairs, 2]
        return pairs, answers(self.operation, pairs[:, 0], pairs[:, 1], self.p)


def answers(operation: str, a: Tensor, b: Tensor, p: int) -> Tensor:
    """operation(a, b) mod p for int64 tensors of one shape with values in 0..p-1; p prime and b > 0 where b divides."""
    match operation:
        case "add":
            return (a + b) % p
        case "sub":
            return (a - b) % p
        case "mul":
            return a * b % p
        case "div":
            return a * _inverses(p)[b] % p
        case "a2+b2":
            return (a**2 + b**2) % p
        case "a2+ab+b2":
            return (a**2 + a * b + b**2) % p
        case "a2+ab+b2+a":
            return (a**2 + a * b + b**2 + a) % p
        case "a3+ab":
            return (a**3 + a * b) % p
        case "a3+ab2+b":
            return (a**3 + a * b**2 + b) % p
        case "conditional":
            return torch.where(b % 2 == 1, a * _inverses(p)[b], a - b) % p
    return polynomial.value(operation, a, b, p)


def _inverses(p: int) -> Tensor:
    """[p] int64, b^-1 mod p at b; 0 at b = 0, which has none."""
    return torch.tensor([0] + [pow(b, -1, p) for b in range(1, p)])


def _is_prime(n: int) -> bool:
    return n >= 2 and all(n % divisor for divisor in range(2, math.isqrt(n) + 1))
