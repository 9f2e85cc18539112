"""Row-norm clip, "clip to grok" (github.com/NiftyliuS/cliptogrok): weights that cannot grow, without weight decay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from grokfast import checks
from grokfast.parts import register
from grokfast.transforms.base import Layout, Role, Transform
from grokfast.transforms.selection import matrices

if TYPE_CHECKING:
    from torch import Tensor


@register("norm_clip")
@dataclass(frozen=True)
class NormClip(Transform):
    """After the update no row of a matrix is longer than `norm`: w_row ← w_row · min(1, norm/‖w_row‖₂).

    A row is one of [first axis, the rest]. Published with weight decay 0 and norms of 1 to 2.

    norm: above 0. parameters: which, see selection.chosen; "hidden" leaves out embeddings and the head. In `GrokFast`
    names are known where the inner optimizer was given `named_parameters()`. Other parameters than
    matrices are passed by, which is said once.
    Raises TypeError or ValueError, naming the argument.
    """

    when: ClassVar[Literal["before", "after"]] = "after"
    varies: ClassVar[frozenset[str]] = frozenset({"norm"})
    role: ClassVar[Role] = "clip"
    role_field: ClassVar[str] = "norm"

    norm: float = 2.0
    parameters: str = "hidden"

    def __post_init__(self) -> None:
        fields = checks.Fields(self)
        fields.real("norm", minimum=0, open_minimum=True)
        fields.text("parameters")

    def reach(self, layout: Layout) -> list[int]:
        own = matrices(self.parameters, layout, "NormClip")
        return [shape[1:].numel() if name in own else 0 for name, shape in zip(layout.names, layout.shapes)]

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

        tensors = layout.views(weights)
        for name in matrices(self.parameters, layout, "NormClip"):
            rows = tensors[name].flatten(2)  # [E, rows, columns]
            length = torch.linalg.vector_norm(rows, dim=2, keepdim=True)
            rows.mul_((hyper["norm"][:, :, None] / length).clamp(max=1))
