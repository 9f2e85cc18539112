"""Looking at what a plot function draws: its figure, kept when it is saved, and the size of the file."""

from __future__ import annotations

import struct
from pathlib import Path

from matplotlib.figure import Figure


def figures(monkeypatch) -> list[Figure]:
    """Every figure that is saved from now on, in order."""
    kept: list[Figure] = []
    save = Figure.savefig

    def keep(figure, *args, **kwargs):
        kept.append(figure)
        return save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return kept


def size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG, after a look at its signature."""
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert data.endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]
