"""Where the heads of a transformer look, and which of two algorithms it adds by."""

from __future__ import annotations

from typing import Any

import numpy as np

from grokfast.analysis import (
    attention_maps,
    attention_pictures,
    circularity,
    distance_irrelevance,
    gradient_symmetricity,
)
from grokfast.plots.data.rows import some
from grokfast.report.figures import Axis, csv, heat_map, side_by_side, table
from grokfast.report.material import Chapter, Material
from grokfast.report.page import Figure
from grokfast.tasks import ModularTask
from grokfast.tasks.table import Table

ROWS = 256  # test rows whose maps are averaged
HEADS = 16  # pictures at most
SYMBOLS = 256  # along an axis at most


def maps(material: Material) -> list[Figure]:
    """Of a table a picture for each head: how much the last position looks at a, over all pairs; of other tasks the
    mean over test rows, position by position."""
    task = material.run.experiment.task
    if isinstance(task, Table) and task.arity == 2 and len(task.sizes()) == 1 and task.n_symbols <= SYMBOLS:
        return _over_pairs(material)
    data = material.data
    found = attention_maps(material.run, data.test.inputs[some(len(data.test), ROWS)])[0].mean(1).detach().numpy()
    length = found.shape[-1]
    x, y = Axis("looked at", 1, length), Axis("looking", length, 1)
    heads = [(layer, head) for layer in range(found.shape[0]) for head in range(found.shape[1])][:HEADS]
    rows: dict[str, list[float]] = {"layer": [], "head": [], "looking": [], "looked at": [], "weight": []}
    pictures = []
    for layer, head in heads:
        own = found[layer, head]
        pictures.append(heat_map(own[::-1], x=x, y=y, name=_name(layer, head), low=0, high=1, value="weight"))
        for i, j in np.ndindex(own.shape):
            for name, value in zip(rows, (layer + 1, head + 1, i + 1, j + 1, float(own[i, j]))):
                rows[name].append(value)
    n = min(ROWS, len(data.test))
    return [
        Figure(
            "Attention",
            side_by_side(pictures),
            f"Attention of {len(heads)} heads from each of {length} positions to each, mean over {n} test rows.",
            csv(rows),
            f"How much each position looks at each, mean over {n:,} test rows.",
        )
    ]


def _over_pairs(material: Material) -> list[Figure]:
    found = attention_pictures(material.run)[0].detach().numpy()  # [L, H, n, n]
    n = found.shape[-1]
    heads = [(layer, head) for layer in range(found.shape[0]) for head in range(found.shape[1])][:HEADS]
    a, b = np.isfinite(found[0, 0]).nonzero()
    rows = {"a": a, "b": b} | {_name(*head): np.round(found[head][a, b], 4) for head in heads}
    pictures = [
        heat_map(
            found[head], y=Axis("a", 0, n - 1), x=Axis("b", 0, n - 1), name=_name(*head), low=0, high=1, value="weight"
        )
        for head in heads
    ]
    means = ", ".join(f"{_name(*head)} {np.nanmean(found[head]):.2f}" for head in heads)
    return [
        Figure(
            "Attention to the first operand",
            side_by_side(pictures),
            f"For each head a picture of all pairs: how much the last position looks at a. Means: {means}.",
            csv(rows),
            f"How much the last position looks at the first operand, for every pair a, b. Means: {means}.",
        )
    ]


def clock_or_pizza(material: Material) -> list[Figure]:
    """Three numbers that tell two algorithms of addition apart."""
    run = material.run
    task = run.experiment.task
    if "embedding" not in run.weights or not isinstance(task, ModularTask) or task.operation != "add":
        return []
    embedding = run.weights["embedding"][: task.p]
    columns: dict[str, list[Any]] = {
        "measure": ["gradient symmetricity", "distance irrelevance", "circularity of the embedding"],
        "value": [
            gradient_symmetricity(run)[0].item(), distance_irrelevance(run)[0].item(), circularity(embedding).item(),
        ],
    }  # fmt: skip
    said = ", ".join(f"{name} {value:.3g}" for name, value in zip(*columns.values()))
    return [
        Figure(
            "Clock or pizza",
            table(columns),
            f"A table of three measures: {said}.",
            csv(columns),
            "A pizza has a gradient symmetricity near 1 and a distance irrelevance near .2, a clock a lower one and "
            "about .8 (Zhong et al. 2023, arXiv 2306.17844).",
        )
    ]


def _name(layer: int, head: int) -> str:
    return f"layer {layer + 1}, head {head + 1}"


CHAPTER = Chapter(
    "attention", "Attention", "", {"attention maps": maps, "clock or pizza": clock_or_pizza}
)  # fmt: skip
