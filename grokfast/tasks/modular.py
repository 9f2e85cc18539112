"""Modular arithmetic: all operands mod p and the answers of one operation, or of several (Power et al. 2022, arXiv
2201.02177)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from grokfast import checks, parts
from grokfast.tasks import polynomial
from grokfast.tasks.table import Table

POLYNOMIALS = {
    "add": "a+b", "sub": "a-b", "mul": "a*b", "a2+b2": "a^2+b^2", "a2+ab+b2": "a^2+a*b+b^2",
    "a2+ab+b2+a": "a^2+a*b+b^2+a", "a3+ab": "a^3+a*b", "a3+ab2+b": "a^3+a*b^2+b",
}  # fmt: skip
OPERATIONS = ("add", "sub", "mul", "div", "a2+b2", "a2+ab+b2", "a2+ab+b2+a", "a3+ab", "a3+ab2+b", "conditional")
DIVISIONS = ("div", "conditional")
OF_MANY = {"add": "+", "mul": "*"}  # named operations of any number of operands

MAX_P = 8192
MAX_ROWS = MAX_P**2  # they are enumerated; values are reduced after every operation and stay below 2^26


@parts.register("modular")
@dataclass(frozen=True, kw_only=True)
class ModularTask(Table):
    """Operations on 0..p-1, and how their tables are split. See `build` for what comes out.

    Args:
        operation: "add" a+b, "sub" a-b, "mul" a·b, "div" a/b, "a2+b2", "a2+ab+b2", "a2+ab+b2+a", "a3+ab", "a3+ab2+b"
            (digits are powers), "conditional" a/b if b is odd, else a-b; or any polynomial, "a^2 + 3*a*b + 1"; all
            mod p. Several with commas between them, "add,mul" or "(add,mul)", are one data set, each with its own
            operator token: for layout "operator".
        p: modulus, 2 to 8192; prime for "div" and "conditional".
        train_fraction, split_seed, stratified, label_noise, noise_seed, layout, augment: see Table.
        b_nonzero: leave b = 0 out, as "div" always does.
        n_operands: k, 2 to 8: for more than two, "add", "mul" and polynomials in a, b, c, ... of all k-tuples, at most
            2^26; layouts are then a b c (T = k), a b c = (k + 1), a ∘ b ∘ c = (2 k).
        p_b: b is in 0..p_b-1 instead, answers are mod p; at most p where b divides. Not with augment "negate".

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, operation no polynomial, p not prime where it must be, no training
            pair is left, or the answers are not such as augment needs.
    """

    operation: str = "add"
    p: int = 97
    b_nonzero: bool = False
    n_operands: int = parts.added(2)
    p_b: int | None = parts.added(None)

    def __post_init__(self) -> None:
        fields = checks.Fields(self)
        fields.integer("p", minimum=2, maximum=MAX_P)
        fields.integer("p_b", minimum=2, maximum=MAX_P, optional=True)
        fields.integer("n_operands", minimum=2, maximum=len(polynomial.LETTERS))
        fields.text("operation")
        names = self.operation.strip()
        if names.startswith("(") and names.endswith(")") and "," in names:
            names = names[1:-1]
        operations = [self._operation(name.strip()) for name in names.split(",")]
        object.__setattr__(self, "operation", ",".join(operations))
        if len({*operations}) < len(operations):
            raise ValueError(f"operation must have each one once, got {self.operation!r}")
        if len(operations) > 1 and self.layout != "operator":
            raise ValueError(
                f"layout must be 'operator' for several operations, whose tokens tell them apart, got {self.layout!r}"
            )
        fields.boolean("b_nonzero")
        if self.n_pairs > MAX_ROWS:
            raise ValueError(
                f"p, n_operands and operation must make at most {MAX_ROWS:,} rows, got p={self.p}, n_operands="
                f"{self.n_operands}, {self.operation!r}: {self.n_pairs:,} rows, "
                f"{8 * (self.n_operands + 1) * self.n_pairs / 1e9:,.3g} GB"
            )
        self.check_table()

    def _operation(self, said: str) -> str:
        """A name, or a polynomial as it is written."""
        k, known = self.n_operands, OPERATIONS if self.n_operands == 2 else tuple(OF_MANY)
        if said not in known:
            try:
                said = polynomial.written(said, k)
            except ValueError as error:
                names, near = ", ".join(map(repr, known)), checks.nearest(said, known)
                for_many = f" for n_operands={k}" if k > 2 else ""
                raise ValueError(f"operation{for_many} must be one of {names}, or {str(error)[18:]}{near}") from error
        if said in DIVISIONS and not _is_prime(self.p):
            raise ValueError(f"p must be prime for operation {said!r}, which divides by b, got p={self.p}")
        if said in DIVISIONS and self.p_b is not None and self.p_b > self.p:
            raise ValueError(f"p_b must be at most p={self.p} for operation {said!r}, which divides by b, "
                             f"got {self.p_b}")  # fmt: skip
        return said

    def _b_minimum(self, operation: str) -> int:
        """The smallest b: 1 where b = 0 is left out, else 0."""
        return int(self.b_nonzero or operation == "div")

    @property
    def n_symbols(self) -> int:
        return max(self.p, self.p_b or 0)

    @property
    def n_answers(self) -> int:
        return self.p

    @property
    def arity(self) -> int:
        return self.n_operands

    def sizes(self) -> Mapping[str, int]:
        others, p_b = self.p ** (self.n_operands - 1), self.p_b or self.p
        return {name: others * (p_b - self._b_minimum(name)) for name in self.operation.split(",")}

    def tables(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        found = {}
        for name in self.operation.split(","):
            b = torch.arange(self._b_minimum(name), self.p_b or self.p)
            others = [torch.arange(self.p)] * (self.n_operands - 1)
            operands = torch.cartesian_prod(others[0], b, *others[1:])  # [n, k]
            found[name] = operands, answers(name, operands, self.p)
        return found

    def negatives(self) -> Tensor:
        if self.p_b is not None:
            raise ValueError(f"augment {self.augment!r} takes operands of one modulus, got p={self.p}, p_b={self.p_b}")
        return -torch.arange(self.p) % self.p

    def difficulty(self, operation: str, operands: Tensor, answers: Tensor) -> Tensor:
        """How often the operation on integers goes round p until it is in 0..p-1: of a + b 0 or 1, of a·b up to p - 2;
        of a quotient what c·b does to be a. Counted to 2^53."""
        a, b = operands.double()[:, :2].unbind(1)
        rounds = torch.zeros_like(a) if operation in DIVISIONS else polynomial.value(
            _polynomial(operation, self.n_operands), operands.double().unbind(1), None
        )  # fmt: skip
        if operation in DIVISIONS:
            divides = b % 2 == 1 if operation == "conditional" else torch.ones_like(b, dtype=torch.bool)
            rounds = torch.where(divides, answers * b, a - b)
        most = 2.0**53
        return (rounds / self.p).floor().abs().nan_to_num(most, most).clamp(max=most)


def answers(operation: str, operands: Tensor, p: int) -> Tensor:
    """operation(a, b, ...) mod p for int64 operands [n, k], 0 or more; p prime and 0 < b < p where b divides."""
    if operation in DIVISIONS:
        a, b = operands.unbind(1)
        quotient = a * _inverses(p)[b] % p
        return quotient if operation == "div" else torch.where(b % 2 == 1, quotient, (a - b) % p)
    return polynomial.value(_polynomial(operation, operands.shape[1]), operands.unbind(1), p)


def _polynomial(operation: str, n_operands: int) -> str:
    """An operation that does not divide, written as one."""
    if n_operands > 2 and operation in OF_MANY:
        return OF_MANY[operation].join(polynomial.LETTERS[:n_operands])
    return POLYNOMIALS.get(operation, operation)


def _inverses(p: int) -> Tensor:
    """[p] int64, b^-1 mod p at b; 0 at b = 0, which has none."""
    return torch.tensor([0] + [pow(b, -1, p) for b in range(1, p)])


def _is_prime(n: int) -> bool:
    return n >= 2 and all(n % divisor for divisor in range(2, math.isqrt(n) + 1))
