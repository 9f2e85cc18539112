"""Which accelerator helps: each arm tuned with one budget, plain AdamW too, then compared on fresh seeds."""

from grokfast.comparison.accelerator import Accelerator
from grokfast.comparison.arms import ARMS, BASE, PUBLISHED
from grokfast.comparison.contest import Contest, best, contest
from grokfast.comparison.costs import Cost, step_costs
from grokfast.comparison.page import markdown, notes, pictures, section
from grokfast.comparison.record import to_dict
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
    "markdown",
    "notes",
    "pictures",
    "section",
    "step_costs",
    "task_result",
    "to_dict",
]
