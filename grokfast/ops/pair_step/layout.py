"""Where the parameters of a PairMLP of one hidden layer lie in a row of a flat [E, P] tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grokfast.ops.pair_step.reference import Parameters


@dataclass(frozen=True)
class Layout:
    """Where each parameter of a model begins in its row, in elements; None: there is no such bias."""

    w_a: int
    w_b: int
    b_in: int | None
    weight: int
    bias: int | None
    n_parameters: int  # what follows in a row is padding

    @classmethod
    def of(cls, shapes: Mapping[str, Sequence[int]]) -> Layout:
        """From the parameters' names and shapes without the ensemble axis, in `model.parameters()`'s order.

        Raises ValueError where these are not the parameters of a PairMLP of one hidden layer.
        """
        offsets, end = {}, 0
        for name, shape in shapes.items():
            offsets[name] = end
            end += torch.Size(shape).numel()
        needed, optional = {"w_a", "w_b", "out.weight"}, {"b_in", "out.bias"}
        if not needed <= offsets.keys() <= needed | optional:
            accepted = f"{', '.join(sorted(needed))} and optionally {', '.join(sorted(optional))}"
            raise ValueError(f"shapes must name {accepted}, got {', '.join(offsets)}")
        bias_in, bias = offsets.get("b_in"), offsets.get("out.bias")
        return cls(offsets["w_a"], offsets["w_b"], bias_in, offsets["out.weight"], bias, end)

    def parameters(self, rows: Tensor, *, n_tokens: int, n_answers: int, width: int) -> Parameters:
        """The parameters in rows [..., P], or their gradients, as views [..., *shape]."""

        def part(offset: int, *shape: int) -> Tensor:
            return rows[..., offset : offset + torch.Size(shape).numel()].unflatten(-1, shape)

        return Parameters(
            part(self.w_a, n_tokens, width),
            part(self.w_b, n_tokens, width),
            None if self.b_in is None else part(self.b_in, width),
            part(self.weight, n_answers, width),
            None if self.bias is None else part(self.bias, n_answers),
        )

    @property
    def n_flat(self) -> int:
        """P: a row with its padding, a multiple of 16 elements."""
        return self.n_parameters + -self.n_parameters % 16
