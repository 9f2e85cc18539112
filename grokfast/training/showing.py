"""How a result shows itself: as one line, as a picture, and in a notebook as both with its last values."""

from __future__ import annotations

from typing import Any


class Shown:
    """Base of results. Pictures are drawn above, in grokfast.plots, which knows each kind of result; it is the package
    that hands it out when one is asked for, so that nothing here, or in what uses this, imports upwards."""

    def plot(self, what: str | None = None) -> Any:
        """The matplotlib figure: a run's curves; a sweep's phase diagram, or else its curves, or else its times
        (`what`: "phase diagram", "curves" or "scaling"); an ablation's forest plot.

        Raises ValueError where there is nothing to draw yet, or not `what`.
        """
        import grokfast

        return grokfast.plots.plot_result(self, what)

    def _repr_html_(self) -> str | None:
        """None, and with it the one line, where anything fails."""
        import grokfast

        try:
            return grokfast.plots.html(self)
        except Exception:
            return None
