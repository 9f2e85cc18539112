"""How large the weights of a run are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from grokfast.analysis import effective_rank, weight_norms
from grokfast.plots import plot_columns
from grokfast.report.figures import csv, curves, table
from grokfast.report.happened import figure_of_columns
from grokfast.report.material import Chapter, Material
from grokfast.report.page import Figure


def over_training(material: Material) -> list[Figure]:
    """The norm of all weights, and those of each parameter if a probe recorded them."""
    own = material.columns("norms")
    panels = [["weight_norm"], own] if own else [["weight_norm"]]
    return [figure_of_columns(material, panels, "Norms of the weights", "Euclidean norms of all weights, and of each.")]


def over_snapshots(material: Material) -> list[Figure]:
    """The norm of each parameter at the snapshots, where no probe recorded them."""
    if material.columns("norms") or len(material.stages) < 2:
        return []
    found = weight_norms(material.stages)
    columns = {
        "step": material.steps,
        **{f"norm_{name}": norms.numpy() for name, norms in found.items() if name != "all"},
    }
    figure = plot_columns(columns, [[name for name in columns if name != "step"]], moments=material.moments)
    largest = max((name for name in found if name != "all"), key=lambda name: found[name][-1].item())
    return [
        Figure(
            "Norm of each parameter",
            curves(figure, columns["step"]),
            f"Euclidean norms of {len(found) - 1} parameters at {len(material.stages)} steps; at the end {largest} is "
            f"largest, {found[largest][-1]:.4g}.",
            csv(columns),
            _said_of_stages(material),
        )
    ]


def of_parameters(material: Material) -> list[Figure]:
    """Shape, norm and effective rank of each parameter."""
    norms = weight_norms(material.run)
    weights = {name: material.run.weights[name] for name in norms if name != "all"}  # in the model's order
    share = {name: (norms[name].item() / norms["all"].item()) ** 2 for name in weights}
    columns: dict[str, Sequence[Any]] = {
        "parameter": [*weights],
        "shape": [" × ".join(map(str, w.shape)) for w in weights.values()],
        "norm": [norms[name].item() for name in weights],
        "share of norm²": [f"{100 * own:.1f}%" for own in share.values()],
        "effective rank": [effective_rank(w).item() if w.ndim == 2 else np.nan for w in weights.values()],
    }
    largest = max(share, key=lambda name: share[name])
    return [
        Figure(
            "Parameters",
            table(columns, sortable=True),
            f"A table of {len(weights)} parameters; {largest} has {share[largest]:.0%} of the squared norm.",
            csv(columns),
            "The effective rank is exp of the entropy of the singular values (Roy and Vetterli 2007).",
        )
    ]


def _said_of_stages(material: Material) -> str:
    n = material.n_snapshots + 1
    return f"At {len(material.stages)} of its {n:,} snapshots, the end included." if n > len(material.stages) else ""


CHAPTER = Chapter(
    "norms", "Norms", "Weight decay wears weights down that the training loss does not need.",
    {"norms": over_training, "norms at snapshots": over_snapshots, "norms of parameters": of_parameters},
)  # fmt: skip
