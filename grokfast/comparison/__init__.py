"""Which accelerator helps: each arm tuned with one budget, plain AdamW too, then compared on fresh seeds."""

from grokfast.comparison.accelerator import Accelerator
from grokfast.comparison.arms import ARMS, BASE, PUBLISHED
from grokfast.comparison.contest import Contest, best, contest
from grokfast.comparison.costs import Cost, step_costs
from grokfast.comparison.page import left_out, markdown, notes, pictures
from grokfast.comparison.record import from_dict, to_dict
from grokfast.comparison.result import ArmResult, TaskResult, task_result
from grokfast.comparison.run import compare
from grokfast.comparison.space import Among, Log

__all__ = [
    "ARMS",
    "BASE",
    "PUBLISHED",
    "Accelerator",
    "Among",
    "ArmResult",
    "Contest",
    "Cost",
    "Log",
    "TaskResult",
    "best",
    "compare",
    "contest",
    "from_dict",
    "left_out",
    "markdown",
    "notes",
    "pictures",
    "step_costs",
    "task_result",
    "to_dict",
]
