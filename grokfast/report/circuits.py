"""What the network computes with: key frequencies of modular addition, representations of a group."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from grokfast.analysis import progress_measures, representations
from grokfast.plots import plot_columns
from grokfast.plots.axes import COLORS
from grokfast.report.figures import csv, curves, svg, table
from grokfast.report.happened import figure_of_columns
from grokfast.report.material import Chapter, Material
from grokfast.report.page import Figure
from grokfast.tasks.group import GroupTask

_ABOUT = (
    "Restricted loss: test cross entropy of the key frequencies alone; it falls before the test loss does. Excluded "
    "loss: training cross entropy without them; it rises while the network comes to rely on them (Nanda et al. 2023, "
    "arXiv 2301.05217)."
)


def recorded(material: Material) -> list[Figure]:
    """The probe's columns, beside the losses."""
    own = material.columns("progress")
    if not own:
        return []
    losses = [*(name for name in own if name.endswith("_loss")), "train_loss", "test_loss"]
    panels = [losses, [name for name in own if not name.endswith("_loss")]]
    return [
        figure_of_columns(
            material, panels, "Progress measures while it trained", f"{_ABOUT} Key frequencies are those of the moment."
        )
    ]


def progress(material: Material) -> list[Figure]:
    """Restricted and excluded loss at the snapshots, by the key frequencies of the end, and the frequencies' shares."""
    if isinstance(material.run.experiment.task, GroupTask):
        return []
    end = progress_measures(material.run)
    keys, shares = end.frequencies[0], end.shares[0].numpy()
    said = ", ".join(map(str, keys)) or "none"
    found = [end]
    if before := material.stages[:-1]:
        found.insert(0, progress_measures(before, frequencies=keys))
    columns = {"step": material.steps} | {
        name.replace("_", " "): torch.cat([getattr(one, name) for one in found]).numpy()
        for name in ("restricted", "excluded", "train_loss", "test_loss")
    }
    columns = {f"{name} loss" if name in ("restricted", "excluded") else name: own for name, own in columns.items()}
    names = [name for name in columns if name != "step"]
    at_end = ", ".join(f"{name} {columns[name][-1]:.4g}" for name in names)
    heights = {"frequency": np.arange(1, len(shares) + 1), "share": shares}
    figures = [
        Figure(
            "Key frequencies",
            svg(_drawn_shares(shares, keys)),
            f"A bar for each of {len(shares)} frequencies: its share of the logits' energy. Key frequencies: {said}, "
            f"together {sum(shares[k - 1] for k in keys):.0%}.",
            csv(heights),
            f"Each frequency's share of the logits' energy; a key frequency has at least 1%: {said}.",
        )
    ]
    if len(material.stages) > 1:
        figures.insert(
            0,
            Figure(
                "Progress measures",
                curves(plot_columns(columns, [names], moments=material.moments), columns["step"]),
                f"Losses at {len(material.stages)} steps, by the key frequencies {said}. At the end: {at_end}.",
                csv(columns),
                f"{_ABOUT} By the key frequencies of the end: {said}.",
            ),
        )
    return figures


def of_group(material: Material) -> list[Figure]:
    """What logits have of each irreducible representation."""
    if not isinstance(material.run.experiment.task, GroupTask):
        return []
    found = representations(material.run)
    columns: dict[str, Any] = {"representation": [*found.names], "degree": [*found.degrees]}
    for name in ("similarity", "variance", "restricted", "excluded"):
        columns[name] = getattr(found, name)[0].numpy()
    most = int(np.argmax(columns["variance"]))
    return [
        Figure(
            "Irreducible representations",
            table(columns, sortable=True),
            f"A table of {len(found.names)} irreducible representations; {found.names[most]} has most of the variance, "
            f"{columns['variance'][most]:.0%}.",
            csv(columns),
            "Similarity: cosine of logits and the character; variance: share of the logits' energy; restricted and "
            "excluded: test loss of the representation alone, training loss without it (Chughtai et al. 2023, arXiv "
            f"2302.03025). The network's own are {found.test_loss[0]:.4g} and {found.train_loss[0]:.4g}.",
        )
    ]


def _drawn_shares(shares: np.ndarray, keys: tuple[int, ...]) -> Any:
    from grokfast.plots.picture import Picture

    figure = Picture(10, 2.6)
    axes = figure.subplots()
    ks = np.arange(1, len(shares) + 1)
    is_key = np.isin(ks, keys)
    axes.bar(ks[~is_key], shares[~is_key], color="0.7", width=0.8)
    axes.bar(ks[is_key], shares[is_key], color=COLORS[0], width=0.8)
    for k in keys:
        axes.annotate(str(k), (k, shares[k - 1]), ha="center", va="bottom", fontsize=10, color=COLORS[0])
    axes.set_xlabel("frequency", fontsize=12)
    axes.set_ylabel("share", fontsize=12)
    axes.set_xlim(0, len(shares) + 1)
    axes.margins(y=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


CHAPTER = Chapter(
    "circuits", "Circuits", "What the answers are computed with.",
    {"progress measures while it trained": recorded, "progress measures": progress, "representations": of_group},
)  # fmt: skip
