"""What is to be learned: data sets as tensors, and which part of them is shown in training."""

from grokfast.tasks.data import Data, Labels, Split, Task
from grokfast.tasks.digits import DigitsTask
from grokfast.tasks.dyck import DyckTask
from grokfast.tasks.group import GroupTask
from grokfast.tasks.images import ImagesTask
from grokfast.tasks.mixture import MixtureTask
from grokfast.tasks.modular import OPERATIONS, ModularTask
from grokfast.tasks.multihop import MultihopTask
from grokfast.tasks.parity import ParityTask
from grokfast.tasks.random_features import RandomFeaturesTask
from grokfast.tasks.recurrence import RecurrenceTask
from grokfast.tasks.sequence import SequenceTask
from grokfast.tasks.tensors import Tensors
from grokfast.tasks.two_scale import TwoScaleTask

__all__ = [
    "OPERATIONS", "Data", "DigitsTask", "DyckTask", "GroupTask", "ImagesTask", "Labels", "MixtureTask", "ModularTask",
    "MultihopTask", "ParityTask", "RandomFeaturesTask", "RecurrenceTask", "SequenceTask", "Split", "Task", "Tensors",
    "TwoScaleTask",
]  # fmt: skip
