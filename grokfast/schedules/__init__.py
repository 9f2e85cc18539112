"""What changes with the step."""

from grokfast.schedules.base import Change
from grokfast.schedules.curriculum import Curriculum
from grokfast.schedules.rates import Cosine, StepDecay, Switch, Warmup
from grokfast.schedules.swap_operands import SwapOperands

__all__ = ["Change", "Cosine", "Curriculum", "StepDecay", "SwapOperands", "Switch", "Warmup"]
