"""`Probe`: what is measured at every evaluation, as named columns of a run's curves."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from grokfast.parts import Part
from grokfast.tasks.data import Data

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class View:
    """What a probe may look at, all of it on the models' device, and `once`, what it makes at its first evaluation.

    weights: each parameter by name, [E, ...]. data: the first run's data set (on the CPU), for sizes. splits: of each
    split its inputs [E, N, ...] and targets [E, N, ...], and exists, bool [E, N], or None where all rows exist.
    logits: of a split, [E, N, n_outputs]; computed when it is asked for. module: forward(inputs [E, N, ...]) -> logits.
    """

    weights: Mapping[str, Tensor]
    data: Data
    splits: Mapping[str, tuple[Tensor, Tensor, Tensor | None]]
    logits: Callable[[str], Tensor]
    module: Any
    kept: dict[Any, Any] = field(default_factory=dict)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returned when `key` was first asked for: tables that are the same at every evaluation.

        It is kept while the same runs train, in graphs, too, and made anew where one has left.
        """
        if key not in self.kept:
            self.kept[key] = make()
        found: T = self.kept[key]
        return found


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
        """Write out, float64 [E, k]; what is left is a gap in the curve. Nothing is to be returned or changed.

        NaN or an infinity that is written is an error before the first step; later it is a gap, too, with a warning.
        """
        raise NotImplementedError
