"""What is measured at an evaluation."""

from grokfast.probes.base import Probe, View
from grokfast.probes.spread import Spread

__all__ = ["Probe", "Spread", "View"]
