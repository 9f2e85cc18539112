"""Looking at what a plot function draws: its figure, kept when it is saved."""

from __future__ import annotations

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


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]
