"""grokfast: fast grokking experiments. Everything loads on first use, so importing it costs next to nothing."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from grokfast.transforms.chain import Chain
from grokfast.transforms.egd import EGD
from grokfast.transforms.filters import EMA, MA
from grokfast.transforms.grokadamw import GrokAdamW
from grokfast.transforms.multi_ema import MultiEMA
from grokfast.transforms.norm_clamp import NormClamp
from grokfast.transforms.norm_clip import NormClip
from grokfast.transforms.orthograd import OrthoGrad
from grokfast.transforms.penalties import L1, Compression, Nuclear
from grokfast.transforms.sam import SAM
from grokfast.transforms.spherical import Spherical

if TYPE_CHECKING:
    from grokfast import analysis as analysis
    from grokfast import models as models
    from grokfast import nn as nn
    from grokfast import ops as ops
    from grokfast import optim as optim
    from grokfast import plots as plots
    from grokfast import tasks as tasks
    from grokfast.comparison import compare
    from grokfast.optim import GrokFast, GrokFastAdamW, gradfilter_ema, gradfilter_ma
    from grokfast.reproductions import reproduce
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
    "compare": "grokfast.comparison",
    "gradfilter_ema": "grokfast.optim",
    "gradfilter_ma": "grokfast.optim",
    "reproduce": "grokfast.reproductions",
    "sweep": "grokfast.sweeps",
    "train": "grokfast.training",
}
_SUBMODULES = ("models", "nn", "ops", "optim", "tasks", "training", "store", "analysis", "plots")

# What a star brings: no module, above all not `nn` and `optim`, as scripts call torch's.
__all__ = [
    "EGD",
    "EMA",
    "L1",
    "MA",
    "SAM",
    "Chain",
    "Compression",
    "Experiment",
    "GrokAdamW",
    "GrokFast",
    "GrokFastAdamW",
    "MultiEMA",
    "NormClamp",
    "NormClip",
    "Nuclear",
    "OrthoGrad",
    "Spherical",
    "ablate",
    "branch",
    "compare",
    "gradfilter_ema",
    "gradfilter_ma",
    "reproduce",
    "sweep",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"grokfast.{name}")
    raise AttributeError(f"module 'grokfast' has no attribute {name!r}")
