"""Modular arithmetic: all pairs (a, b) mod p and the answer of one operation (Power et al. 2022, arXiv 2201.02177)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from grokfast import checks, parts
from grokfast.seeds import MAX_SEED, generator
from grokfast.tasks.data import Data, Split, Task
from grokfast.tasks.split import corrupt_labels, stratified_split, train_size, train_test_split

Operation = Literal["add", "sub", "mul", "div", "a2+b2", "a2+ab+b2", "a2+ab+b2+a", "a3+ab", "a3+ab2+b", "conditional"]
Layout = Literal["pair", "equals", "operator"]
OPERATIONS: tuple[str, ...] = get_args(Operation)
LAYOUTS: tuple[str, ...] = get_args(Layout)

MAX_P = 8192  # p² pairs are enumerated; no polynomial below reaches 2^41


@parts.register("modular")
@dataclass(frozen=True, kw_only=True)
class ModularTask(Task):
    """One operation on 0..p-1, and how its table is split. See `build` for what comes out.

    Args:
        operation: "add" a+b, "sub" a-b, "mul" a·b, "div" a/b, "a2+b2", "a2+ab+b2", "a2+ab+b2+a", "a3+ab", "a3+ab2+b"
            (digits are powers), "conditional" a/b if b is odd, else a-b; all mod p.
        p: modulus, 2 to 8192; prime for "div" and "conditional".
        train_fraction: share of the pairs shown in training, in (0, 1).
        split_seed: chooses the training pairs; None: the experiment's seed.
        stratified: split the pairs of each answer separately.
        label_noise: share of training labels replaced by a wrong answer, in [0, 1].
        noise_seed: chooses these labels and their answers; None: the experiment's seed.
        layout: "pair" is a b (T = 2), "equals" is a b = (T = 3), "operator" is a ∘ b = (T = 4).
        b_nonzero: leave b = 0 out, as "div" always does.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, p is not prime where it must be, or no training pair is left.
    """

    varies = frozenset({"train_fraction", "split_seed", "noise_seed", "label_noise"})

    operation: Operation = "add"
    p: int = 97
    train_fraction: float = 0.5
    split_seed: int | None = None
    stratified: bool = False
    label_noise: float = 0.0
    noise_seed: int | None = None
    layout: Layout = "pair"
    b_nonzero: bool = False

    def __post_init__(self) -> None:
        fields = checks.Fields(self)
        fields.choice(operation=OPERATIONS, layout=LAYOUTS)
        fields.integer("p", minimum=2, maximum=MAX_P)
        if self.operation in ("div", "conditional") and not _is_prime(self.p):
            raise ValueError(f"p must be prime for operation {self.operation!r}, which divides by b, got p={self.p}")
        fields.real("train_fraction", minimum=0, maximum=1, open_minimum=True, open_maximum=True)
        fields.integer("split_seed", "noise_seed", minimum=0, maximum=MAX_SEED, optional=True)
        fields.real("label_noise", minimum=0, maximum=1)
        fields.boolean("stratified", "b_nonzero")
        train_size(self.n_pairs, self.train_fraction)

    @property
    def seq_len(self) -> int:
        return 2 + LAYOUTS.index(self.layout)

    def n_rows(self) -> int:
        return train_size(self.n_pairs, self.train_fraction)

    @property
    def b_minimum(self) -> int:
        """The smallest b: 1 where b = 0 is left out, else 0."""
        return int(self.b_nonzero or self.operation == "div")

    @property
    def n_pairs(self) -> int:
        """How many pairs (a, b) there are, training and test together."""
        return self.p * (self.p - self.b_minimum)

    def build(self, *, seed: int = 0) -> Data:
        """Enumerate all pairs in (a, b) order, split them, corrupt the training labels, lay out the tokens.

        Token ids: operands 0..p-1, "=" is p, the operator p + 1; n_tokens counts only what the layout uses.
        floor(train_fraction · n_pairs) pairs are for training (3,830 of 12,769 at p = 113, 30%); training and test rows
        are each in (a, b) order. The split depends only on the split seed, the noise on the noise seed and the training
        set. Raises TypeError or ValueError where seed is not in 0 to 2^63 - 1.
        """
        checks.integer("seed", seed, minimum=0, maximum=MAX_SEED)
        split_seed = seed if self.split_seed is None else self.split_seed
        noise_seed = seed if self.noise_seed is None else self.noise_seed

        pairs = torch.cartesian_prod(torch.arange(self.p), torch.arange(self.b_minimum, self.p))  # [n_pairs, 2]
        targets = answers(self.operation, pairs[:, 0], pairs[:, 1], self.p)  # [n_pairs]
        split = stratified_split if self.stratified else train_test_split
        train, test = split(targets, self.train_fraction, generator(split_seed, "split"))
        train_targets, corrupted = corrupt_labels(
            targets[train], self.label_noise, self.p, generator(noise_seed, "label_noise")
        )
        return Data(
            splits={
                "train": Split(_tokens(pairs[train], self), train_targets),
                "test": Split(_tokens(pairs[test], self), targets[test]),
            },
            n_tokens=self.p + LAYOUTS.index(self.layout),
            n_answers=self.p,
            corrupted=corrupted,
        )


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
    raise ValueError(f"operation must be one of {', '.join(map(repr, OPERATIONS))}, got {operation!r}")


def _tokens(pairs: Tensor, task: ModularTask) -> Tensor:
    """Pairs [n, 2] laid out as token ids [n, T]."""
    a, b = pairs.unbind(1)
    equals, operator = torch.full_like(a, task.p), torch.full_like(a, task.p + 1)
    columns = {"pair": [a, b], "equals": [a, b, equals], "operator": [a, operator, b, equals]}
    return torch.stack(columns[task.layout], dim=1)


def _inverses(p: int) -> Tensor:
    """[p] int64, b^-1 mod p at b; 0 at b = 0, which has none."""
    return torch.tensor([0] + [pow(b, -1, p) for b in range(1, p)])


def _is_prime(n: int) -> bool:
    return n >= 2 and all(n % divisor for divisor in range(2, math.isqrt(n) + 1))
