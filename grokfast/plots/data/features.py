"""Data whose inputs are features: as images, as rows of a heat map, as points in a plane."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from grokfast import text
from grokfast.plots.axes import COLORS
from grokfast.plots.data.rows import drawn, remarks, short, some, targets
from grokfast.tasks.data import Data, Labels

_SMALLEST, _LARGEST = 5, 64  # pixels of an image's side, and those that are drawn
_ALIKE = 0.75  # squares of differences of neighbours, to those of any two pixels
_LOOKED_AT = 256  # training rows from which it is told what the features are
_IMAGES = 12  # beside each other
_LINES, _FEATURES = 24, 128  # rows of heat maps, all together, and columns
_POINTS = 500  # of a split
_WRONG = "✗: wrong label"


def in_images(data: Data) -> int | None:
    """k where features are images of k × k pixels: where neighbours, one above the other, are alike."""
    k = math.isqrt(data.seq_len)
    if k * k != data.seq_len or k < _SMALLEST:
        return None
    x = data.train.inputs[some(len(data.train), _LOOKED_AT)].double().reshape(-1, k, k)
    differences = (x[:, 1:] - x[:, :-1]).square().mean()
    return k if differences <= _ALIKE * 2 * x.flatten(1).var(1, correction=0).mean() else None


def is_signs(data: Data) -> bool:
    return bool((data.train.inputs[some(len(data.train), _LOOKED_AT)].abs() == 1).all())


def draw_images(figure: Any, data: Data, labels: Labels, k: int) -> str:
    """Draw images of each split with their targets above them; return what is to be said."""
    splits, note = drawn(data)
    lines = 2 if len(splits) <= 3 else 1
    stride = math.ceil(k / _LARGEST)
    chosen = {name: some(len(split), lines * _IMAGES) for name, split in splits.items()}
    images = {
        name: split.inputs[chosen[name]].reshape(-1, k, k)[:, ::stride, ::stride].numpy()
        for name, split in splits.items()
    }
    low, high = (float(f([f(own) for own in images.values()])) for f in (np.min, np.max))
    side = math.ceil(k / stride)
    above, aside = 0.4 * side, 0.15 * side
    figure.set_size_inches(12, 1.3 + len(splits) * (0.2 + 1.15 * lines))
    grid = figure.subplots(len(splits), 1, squeeze=False)
    is_wrong = False
    for at, (axes, name) in enumerate(zip(grid.flat, splits)):
        for i, (image, (said, wrong)) in enumerate(zip(images[name], _said(data, name, chosen[name], labels))):
            left, top = (i % _IMAGES) * (side + aside), (i // _IMAGES) * (side + above)
            place = (left, left + side, top + side, top)
            axes.imshow(image, cmap="gray_r", vmin=low, vmax=high, extent=place, interpolation="nearest")
            is_wrong |= wrong
            how: dict[str, Any] = {"color": "#D00000" if wrong else "black", "fontsize": 9, "parse_math": False}
            axes.text(left + side / 2, top, said, ha="center", va="bottom", **how)
        axes.set_xlim(-0.5, _IMAGES * (side + aside))
        axes.set_ylim(lines * (side + above) - above + 0.5, -above)
        _name(axes, name, at)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    return "; ".join(filter(None, (f"{k} × {k} pixels", _WRONG if is_wrong else "", note)))


def draw_heat_map(figure: Any, data: Data, labels: Labels) -> str:
    """Draw rows of each split as lines, with their targets beside them; return what is to be said."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    splits, note = drawn(data, 4)
    notes = []
    marked = [i for i in labels.features if 0 <= i < data.seq_len][:_FEATURES]
    others = [i for i in range(min(data.seq_len, 2 * _FEATURES)) if i not in marked]
    columns = sorted([*marked, *others[: _FEATURES - len(marked)]])
    if len(columns) < data.seq_len:
        notes.append(f"{len(columns)} of {data.seq_len:,} features")
    chosen = {name: some(len(split), _LINES // len(splits)) for name, split in splits.items()}
    values = {name: split.inputs[chosen[name]][:, columns].numpy() for name, split in splits.items()}
    limit = max(float(np.abs(own).max()) for own in values.values()) or 1.0
    is_signed = min(float(own.min()) for own in values.values()) < 0
    how: dict[str, Any] = {"cmap": "RdBu" if is_signed else "viridis", "vmin": -limit if is_signed else 0.0}
    if signs := is_signs(data):
        how["cmap"] = ListedColormap(["#E3EAF0", "#5A7A96"])
        notes.append("dark: 1, light: -1")
    figure.set_size_inches(12, 1.8 + 0.22 * sum(map(len, chosen.values())) + 0.2 * len(splits))
    heights = [len(rows) for rows in chosen.values()]
    grid = figure.subplots(len(splits), 1, squeeze=False, sharex=True, height_ratios=heights)
    is_wrong = False
    for at, (axes, name) in enumerate(zip(grid.flat, splits)):
        image = axes.imshow(values[name], vmax=limit, aspect="auto", interpolation="nearest", **how)
        own = _said(data, name, chosen[name], labels)
        is_wrong |= any(wrong for _, wrong in own)
        axes.yaxis.tick_right()
        axes.set_yticks(range(len(own)), [f"→ {text.label(said)}" for said, _ in own], fontsize=9)
        axes.tick_params(length=0)
        _name(axes, name, at)
        for i in marked:
            left = columns.index(i) - 0.5
            axes.add_patch(Rectangle((left, -0.5), 1, len(own), fill=False, ec="#D55E00", lw=1.8, clip_on=False))
        axes.set_xlim(-0.5, len(columns) - 0.5)
    bottom = grid.flat[-1]
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=20, min_n_ticks=1))
    bottom.xaxis.set_major_formatter(
        FuncFormatter(lambda place, _: f"{columns[int(place)]}" if 0 <= place < len(columns) else "")
    )
    bottom.set_xlabel("feature", fontsize=12)
    if not signs:
        figure.colorbar(image, ax=list(grid.flat), fraction=0.03, pad=0.01, location="left")
    if marked:
        notes.append("framed: those that decide the answer")
    return "; ".join(filter(None, (*notes, _WRONG if is_wrong else "", note)))


def draw_scatter(figure: Any, data: Data) -> str:
    """Draw points of each split in a plane, coloured by a single target; return what is to be said."""
    splits, note = drawn(data, 4)
    chosen = {name: some(len(split), _POINTS) for name, split in splits.items()}
    y = {name: split.targets[chosen[name]].double().numpy() for name, split in splits.items()}
    figure.set_size_inches(12, 6)
    grid = figure.subplots(1, len(splits), squeeze=False, sharex=True, sharey=True)
    if data.n_answers > 1:
        points, names = {name: own[:, :2] for name, own in y.items()}, ("target 1", "target 2")
        notes = ["targets"] if data.n_answers == 2 else [f"targets 1 and 2 of {data.n_answers:,}"]
    elif data.seq_len == 1:
        x = {name: split.inputs[chosen[name]].double().numpy() for name, split in splits.items()}
        points, names, notes = {name: np.hstack([x[name], y[name]]) for name in y}, ("feature", "target"), []
    else:
        points, share = _principal(data, chosen)
        names, notes = (
            ("first principal component", "second principal component"),
            [f"of the training rows: {share:.1%} of their variance"],
        )
    is_colored = data.n_answers == 1 and data.seq_len > 1
    low, high = (float(f([f(own) for own in y.values()])) for f in (np.min, np.max))
    for at, (axes, name) in enumerate(zip(grid.flat, splits)):
        c = y[name][:, 0] if is_colored else COLORS[at]
        how: dict[str, Any] = {"cmap": "viridis", "vmin": low, "vmax": high} if is_colored else {}
        dots = axes.scatter(*points[name].T, c=c, s=14, **how)
        axes.set_title(text.label(short(name, 20)), fontsize=12, loc="left", color=COLORS[at], fontweight="bold")
        axes.set_xlabel(names[0], fontsize=12)
        axes.spines[["top", "right"]].set_visible(False)
    grid.flat[0].set_ylabel(names[1], fontsize=12)
    if is_colored:
        figure.colorbar(dots, ax=list(grid.flat), label="target", fraction=0.03, pad=0.01)
    if any(len(chosen[name]) < len(split) for name, split in splits.items()):
        notes.append(f"at most {_POINTS} rows of a split")
    return "; ".join(filter(None, (*notes, note)))


def _principal(data: Data, chosen: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], float]:
    """Of the chosen rows of each split the coordinates [n, 2] along the training rows' first two principal components,
    and the share of their variance along these."""
    x = data.train.inputs[chosen["train"]].double()
    mean = x.mean(0)
    squares, rows = torch.linalg.eigh((x - mean) @ (x - mean).T)  # of N × N, however many features there are
    squares, rows = squares.flip(0).clamp(min=0), rows.flip(1)
    directions = torch.zeros(data.seq_len, 2, dtype=torch.float64)
    for i in range(min(2, len(squares))):
        if squares[i] > 1e-12 * max(float(squares[0]), 1e-300):
            directions[:, i] = (x - mean).T @ rows[:, i] / squares[i].sqrt()
    directions *= directions.sum(0).sign()  # a direction's sign is nobody's
    found = {
        name: ((data.splits[name].inputs[own].double() - mean) @ directions).numpy() for name, own in chosen.items()
    }
    return found, float(squares[:2].sum() / squares.sum()) if squares.sum() > 0 else 1.0


def _said(data: Data, name: str, rows: np.ndarray, labels: Labels) -> list[tuple[str, bool]]:
    """The targets of some rows of a split, the first three of each, and whether they are wrong."""
    found = []
    for own, remark in zip(targets(data.splits[name], rows, labels), remarks(data, name, rows)):
        wrong, more = "wrong" in remark, ["…"] if len(own) > 3 else []
        found.append((", ".join([*own[:3], *more]) + (" ✗" if wrong else ""), wrong))
    return found


def _name(axes: Any, name: str, at: int) -> None:
    axes.set_ylabel(text.label(short(name)), fontsize=11, color=COLORS[at % len(COLORS)], fontweight="bold")
