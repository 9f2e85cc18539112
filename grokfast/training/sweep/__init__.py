"""Sweeps: many experiments as one, grouped, trained wherever there is room, stored, resumable."""

from grokfast.training.sweep.engine import Plan, SweepInterrupted, plan, plan_stored, sweep
from grokfast.training.sweep.in_process import InProcess
from grokfast.training.sweep.processes import Processes
from grokfast.training.sweep.progress import Progress, SweepObserver
from grokfast.training.sweep.result import SweepResult
from grokfast.training.sweep.runner import Event, Group, Runner
from grokfast.training.sweep.worker import give_up, train_group

__all__ = [
    "Event",
    "Group",
    "InProcess",
    "Plan",
    "Processes",
    "Progress",
    "Runner",
    "SweepInterrupted",
    "SweepObserver",
    "SweepResult",
    "give_up",
    "plan",
    "plan_stored",
    "sweep",
    "train_group",
]
