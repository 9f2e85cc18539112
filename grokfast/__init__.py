"""grokfast: fast grokking experiments. Everything loads on first use, so importing it costs next to nothing."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from grokfast.transforms.chain import Chain
from grokfast.transforms.filters import EMA, MA

if TYPE_CHECKING:
    from grokfast import analysis as analysis
    from grokfast import models as models
    from grokfast import nn as nn
    from grokfast import ops as ops
    from grokfast import optim as optim
    from grokfast import plots as plots
    from grokfast import tasks as tasks
    from grokfast.optim import GrokFast, GrokFastAdamW, gradfilter_ema, gradfilter_ma
    from grokfast.store import RunStore as RunStore
    from grokfast.sweeps import SweepResult as SweepResult
    from grokfast.sweeps import ablate, branch, sweep
    from grokfast.training import Experiment, train
    from grokfast.training import RunResult as RunResult

__version__ = "0.1.0"

_LAZY = {
    "Experiment": "grokfast.training",
    "GrokFast": "grokfast.optim",
    "GrokFastAdamW": "grokfast.optim",
    "RunResult": "grokfast.training",
    "RunStore": "grokfast.store",
    "SweepResult": "grokfast.sweeps",
    "ablate": "grokfast.sweeps",
    "branch": "grokfast.sweeps",
    "gradfilter_ema": "grokfast.optim",
    "gradfilter_ma": "grokfast.optim",
    "sweep": "grokfast.sweeps",
    "train": "grokfast.training",
}
_SUBMODULES = ("models", "nn", "ops", "optim", "tasks", "training", "store", "analysis", "plots")

# What a star brings: no module, above all not `nn` and `optim`, as scripts call torch's.
__all__ = [
    "EMA",
    "MA",
    "Chain",
    "Experiment",
    "GrokFast",
    "GrokFastAdamW",
    "ablate",
    "branch",
    "gradfilter_ema",
    "gradfilter_ma",
    "sweep",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"grokfast.{name}")
    raise AttributeError(f"module 'grokfast' has no attribute {name!r}")
