"""What one looks at when one has no question yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from grokfast import parts
from grokfast.probes.base import Probe, View
from grokfast.probes.local_complexity import LocalComplexity
from grokfast.probes.norms import Norms
from grokfast.probes.spectra import Spectra
from grokfast.tasks.data import Data

MEMBERS: tuple[Probe, ...] = (Norms(), Spectra(), LocalComplexity())


@parts.register("default")
@dataclass(frozen=True)
class Default(Probe):
    """norms, spectra and local_complexity, those of them that the task has, with the options that they have by default.

    Together they add less than 5% to `quick` and `nanda`; `grokfast doctor` says what here. What a model of one's own
    does not tell, its embeddings or what its neurons read, is a gap.
    """

    def columns(self, data: Data) -> Sequence[str]:
        return self.columns_of(data, [])

    def columns_of(self, data: Data, parameters: Sequence[str]) -> Sequence[str]:
        return [name for _, columns in _fitting(data, parameters) for name in columns]

    def measure(self, view: View, out: Tensor) -> None:
        at = 0
        for probe, columns in view.once(self, lambda: _fitting(view.data, [*view.weights])):
            try:
                probe.measure(view, out[:, at : at + len(columns)])
            except (TypeError, ValueError):  # of a model that does not tell
                continue
            finally:
                at += len(columns)


def _fitting(data: Data, parameters: Sequence[str]) -> list[tuple[Probe, Sequence[str]]]:
    """The members that the data have, and their columns."""
    found = []
    for probe in MEMBERS:
        try:
            found.append((probe, probe.columns_of(data, parameters)))
        except ValueError:
            continue
    return found
