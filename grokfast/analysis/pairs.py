"""The logits of all pairs of operands, and the cross entropies of what is left of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grokfast.measures.progress import order_by_product, product_means
from grokfast.tasks.data import Data
from grokfast.tasks.operands import operand_columns

MAX_KEPT = 2**27  # numbers of all models together: half a GB of fp32
PIECE = 4096  # rows of all models evaluated at a time


@dataclass(frozen=True, eq=False)
class Pairs:
    """One model's logits of all n² pairs, in (a, b) order.

    logits [n², C]; means [n, C], fp64, of those less each row's mean, over the pairs of each product; energy: ‖L‖²,
    less the mean over pairs, too.
    train, test: of each row of a split its pair, the product and its target [N].
    """

    logits: Tensor
    means: Tensor
    energy: float
    train: tuple[Tensor, Tensor, Tensor]
    test: tuple[Tensor, Tensor, Tensor]

    def loss(self, split: str) -> float:
        """The cross entropy of a split."""
        pairs, _, targets = getattr(self, split)
        return _cross_entropy(self.logits[pairs], targets)

    def restricted(self, component: Tensor) -> float:
        """The test cross entropy of a component [n, C] of the logits, a function of the product, and the mean of the
        rest."""
        _, products, targets = self.test
        constant = self.means.mean(0) - component.mean(0)
        return _cross_entropy((component + constant)[products], targets)

    def excluded(self, component: Tensor) -> float:
        """The training cross entropy of the logits without the component."""
        pairs, products, targets = self.train
        return _cross_entropy(self.logits[pairs] - component.to(self.logits.dtype)[products], targets)


def _cross_entropy(logits: Tensor, targets: Tensor) -> float:
    return torch.nn.functional.cross_entropy(logits.double(), targets).item()


@torch.no_grad()
def of_all_pairs(module: Any, data: Data, n_models: int, what: str, compute: Callable[[Tensor], Tensor]) -> Tensor:
    """What `compute` makes of inputs [N, T], [E, N, C], of all n² pairs of operands in (a, b) order: [E, n², C].

    In pieces; but what they are together is kept. Raises ValueError, which says how many `what` that would be and how
    large, where they are too many.
    """
    n, first = data.n_answers, next(module.parameters())
    inputs = data.train.inputs[:1].repeat(n * n, 1)
    inputs[:, operand_columns(data)] = torch.cartesian_prod(torch.arange(n), torch.arange(n))
    inputs = inputs.to(first.device)
    width = compute(inputs[:1]).shape[-1]
    if (count := n_models * n * n * width) > MAX_KEPT:
        size = count * first.element_size() / 1e9
        raise ValueError(
            f"task must have at most {MAX_KEPT:,} {what} of all pairs, all models together: {n_models} x {n}² pairs x "
            f"{width} are {count:,}, {size:,.2g} GB"
        )
    found = first.new_empty(n_models, n * n, width)
    size = max(1, PIECE // n_models)
    for at in range(0, n * n, size):
        found[:, at : at + size] = compute(inputs[at : at + size])
    return found


@torch.no_grad()
def of_models(module: Any, data: Sequence[Data], products: Tensor) -> list[Pairs]:
    """Of each model of the ensemble its logits. products: int64 [n, n], the answer to each pair.

    Raises ValueError where the data are not of two operands and that answer, or the logits would be too many.
    """
    n, E = len(products), len(data)
    columns = operand_columns(data[0])
    for own in data:
        a, b = own.test.inputs[:, columns].unbind(1)
        is_pairs = own.n_answers == n and all(int(s.inputs[:, columns].max()) < n for s in own.splits.values())
        if not is_pairs or not torch.equal(products[a, b], own.test.targets):
            raise ValueError(f"task must have the answers of this operation on 0..{n - 1}, it has others")
    first = next(module.parameters())
    logits = of_all_pairs(module, data[0], E, "logits", module)
    flat = products.reshape(-1).to(first.device)
    order, found = order_by_product(flat, n), []
    for own, of_pairs in zip(data, logits):
        rows = {}
        for name in ("train", "test"):
            a, b = own.splits[name].inputs[:, columns].to(first.device).unbind(1)
            rows[name] = (a * n + b, flat[a * n + b], own.splits[name].targets.to(first.device))
        means, energy = product_means(of_pairs, order, n)
        found.append(Pairs(of_pairs, means, energy.item(), **rows))
    return found
