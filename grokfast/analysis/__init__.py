"""What runs have in common: grok times with censoring, success probabilities, power laws. SciPy loads on first use."""

from grokfast.analysis.arms import ArmSummary, Ratio, compare_arms
from grokfast.analysis.curves import curves_by
from grokfast.analysis.grok_times import CellSummary, MedianTime, median_time, success_interval, summarize
from grokfast.analysis.power_law import PowerLaw, UndeterminedError, fit_power_law

__all__ = [
    "ArmSummary",
    "CellSummary",
    "MedianTime",
    "PowerLaw",
    "Ratio",
    "UndeterminedError",
    "compare_arms",
    "curves_by",
    "fit_power_law",
    "median_time",
    "success_interval",
    "summarize",
]
