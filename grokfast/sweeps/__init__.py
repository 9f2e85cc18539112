"""Sweeps: many experiments as one, grouped, trained wherever there is room, stored, resumable."""

from grokfast.sweeps.ablation import Ablation, AblationResult, ablate, try_arms
from grokfast.sweeps.arms import ARMS, Arm
from grokfast.sweeps.branching import branch, plan_branch
from grokfast.sweeps.engine import plan, plan_stored, sweep
from grokfast.sweeps.in_process import InProcess
from grokfast.sweeps.planned import PlannedSweep, SweepInterrupted, SweepObserver
from grokfast.sweeps.processes import Processes
from grokfast.sweeps.progress import Progress
from grokfast.sweeps.result import SweepResult
from grokfast.sweeps.runner import Event, Group, Runner
from grokfast.sweeps.worker import give_up, train_group

__all__ = [
    "ARMS",
    "Ablation",
    "AblationResult",
    "Arm",
    "Event",
    "Group",
    "InProcess",
    "PlannedSweep",
    "Processes",
    "Progress",
    "Runner",
    "SweepInterrupted",
    "SweepObserver",
    "SweepResult",
    "ablate",
    "branch",
    "give_up",
    "plan",
    "plan_branch",
    "plan_stored",
    "sweep",
    "train_group",
    "try_arms",
]
