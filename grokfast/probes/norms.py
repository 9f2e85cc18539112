"""The norm of every parameter."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grokfast import checks, parts
from grokfast.measures.norms import weight_norms
from grokfast.probes.base import Probe, View
from grokfast.tasks.data import Data


@parts.register("norms")
@dataclass(frozen=True)
class Norms(Probe):
    """norm_{parameter}: the Euclidean norm of each parameter. (Of all of them together every run has weight_norm.)

    parameters: patterns of names with commas between them, "w_a,layers.*"; in training ValueError where one is of no
    parameter.
    """

    parameters: str = "*"

    def __post_init__(self) -> None:
        checks.Fields(self).text("parameters")

    def columns_of(self, data: Data, parameters: Sequence[str]) -> Sequence[str]:
        return [f"norm_{name}" for name in self._chosen(parameters)]

    def measure(self, view: View, out: Tensor) -> None:
        norms = weight_norms({name: view.weights[name] for name in self._chosen([*view.weights])})
        del norms["all"]
        torch.stack([*norms.values()], 1, out=out)

    def _chosen(self, parameters: Sequence[str]) -> list[str]:
        found: list[str] = []
        for pattern in self.parameters.split(","):
            names = fnmatch.filter(parameters, pattern.strip())
            if not names:
                known = ", ".join(map(repr, parameters))
                raise ValueError(f"norms.parameters must be of the parameters {known}, got {pattern.strip()!r}")
            found += [name for name in names if name not in found]
        return found
