"""`Transform`: what is done to gradients before an optimizer's update, or to weights after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from grokfast.parts import Part

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Layout(NamedTuple):
    """Where parameters lie in a row of flat [E, P]: of each its name, its first place and its shape without E."""

    names: tuple[str, ...]
    offsets: tuple[int, ...]
    shapes: tuple[torch.Size, ...]

    @classmethod
    def of(cls, shapes: Mapping[str, Sequence[int]]) -> Layout:
        """That of parameters of these shapes, one after the other."""
        import torch

        sizes = [torch.Size(shape) for shape in shapes.values()]
        return cls(tuple(shapes), tuple(accumulate((s.numel() for s in sizes[:-1]), initial=0)), tuple(sizes))

    @property
    def size(self) -> int:
        """P."""
        return sum(shape.numel() for shape in self.shapes)

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Each parameter by name, [E, *shape], as a view of flat [E, P]."""
        parts = zip(self.names, self.offsets, self.shapes)
        return {name: flat[:, at : at + shape.numel()].view(len(flat), *shape) for name, at, shape in parts}


@dataclass(frozen=True)
class Transform(Part):
    """Base of the transforms. One of one's own is a frozen dataclass with an `apply`, and a `state` if it keeps any.

    when: "before" the update: `apply` changes grad in place; "after" it: `apply` changes weights in place.
    varies: the fields that may differ between runs; they reach `apply` as tensors in `hyper`.
    Nothing may ask the host for a tensor's values: steps are captured in CUDA graphs. A transform that must says so in
    `needs_host`, and is then never captured.
    """

    family: ClassVar[str] = "transform"
    when: ClassVar[Literal["before", "after"]] = "before"
    needs_host: ClassVar[bool] = False

    def state(self, layout: Layout) -> Mapping[str, tuple[int, ...]]:
        """The tensors that it keeps of a model, zeros at first: name -> shape without E."""
        return {}

    def apply(
        self,
        grad: Tensor,
        weights: Tensor,
        state: Mapping[str, Tensor],
        hyper: Mapping[str, Tensor],
        layout: Layout,
        step: Tensor,
    ) -> None:
        """Change grad or weights, [E, P] both, in place, and the state [E, *shape], too.

        hyper: of each field in `varies` its values [E, 1], in the type of the weights. step: int64 [E, 1], the steps
        taken before this one.
        """
        raise NotImplementedError("it has none")
