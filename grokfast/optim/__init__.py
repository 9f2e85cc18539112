"""The drop-in optimizer wrapper and the original's functions; they know nothing of tasks, runs or plots."""

from grokfast.optim.adamw import GrokFastAdamW
from grokfast.optim.functional import gradfilter_ema, gradfilter_ma
from grokfast.optim.lion import Lion
from grokfast.optim.muon import Muon
from grokfast.optim.schedule_free import ScheduleFreeAdamW
from grokfast.optim.wrapper import GrokFast

__all__ = ["GrokFast", "GrokFastAdamW", "Lion", "Muon", "ScheduleFreeAdamW", "gradfilter_ema", "gradfilter_ma"]
