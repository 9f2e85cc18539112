"""What the command line shows of runs, while it works and afterwards."""

from grokfast.display.curve import curve, sparkline
from grokfast.display.run import Display
from grokfast.display.sweep import SweepDisplay

__all__ = ["Display", "SweepDisplay", "curve", "sparkline"]
