"""What is to be learned: data sets as tensors, and which part of them is shown in training."""

from grokfast.tasks.data import Data, Split, Task
from grokfast.tasks.modular import OPERATIONS, ModularTask
from grokfast.tasks.tensors import Tensors

__all__ = ["OPERATIONS", "Data", "ModularTask", "Split", "Task", "Tensors"]
