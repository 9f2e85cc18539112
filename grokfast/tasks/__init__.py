"""Data sets as index tensors: what to learn, and which part of it is shown in training."""

from grokfast.tasks.modular import OPERATIONS, ModularTask, build
from grokfast.tasks.split import TaskData

__all__ = ["OPERATIONS", "ModularTask", "TaskData", "build"]
