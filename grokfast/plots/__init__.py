"""Every figure, and how results show themselves in a notebook. matplotlib is imported when one is drawn."""

from grokfast.plots.bands import plot_bands
from grokfast.plots.comparison import plot_comparison
from grokfast.plots.curves import plot_curves
from grokfast.plots.data import plot_data
from grokfast.plots.forest import plot_forest
from grokfast.plots.phase_diagram import plot_phase_diagram
from grokfast.plots.results import html, plot_result
from grokfast.plots.scaling import plot_scaling

__all__ = [
    "html", "plot_bands", "plot_comparison", "plot_curves", "plot_data", "plot_forest", "plot_phase_diagram",
    "plot_result", "plot_scaling",
]  # fmt: skip
