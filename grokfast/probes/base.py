"""`Probe`: what is measured at every evaluation, as named columns of a run's curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from grokfast.parts import Part
from grokfast.tasks.data import Data


@dataclass(frozen=True, eq=False)
class View:
    """What a probe may look at, all of it on the models' device.

    weights: each parameter by name, [E, ...]. data: the first run's data set (on the CPU), for sizes. splits: of each
    split its inputs [E, N, ...] and targets [E, N, ...], and exists, bool [E, N], or None where all rows exist.
    logits: of a split, [E, N, n_outputs]; computed when it is asked for. module: forward(inputs [E, N, ...]) -> logits.
    """

    weights: Mapping[str, Tensor]
    data: Data
    splits: Mapping[str, tuple[Tensor, Tensor, Tensor | None]]
    logits: Callable[[str], Tensor]
    module: Any


@dataclass(frozen=True)
class Probe(Part):
    """Base of the probes. One of one's own is a frozen dataclass with `columns` and `measure`.

    needs_host: whether `measure` asks for values of tensors, or for anything else that is not on the models' device.
    Other evaluations are captured in CUDA graphs with the steps before them; runs with such a probe go one step at a
    time on a GPU, too.
    """

    family: ClassVar[str] = "probe"
    needs_host: ClassVar[bool] = False

    def columns(self, data: Data) -> Sequence[str]:
        """The names of what it measures, k of them."""
        raise NotImplementedError

    def columns_of(self, data: Data, parameters: Sequence[str]) -> Sequence[str]:
        """`columns` of a model with these parameters: for a probe whose columns are of them."""
        return self.columns(data)

    def measure(self, view: View, out: Tensor) -> None:
        """Write out, float64 [E, k]; what is left is NaN, a gap in the curve. Nothing is to be returned or changed."""
        raise NotImplementedError
