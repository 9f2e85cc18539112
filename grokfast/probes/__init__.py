"""What is measured at an evaluation."""

from grokfast.probes.base import Probe, View

__all__ = ["Probe", "View"]
