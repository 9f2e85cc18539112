"""Every figure, and how results show themselves in a notebook. matplotlib is imported when one is drawn."""

from grokfast.plots.bands import plot_bands
from grokfast.plots.columns import plot_columns
from grokfast.plots.curves import plot_curves
from grokfast.plots.data import plot_data
from grokfast.plots.findings import plot_findings
from grokfast.plots.forest import plot_forest
from grokfast.plots.phase_diagram import plot_phase_diagram
from grokfast.plots.progress import plot_progress
from grokfast.plots.published import Beside, plot_published
from grokfast.plots.results import html, plot_result
from grokfast.plots.scaling import plot_scaling
from grokfast.plots.shares import plot_shares
from grokfast.plots.speedups import plot_speedups
from grokfast.plots.survival import plot_survival

__all__ = [
    "Beside", "html", "plot_bands", "plot_columns", "plot_curves", "plot_data", "plot_findings", "plot_forest",
    "plot_phase_diagram", "plot_progress", "plot_published", "plot_result", "plot_scaling", "plot_shares",
    "plot_speedups", "plot_survival",
]  # fmt: skip
