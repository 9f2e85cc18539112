"""`Picture`: the figure that every plot function draws. Importing it imports matplotlib, so that is done late."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from grokfast.store.files import replacing

DPI = 100


class Picture(Figure):
    """A figure of so many inches, which shows itself in a notebook, also where pyplot was never imported.

    title: at the top on the left, as it stands: a dollar sign is no formula.
    """

    def __init__(self, width: float, height: float, title: str | None = None) -> None:
        super().__init__(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
        FigureCanvasAgg(self)
        if title is not None:
            self.suptitle(title, x=0.01, ha="left", fontsize=14, fontweight="bold", parse_math=False)

    def saved(self, path: str | Path | None) -> Any:
        """`path`, written as a PNG; the figure itself where it is None."""
        if path is None:
            return self
        with replacing(Path(path)) as file:
            self.savefig(file, format="png", dpi=DPI)
        return Path(path)

    def _repr_png_(self) -> bytes:
        file = BytesIO()
        self.savefig(file, format="png", dpi=DPI)
        return file.getvalue()
