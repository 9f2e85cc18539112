"""What the command line shows while it works."""

from grokfast.display.run import Display, sparkline
from grokfast.display.sweep import SweepDisplay

__all__ = ["Display", "SweepDisplay", "sparkline"]
