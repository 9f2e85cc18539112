"""Where the parameters of a PairMLP of one hidden layer lie in a row of a flat [E, P] tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch


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

    @property
    def n_flat(self) -> int:
        """P: a row with its padding, a multiple of 16 elements."""
        return self.n_parameters + -self.n_parameters % 16
