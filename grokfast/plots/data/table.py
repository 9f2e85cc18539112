"""Data that are an operation's table: a map of the answers, and of the splits."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from grokfast import text
from grokfast.plots.axes import COLORS
from grokfast.plots.data.rows import ROWS, answer, short, token
from grokfast.tasks.data import Data, Labels

_SYMBOLS = 256  # along an axis: of more, a cell would have no pixel of its own
_FILLED = 0.25  # the share of a table that must be there
_MADE, _WRONG = "made by augmentation", "wrong label"


class Section(NamedTuple):
    """Two columns of the inputs against each other.

    columns: which ones, y and x. values: their token ids, ascending. answers: [Y, X] float64, NaN where no row is.
    parts: [Y, X], an index into names, -1 where no row is. note: what of the data this is, empty where it is all.
    """

    columns: tuple[int, int]
    values: tuple[np.ndarray, np.ndarray]
    answers: np.ndarray
    parts: np.ndarray
    names: list[str]
    note: str


def section(data: Data, labels: Labels) -> Section | None:
    """The section to draw, or None: several answers a row, less than two columns that vary, or few cells with a row.

    It is that of the two columns with most symbols; the others stand at what is commonest in the training set.
    """
    if data.train.targets[0].numel() > 1:
        return None
    splits = {name: (split.inputs.numpy(), split.targets.numpy()) for name, split in data.splits.items()}
    inputs = [x for x, _ in splits.values()]
    sizes = [np.count_nonzero(_counts(inputs, i, data.n_tokens)) for i in range(data.seq_len)]
    varying = sorted((i for i, n in enumerate(sizes) if n > 1), key=lambda i: -sizes[i])
    if len(varying) < 2:
        return None
    y, x = sorted(varying[:2])
    fixed: dict[int, int] = {}
    for i in sorted(varying[2:]):
        fixed[i] = int(_counts([_where(splits["train"][0], fixed)], i, data.n_tokens).argmax())
    there = [_where(rows, fixed) for rows in inputs]
    whole = [np.flatnonzero(_counts(there, i, data.n_tokens)) for i in (y, x)]
    values = whole[0][:_SYMBOLS], whole[1][:_SYMBOLS]
    places = [np.full(data.n_tokens, -1, dtype=np.int64) for _ in values]
    for own, ids in zip(places, values):
        own[ids] = np.arange(len(ids))
    first = ["train", "test"]
    names = [*first, *(name for name in splits if name not in first)]
    answers = np.full((len(values[0]), len(values[1])), np.nan)
    parts = np.full(answers.shape, -1)
    for at, name in reversed([*enumerate(names)]):  # a cell is of the first split that has it
        rows, targets = splits[name]
        inside = (places[0][rows[:, y]] >= 0) & (places[1][rows[:, x]] >= 0)
        for i, value in fixed.items():
            inside &= rows[:, i] == value
        cells = places[0][rows[inside, y]], places[1][rows[inside, x]]
        answers[cells], parts[cells] = targets[inside].reshape(-1), at
        for i, special in enumerate((data.made, data.corrupted)):
            if name == "train" and special is not None:
                here = special.numpy()[inside]
                parts[cells[0][here], cells[1][here]] = len(names) + i
    n_filled = np.count_nonzero(parts >= 0)
    if n_filled < _FILLED * parts.size or (fixed and n_filled <= ROWS):
        return None
    notes = [f"token {i + 1} is {token(labels, value)}" for i, value in fixed.items()]
    if max(map(len, whole)) > _SYMBOLS:
        notes.append(f"the first {_SYMBOLS} of {max(map(len, whole)):,} symbols")
    note = f"section: {', '.join(notes)}" if notes else ""
    return Section((y, x), values, answers, parts, [*names, _MADE, _WRONG], note)


def _where(rows: np.ndarray, fixed: dict[int, int]) -> np.ndarray:
    """Those of [N, T] with these tokens in these columns."""
    for i, value in fixed.items():
        rows = rows[rows[:, i] == value]
    return rows


def _counts(inputs: list[np.ndarray], column: int, n_tokens: int) -> np.ndarray:
    """[n_tokens], how often each token is in a column."""
    return np.sum([np.bincount(rows[:, column], minlength=n_tokens) for rows in inputs], axis=0)


def draw_table(figure: Any, data: Data, found: Section, labels: Labels) -> str:
    """Draw both maps; return the section's note."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    height, width = found.parts.shape
    figure.get_layout_engine().set(h_pad=0.08)  # aspects of cells are not reckoned with
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    how: dict[str, Any] = {"origin": "lower", "interpolation": "nearest"}
    how["aspect"] = "equal" if max(height, width) <= 3 * min(height, width) else "auto"
    if data.is_real:
        image = left.imshow(found.answers, cmap="viridis", **how)
    else:
        n = min(data.n_answers, 4096)
        cyclic = ListedColormap(colormaps["twilight"](np.arange(n) / n))
        image = left.imshow(found.answers, cmap=cyclic, vmin=-0.5, vmax=data.n_answers - 0.5, **how)
    bar = figure.colorbar(image, ax=left, label="answer", fraction=0.05, pad=0.02)
    if not data.is_real:
        bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: text.label(answer(labels, round(value)))))
    used = [i for i in range(len(found.names)) if (found.parts == i).any()]
    colors = [*(COLORS[i % 5] for i in range(len(found.names) - 2)), COLORS[5], COLORS[6]]
    shades = ListedColormap([colors[i] for i in used])
    own = np.full(found.parts.shape, np.nan)
    for shade, i in enumerate(used):
        own[found.parts == i] = shade
    right.imshow(own, cmap=shades, vmin=-0.5, vmax=len(used) - 0.5, **how)
    for axis, values, column in ((left.yaxis, found.values[0], 0), (left.xaxis, found.values[1], 1)):
        axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.set_major_formatter(FuncFormatter(_ticks(labels, values)))
        axis.set_label_text(f"token {found.columns[column] + 1}", fontsize=12)
    right.set_xlabel(f"token {found.columns[1] + 1}", fontsize=12)
    left.set_title("what is asked", fontsize=11, loc="left")
    right.set_title("what is shown", fontsize=11, loc="left")
    handles = [Patch(color=colors[i], label=text.label(short(found.names[i], 20))) for i in used]
    figure.legend(handles=handles, loc="outside lower center", ncols=7, frameon=False, fontsize=12, borderpad=0)
    return found.note


def _ticks(labels: Labels, values: np.ndarray) -> Any:
    def said(place: float, _: Any) -> str:
        inside = place == round(place) and 0 <= place < len(values)
        return text.label(token(labels, int(values[round(place)]))) if inside else ""

    return said
