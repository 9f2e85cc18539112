"""What the command line shows while it works."""

from grokfast.display.run import Display, duration, sparkline
from grokfast.display.sweep import SweepDisplay, memory

__all__ = ["Display", "SweepDisplay", "duration", "memory", "sparkline"]
