"""`Model` and `Step`: what learns, and the ways to compute its loss and gradient.

The first Step that takes a run is the one that runs it; what it says of itself is what `doctor`, the display and the
memory plan say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch

from grokfast.losses import Loss
from grokfast.parts import Part
from grokfast.tasks.data import Data, Task


class Need(NamedTuple):
    """Bytes of device memory for one run: what it holds throughout, and what a step or an evaluation takes beside."""

    held: int
    passing: int


@dataclass(frozen=True)
class Model(Part):
    """Base of the models. One of one's own is a frozen dataclass with a `build`."""

    family: ClassVar[str] = "model"

    def why_not_task(self, task: Task) -> str:
        """Why the model does not take the task's data, where that can be said before they are made; empty otherwise."""
        return ""

    def why_not(self, data: Data) -> str:
        """Why the model does not take such data, with their shapes; empty where it does."""
        return ""

    def build(self, data: Data, *, seeds: Sequence[int] = (0,), dtype: torch.dtype = torch.float32) -> Any:
        """E = len(seeds) models as a module: parameters [E, ...], forward(inputs [E, B, ...]) -> [E, B, n_outputs]."""
        raise NotImplementedError

    def steps(self) -> Sequence[type[Any]]:
        """The Steps that may compute it, the fastest first, plain PyTorch last."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Spec:
    """What decides which Step computes a run.

    data: that of the largest run. batch_size: rows of a step, None: all. is_reference: plain PyTorch is asked for.
    """

    model: Model
    loss: Loss
    data: Data
    device: torch.device
    dtype: torch.dtype
    products: str
    batch_size: int | None
    is_reference: bool
