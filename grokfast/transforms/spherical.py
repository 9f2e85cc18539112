"""Weights on spheres: only their directions are learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from grokfast import checks
from grokfast.parts import register
from grokfast.transforms.base import Layout, Role, Transform
from grokfast.transforms.selection import chosen, matrices

if TYPE_CHECKING:
    from torch import Tensor


@register("spherical")
@dataclass(frozen=True)
class Spherical(Transform):
    """After the update every row of a matrix, or every tensor, has the length `norm`: w ← w · norm/‖w‖₂.

    Rows of unit length as in nGPT (Loshchilov et al. 2024, arXiv 2410.01131); of the unembedding alone as in arXiv
    2603.05228, which normalises the residual stream, too, as only a model can. A row of length 0 stays. Where rows are
    meant, other parameters than matrices are passed by, which is said once.

    norm: above 0. over: "rows", of [first axis, the rest], or "tensors". parameters: which, see selection.chosen.
    Raises TypeError or ValueError, naming the argument.
    """

    when: ClassVar[Literal["before", "after"]] = "after"
    varies: ClassVar[frozenset[str]] = frozenset({"norm"})
    role: ClassVar[Role] = "clip"
    role_field: ClassVar[str] = "norm"

    norm: float = 1.0
    over: Literal["rows", "tensors"] = "rows"
    parameters: str = "matrices"

    def __post_init__(self) -> None:
        fields = checks.Fields(self)
        fields.real("norm", minimum=0, open_minimum=True)
        fields.choice(over=("rows", "tensors"))
        fields.text("parameters")

    @property
    def is_held(self) -> bool:
        return True

    def reach(self, layout: Layout) -> list[int]:
        is_of_rows = self.over == "rows"
        own = matrices(self.parameters, layout, "Spherical") if is_of_rows else chosen(self.parameters, layout)
        lengths = (shape[1:].numel() if is_of_rows else shape.numel() for shape in layout.shapes)
        return [length if name in own else 0 for name, length in zip(layout.names, lengths)]

    def apply(
        self,
        grad: Tensor,
        weights: Tensor,
        state: Mapping[str, Tensor],
        hyper: Mapping[str, Tensor],
        layout: Layout,
        step: Tensor,
    ) -> None:
        import torch

        from grokfast.transforms.sums import norm

        tensors = layout.views(weights)
        if self.over == "tensors":
            for name in chosen(self.parameters, layout):
                w = tensors[name].view(len(weights), -1)
                length = norm(w)
                w.mul_((hyper["norm"] / length).where(length > 0, 1))
            return
        for name in matrices(self.parameters, layout, "Spherical"):
            rows = tensors[name].flatten(2)  # [E, rows, columns]
            length = torch.linalg.vector_norm(rows, dim=2, keepdim=True)
            rows.mul_((hyper["norm"][:, :, None] / length).where(length > 0, 1))
