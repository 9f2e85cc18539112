"""Polynomials in a and b modulo p, from text: read through a whitelist of syntax nodes, nothing is evaluated."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from grokfast import checks

LONGEST = 200  # characters
HIGHEST = 1_000_000  # exponent
_ACCEPTED = "a polynomial in a and b such as 'a^2 + 3*a*b + 1'"


def written(text: str) -> str:
    """The text without spaces, powers as "^". Raises ValueError where it is no polynomial in a and b."""
    short = "".join(text.split()).replace("**", "^")
    if len(short) > LONGEST:
        raise ValueError(f"operation must be {_ACCEPTED} of at most {LONGEST} characters, got {len(short)}")
    value(short, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), 2)
    return short


def value(text: str, a: Tensor, b: Tensor, p: int) -> Tensor:
    """The polynomial of `written` at int64 tensors a and b of one shape, modulo p (at most 2^31).

    Raises ValueError where the text is none.
    """
    try:
        tree = ast.parse(text.replace("^", "**"), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ValueError(f"operation must be {_ACCEPTED}, got {checks.shown(text)}") from error

    def at(node: ast.expr) -> Tensor:
        match node:
            case ast.Name(id="a"):
                return a % p
            case ast.Name(id="b"):
                return b % p
            case ast.Constant(value=int(number)) if not isinstance(number, bool):
                return torch.full_like(a, number % p)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -at(operand) % p
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return at(operand)
            case ast.BinOp(left=base, op=ast.Pow(), right=ast.Constant(value=int(n))) if 0 <= n <= HIGHEST:
                return _power(at(base), n, p)
            case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() as operator, right=right):
                return _OPERATIONS[type(operator)](at(left), at(right)) % p
        said = f"{checks.shown(text)} ({checks.shown(ast.unparse(node))} is none)"
        raise ValueError(f"operation must be {_ACCEPTED}, powers at most {HIGHEST:,}, got {said}")

    try:
        return at(tree)
    except RecursionError as error:
        raise ValueError(f"operation must be {_ACCEPTED}, got one that is nested too deeply") from error


_OPERATIONS: dict[Any, Callable[[Tensor, Tensor], Tensor]] = {
    ast.Add: torch.add, ast.Sub: torch.sub, ast.Mult: torch.mul
}  # fmt: skip


def _power(base: Tensor, n: int, p: int) -> Tensor:
    """base^n modulo p by repeated squaring."""
    found = torch.ones_like(base) % p
    while n:
        if n & 1:
            found = found * base % p
        base, n = base * base % p, n >> 1
    return found
