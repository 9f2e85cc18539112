"""What is measured at an evaluation."""

from grokfast.probes.base import Probe, View
from grokfast.probes.default import Default
from grokfast.probes.local_complexity import LocalComplexity
from grokfast.probes.norms import Norms
from grokfast.probes.positions import Positions
from grokfast.probes.progress import Progress
from grokfast.probes.spectra import Spectra
from grokfast.probes.spread import Spread

__all__ = [
    "Default",
    "LocalComplexity",
    "Norms",
    "Positions",
    "Probe",
    "Progress",
    "Spectra",
    "Spread",
    "View",
]
