"""grokfast: fast grokking experiments. Filters and optimizer wrapper need torch alone; the rest loads on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from grokfast.filters import EMA, MA
from grokfast.optim import GrokFast, GrokFastAdamW, gradfilter_ema, gradfilter_ma

if TYPE_CHECKING:
    from grokfast import nn, ops, tasks
    from grokfast.store import RunStore
    from grokfast.training import Experiment, RunResult, train

__version__ = "0.1.0"

_LAZY = {
    "Experiment": "grokfast.training",
    "RunResult": "grokfast.training",
    "RunStore": "grokfast.store",
    "train": "grokfast.training",
}
_SUBMODULES = ("nn", "ops", "tasks", "training", "store", "plots")

__all__ = [
    "EMA",
    "MA",
    "Experiment",
    "GrokFast",
    "GrokFastAdamW",
    "RunResult",
    "RunStore",
    "gradfilter_ema",
    "gradfilter_ma",
    "nn",
    "ops",
    "tasks",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"grokfast.{name}")
    raise AttributeError(f"module 'grokfast' has no attribute {name!r}")
