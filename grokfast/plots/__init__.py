"""Every figure. matplotlib is imported when one is drawn."""

from grokfast.plots.comparison import plot_comparison
from grokfast.plots.curves import plot_curves
from grokfast.plots.phase_diagram import plot_phase_diagram

__all__ = ["plot_comparison", "plot_curves", "plot_phase_diagram"]
