"""What is measured at an evaluation."""

from grokfast.probes.base import Probe, View
from grokfast.probes.positions import Positions
from grokfast.probes.spread import Spread

__all__ = ["Positions", "Probe", "Spread", "View"]
