"""Data as some rows of each split: tokens in cells, then the answers that are asked."""

from __future__ import annotations

from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from grokfast import text
from grokfast.plots.axes import COLORS
from grokfast.tasks.data import Data, Labels, Split

ROWS = 14  # about so many, of all splits together
SPLITS = 6  # at most
_LONGEST = 6  # characters in a cell
_CELLS = 150  # characters beside each other at most; a cell's margins count as one


class Row(NamedTuple):
    """A row as texts. An answer that is not asked is empty."""

    split: str
    tokens: list[str]
    answers: list[str]
    remark: str


def short(said: str, most: int = 14) -> str:
    """A text that is cut where it is long."""
    own = text.shown(said)
    return own if len(own) <= most else f"{own[: most - 1]}…"


def token(labels: Labels, number: int) -> str:
    return short(labels.tokens.get(number, str(number)))


def answer(labels: Labels, number: int) -> str:
    return short(labels.answers.get(number, str(number)))


def some(n: int, wanted: int) -> np.ndarray:
    """Numbers of at most `wanted` of n rows, the first and the last and evenly between them."""
    return np.unique(np.linspace(0, n - 1, min(n, wanted)).round().astype(np.int64))


def drawn(data: Data, most: int = SPLITS) -> tuple[dict[str, Split], str]:
    """The splits to draw, and what is to be said of the others."""
    splits = dict(islice(data.splits.items(), most))
    return splits, "" if len(splits) == len(data.splits) else f"the first {most} of {len(data.splits)} splits"


def targets(split: Split, rows: np.ndarray, labels: Labels) -> list[list[str]]:
    """The targets of some rows as texts; of one that is not asked, an empty one."""
    own = split.targets[rows].reshape(len(rows), -1)
    if own.is_floating_point():
        return [[f"{value:.3g}" for value in row] for row in own.tolist()]
    return [["" if value == -1 else answer(labels, value) for value in row] for row in own.tolist()]


def remarks(data: Data, name: str, rows: np.ndarray) -> list[str]:
    """What is special about some rows of a split."""
    said = {"wrong label": data.corrupted, "by augmentation": data.made} if name == "train" else {}
    return [", ".join(what for what, of in said.items() if of is not None and bool(of[row])) for row in rows]


def chosen(data: Data, labels: Labels) -> tuple[list[Row], str]:
    """The rows to draw, long ones without their middle, and what is to be said of what is not drawn."""
    splits, note = drawn(data)
    found: list[Row] = []
    for name, split in splits.items():
        rows = some(len(split), max(3, ROWS // len(splits)))
        tokens = [[token(labels, own) for own in row] for row in split.inputs[rows].tolist()]
        found += map(Row, [name] * len(rows), tokens, targets(split, rows, labels), remarks(data, name, rows))
    most = int(_CELLS / (1 + _widest(found)))
    n_tokens, n_answers = len(found[0].tokens), len(found[0].answers)
    n_answers = min(n_answers, max(most // 2, most - n_tokens))
    n_tokens = min(n_tokens, most - n_answers)
    cut = [row._replace(tokens=_ends(row.tokens, n_tokens), answers=_ends(row.answers, n_answers)) for row in found]
    return cut, note


def _widest(rows: list[Row]) -> int:
    """Characters of a cell."""
    return min(_LONGEST, max(len(own) for row in rows for own in (*row.tokens, *row.answers)))


def _ends(cells: list[str], most: int) -> list[str]:
    return cells if len(cells) <= most else [*cells[: most // 2], "…", *cells[most // 2 + 1 - most :]]


def draw_rows(figure: Any, data: Data, labels: Labels) -> str:
    """Draw the rows; return what is to be said."""
    from matplotlib.patches import Rectangle

    rows, note = chosen(data, labels)
    names = list(dict.fromkeys(row.split for row in rows))
    wide = 1.0 + _widest(rows)
    begin, gap = 3.0 + max(len(short(name)) for name in names), 4.0
    end = begin + wide * (len(rows[0].tokens) + len(rows[0].answers)) + gap
    width = max(end + 22, 110)
    figure.set_size_inches(12, 1.6 + 0.32 * (len(rows) + 0.5 * len(names)))
    size = min(11.0, 72 * 12 / width / 0.65)
    axes = figure.add_subplot()
    axes.set_axis_off()
    apart: dict[str, Any] = {"in_layout": False}  # or every cell is measured, twice
    how: dict[str, Any] = {"va": "center", "fontsize": size, "parse_math": False, **apart}

    def write(x: float, cells: list[str], face: str, edge: str) -> None:
        for cell in cells:
            if cell:
                if cell != "…":
                    axes.add_artist(Rectangle((x + 0.1, y + 0.08), wide - 0.2, 0.84, fc=face, ec=edge, lw=0.8, **apart))
                axes.text(x + wide / 2, y + 0.5, short(cell, _LONGEST), ha="center", family="DejaVu Sans Mono", **how)
            x += wide

    y, last = 1.0, ""
    answers = end - wide * len(rows[0].answers)
    axes.text(begin, 0.4, "shown", color="0.35", **how)
    axes.text(answers, 0.4, "asked", color="0.35", **how)
    for row in rows:
        color = COLORS[names.index(row.split) % len(COLORS)]
        if row.split != last:
            y += 0.5 if last else 0.0
            axes.text(begin - 2, y + 0.5, short(row.split), color=color, ha="right", fontweight="bold", **how)
            last = row.split
        write(begin, row.tokens, "#F4F4F4", "0.75")
        axes.text(answers - gap / 2, y + 0.5, "→", color="0.35", ha="center", **how)
        write(answers, row.answers, "white", color)
        axes.text(end + 1, y + 0.5, row.remark, color="0.35", **how)
        y += 1
    axes.set_xlim(0, width)
    axes.set_ylim(y, 0)
    return note
