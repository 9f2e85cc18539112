"""The picture of a data set: what a model is shown, and what it is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from grokfast.plots.data.features import draw_heat_map, draw_images, draw_scatter, in_images, is_signs
from grokfast.plots.data.rows import draw_rows, short
from grokfast.plots.data.table import draw_table, section
from grokfast.tasks.data import Data, Labels

_WIDEST = 125  # characters of a line above the picture

__all__ = ["plot_data"]


def plot_data(data: Data, path: str | Path | None = None, *, title: str = "", labels: Labels | None = None) -> Any:
    """Draw a data set as a PNG, 1200 pixels wide and at most 1200 high; return its path, or without one the figure.

    Tokens with one answer a row, where the rows fill a table of two of their columns: a map of the answers, and beside
    it which split each cell is in, which cells augmentation made and which labels are wrong. Where more columns vary
    they stand at what is commonest in training, and of more than 256 symbols the first are there, as the picture says.
    Other tokens: some rows of each split, and what is asked in them; where a row is not asked, the place is empty.
    Features that are images (D is a square, and neighbours in it are alike): some of each split with their targets.
    Signs ±1, and other features with classes: some rows as lines of colours, `labels.features` marked.
    Other features with real targets: training rows' first two principal components, or the targets if they are several.

    `labels` is what the task's `labels` gives; None: ids are drawn as numbers. Raises OSError if the file cannot be
    written.
    """
    from grokfast.plots.picture import Picture

    labels = labels or Labels()
    figure = Picture(12, 6.5)
    if data.n_tokens:
        found = section(data, labels)
        note = draw_rows(figure, data, labels) if found is None else draw_table(figure, data, found, labels)
    elif (k := in_images(data)) is not None:
        note = draw_images(figure, data, labels, k)
    elif data.is_real and not is_signs(data):
        note = draw_scatter(figure, data)
    else:
        note = draw_heat_map(figure, data, labels)
    lines = [short(line, _WIDEST) for line in (title, _sizes(data), note) if line]
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=12, parse_math=False)
    return figure.saved(path)


def _sizes(data: Data) -> str:
    """How many rows each split has, and what is special about those of the training set."""
    special = {"wrong labels": data.corrupted, "made by augmentation": data.made}
    counts = {what: int(rows.sum()) for what, rows in special.items() if rows is not None}
    said = ", ".join(f"{n:,} {what}" for what, n in counts.items() if n)
    sizes = {name: f"{name} {len(split):,}" for name, split in data.splits.items()}
    sizes["train"] += f" ({said})" if said else ""
    return f"rows: {', '.join(sizes.values())}"
