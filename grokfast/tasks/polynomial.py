"""Polynomials in a, b, ... modulo p, from text: read through a whitelist of syntax nodes, nothing is evaluated."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from grokfast import checks

LONGEST = 200  # characters
HIGHEST = 1_000_000  # exponent
LETTERS = "abcdefgh"


def written(text: str, n_operands: int = 2) -> str:
    """The text without spaces, powers as "^". Raises ValueError where it is no polynomial in so many letters."""
    short = "".join(text.split()).replace("**", "^")
    if len(short) > LONGEST:
        raise ValueError(f"operation must be {_accepted(n_operands)} of at most {LONGEST} characters, got {len(short)}")
    value(short, [torch.zeros(1, dtype=torch.int64)] * n_operands, 2)
    return short


def value(text: str, operands: Sequence[Tensor], p: int | None) -> Tensor:
    """The polynomial of `written` at a, b, ..., modulo p (at most 2^31): int64 tensors of one shape.

    Where p is None it is not reduced: for operands in floating point. Raises ValueError where the text is none.
    """
    accepted, a = _accepted(len(operands)), operands[0]
    known = dict(zip(LETTERS, operands))
    try:
        tree = ast.parse(text.replace("^", "**"), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ValueError(f"operation must be {accepted}, got {checks.shown(text)}") from error

    def reduced(t: Tensor) -> Tensor:
        return t if p is None else t % p

    def at(node: ast.expr) -> Tensor:
        match node:
            case ast.Name(id=letter) if letter in known:
                return reduced(known[letter])
            case ast.Constant(value=int(number)) if not isinstance(number, bool):
                return torch.full_like(a, float(number) if p is None else number % p)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return reduced(-at(operand))
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return at(operand)
            case ast.BinOp(left=base, op=ast.Pow(), right=ast.Constant(value=int(n))) if 0 <= n <= HIGHEST:
                return _power(at(base), n, reduced)
            case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() as operator, right=right):
                return reduced(_OPERATIONS[type(operator)](at(left), at(right)))
        said = f"{checks.shown(text)} ({checks.shown(ast.unparse(node))} is none)"
        raise ValueError(f"operation must be {accepted}, powers at most {HIGHEST:,}, got {said}")

    try:
        return at(tree)
    except RecursionError as error:
        raise ValueError(f"operation must be {accepted}, got one that is nested too deeply") from error


_OPERATIONS: dict[Any, Callable[[Tensor, Tensor], Tensor]] = {
    ast.Add: torch.add, ast.Sub: torch.sub, ast.Mult: torch.mul
}  # fmt: skip


def _accepted(n_operands: int) -> str:
    letters = ", ".join(LETTERS[: n_operands - 1])
    return f"a polynomial in {letters} and {LETTERS[n_operands - 1]} such as 'a^2 + 3*a*b + 1'"


def _power(base: Tensor, n: int, reduced: Callable[[Tensor], Tensor]) -> Tensor:
    """base^n by repeated squaring."""
    found = reduced(torch.ones_like(base))
    while n:
        if n & 1:
            found = reduced(found * base)
        base, n = reduced(base * base), n >> 1
    return found
