"""How many linear regions of the network there are around training points."""

from __future__ import annotations

from grokfast.analysis import local_complexity
from grokfast.plots import plot_columns
from grokfast.plots.data.rows import some
from grokfast.report.figures import csv, curves, table
from grokfast.report.happened import figure_of_columns
from grokfast.report.material import Chapter, Material
from grokfast.report.page import Figure

POINTS = 16  # training rows
_ABOUT = (
    "Units whose preactivation changes sign between the vertices of a small neighbourhood of a point, mean over points "
    "(Humayun et al. 2024, arXiv 2402.15555)."
)


def recorded(material: Material) -> list[Figure]:
    """The probe's column."""
    own = material.columns("local_complexity")
    return [figure_of_columns(material, [own], "Local complexity while it trained", _ABOUT)] if own else []


def at_snapshots(material: Material) -> list[Figure]:
    """Of each hidden layer, at the snapshots, or at the end alone."""
    rows = some(len(material.data.train), POINTS)
    found = local_complexity(material.stages, material.data.train.inputs[rows]).numpy()  # [E, layers]
    names = [f"hidden layer {i + 1}" for i in range(found.shape[1])]
    columns = {"step": material.steps, **dict(zip(names, found.T))}
    at_end = ", ".join(f"{name} {value:.3g}" for name, value in zip(names, found[-1]))
    where, body = "at the end alone: the run has no snapshots", table(columns)
    if len(found) > 1:
        where = f"at {len(found)} steps"
        body = curves(plot_columns(columns, [names], moments=material.moments), columns["step"])
    return [
        Figure(
            "Local complexity of each hidden layer",
            body,
            f"Hyperplanes near {len(rows)} training points {where}. At step {material.steps[-1]:,}: {at_end}.",
            csv(columns),
            f"{_ABOUT} Around {len(rows)} training points, {where}.",
        )
    ]


CHAPTER = Chapter(
    "regions", "Local complexity", "How finely the network divides the space around its training points.",
    {"local complexity while it trained": recorded, "local complexity": at_snapshots},
)  # fmt: skip
