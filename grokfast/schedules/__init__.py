"""What changes with the step."""

from grokfast.schedules.base import Change
from grokfast.schedules.curriculum import Curriculum, PacedCurriculum
from grokfast.schedules.rates import Cosine, StepDecay, Switch, Warmup
from grokfast.schedules.swap_operands import SwapOperands

__all__ = ["Change", "Cosine", "Curriculum", "PacedCurriculum", "StepDecay", "SwapOperands", "Switch", "Warmup"]
