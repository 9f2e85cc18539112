"""The number of linear regions around training points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grokfast import checks, parts
from grokfast.measures.local_complexity import cuts, vertices
from grokfast.probes.base import Probe, View
from grokfast.seeds import MAX_SEED, generator
from grokfast.tasks.data import Data


@parts.register("local_complexity")
@dataclass(frozen=True, kw_only=True)
class LocalComplexity(Probe):
    """{split}_local_complexity: `measures.local_complexity` around some rows of a split, all layers together.

    The points are embeddings where inputs are tokens, or one-hot vectors where the model has none.

    Args:
        split: of the data.
        n_points: so many of its rows, drawn once, the same at every evaluation.
        radius, n_vertices, seed: see `measures.local_complexity`; n_vertices at most twice the numbers of an input.

    Raises TypeError or ValueError where an argument has the wrong type or is out of range.
    """

    split: str = "train"
    n_points: int = 16
    radius: float = 0.005
    n_vertices: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        fields = checks.Fields(self)
        fields.text("split")
        fields.integer("n_points", minimum=1)
        fields.real("radius", minimum=0, open_minimum=True)
        fields.integer("n_vertices", minimum=2)
        fields.integer("seed", minimum=0, maximum=MAX_SEED)

    def columns(self, data: Data) -> Sequence[str]:
        checks.choice("local_complexity.split", self.split, data.splits)
        return [f"{self.split}_local_complexity"]

    def measure(self, view: View, out: Tensor) -> None:
        inputs, _, exists = view.splits[self.split]

        def preactivations(x: Tensor) -> list[Tensor]:
            found: list[Tensor] = []
            view.module.from_embedded(x, found)
            return found

        chosen = view.once((self, "rows"), lambda: self._chosen(inputs, exists))
        points = view.module.embedded(chosen)
        offsets = view.once(
            (self, "vertices"),
            lambda: vertices(points, radius=self.radius, n_vertices=self.n_vertices, seed=self.seed),
        )
        out[:, 0] = cuts(preactivations, points, offsets).sum(1)

    def _chosen(self, inputs: Tensor, exists: Tensor | None) -> Tensor:
        """Some rows of each model's, spread over all: [E, n_points, ...]."""
        models, n = inputs.shape[:2]
        counts = inputs.new_full((models,), n, dtype=torch.int64) if exists is None else exists.sum(1)
        strata = torch.arange(self.n_points) + torch.rand(self.n_points, generator=generator(self.seed, "points"))
        rows = (strata.to(counts.device) / self.n_points * counts[:, None]).long()  # [E, n_points]
        return inputs[torch.arange(models, device=rows.device)[:, None], rows]
