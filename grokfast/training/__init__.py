"""One run and many runs: experiments, presets, the training loop, results."""

from grokfast.training.entry import resume, train
from grokfast.training.experiment import Criteria, Experiment, Schedule
from grokfast.training.interrupt import Interrupted
from grokfast.training.observer import Observer
from grokfast.training.presets import PRESETS
from grokfast.training.result import RunResult

__all__ = [
    "PRESETS",
    "Criteria",
    "Experiment",
    "Interrupted",
    "Observer",
    "RunResult",
    "Schedule",
    "resume",
    "train",
]
