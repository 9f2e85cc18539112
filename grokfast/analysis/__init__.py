"""What is found inside of runs, and what they have in common. SciPy loads on first use."""

from grokfast.analysis.arms import ArmSummary, Ratio, compare_arms
from grokfast.analysis.attention import attention_maps, attention_pictures, distance_irrelevance, gradient_symmetricity
from grokfast.analysis.crossings import GrokTimes, grok_times
from grokfast.analysis.curves import curves_by
from grokfast.analysis.descents import DoubleDescent, double_descent, effective_model_complexity
from grokfast.analysis.idealized import extract_idealized, idealization_table, idealized_pair_mlp
from grokfast.analysis.irreducible import Representations, representations
from grokfast.analysis.kaplan_meier import Incidence, incidence
from grokfast.analysis.landscape import Segment, linear_mode_connectivity, local_learning_coefficient, sharpness
from grokfast.analysis.neighbourhoods import adversarial_accuracy, local_complexity
from grokfast.analysis.neurons import NeuronFrequencies, neuron_frequencies
from grokfast.analysis.norms import logit_scale, weight_norms
from grokfast.analysis.patterns import Patterns, fit_patterns
from grokfast.analysis.power_law import PowerLaw, UndeterminedError, fit_power_law
from grokfast.analysis.precision import PrecisionRecall, precision_recall
from grokfast.analysis.progress import ProgressMeasures, progress_measures
from grokfast.analysis.spreads import Stability, stability
from grokfast.analysis.times import CellSummary, MedianTime, median_time, success_interval, summarize
from grokfast.measures.circularity import circularity
from grokfast.measures.learning_coefficient import LearningCoefficient
from grokfast.measures.norms import effective_rank
from grokfast.measures.spectra import (
    PhaseSum,
    dominant_frequency,
    gini,
    inverse_participation_ratio,
    periodicity,
    phase,
    phase_sum,
    spectrum,
    squareness,
)

__all__ = [
    "ArmSummary",
    "CellSummary",
    "DoubleDescent",
    "GrokTimes",
    "Incidence",
    "LearningCoefficient",
    "MedianTime",
    "NeuronFrequencies",
    "Patterns",
    "PhaseSum",
    "PowerLaw",
    "PrecisionRecall",
    "ProgressMeasures",
    "Ratio",
    "Representations",
    "Segment",
    "Stability",
    "UndeterminedError",
    "adversarial_accuracy",
    "attention_maps",
    "attention_pictures",
    "circularity",
    "compare_arms",
    "curves_by",
    "distance_irrelevance",
    "dominant_frequency",
    "double_descent",
    "effective_model_complexity",
    "effective_rank",
    "extract_idealized",
    "fit_patterns",
    "fit_power_law",
    "gini",
    "gradient_symmetricity",
    "grok_times",
    "idealization_table",
    "idealized_pair_mlp",
    "incidence",
    "inverse_participation_ratio",
    "linear_mode_connectivity",
    "local_complexity",
    "local_learning_coefficient",
    "logit_scale",
    "median_time",
    "neuron_frequencies",
    "periodicity",
    "phase",
    "phase_sum",
    "precision_recall",
    "progress_measures",
    "representations",
    "sharpness",
    "spectrum",
    "squareness",
    "stability",
    "success_interval",
    "summarize",
    "weight_norms",
]
