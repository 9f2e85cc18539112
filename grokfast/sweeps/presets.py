"""Published sweeps: `grokfast sweep NAME`."""

from __future__ import annotations

from dataclasses import replace

from grokfast.sweeps.toml import SweepFile
from grokfast.tasks import GroupTask, ModularTask
from grokfast.training.experiment import Experiment

_POWER = ModularTask(p=97, train_fraction=0.5, layout="operator")
_S5 = GroupTask(group="S5", train_fraction=0.5, layout="operator")
_MODULAR = ("add", "sub", "div", "conditional", "a2+b2", "a2+ab+b2", "a2+ab+b2+a", "a3+ab", "a3+ab2+b")

SWEEPS = {
    # Power et al. 2022, arXiv 2201.02177, section 3.1: nine operations mod 97, three on S5.
    "powerset": SweepFile(
        Experiment.preset("power").override({"name": "powerset"}),
        {
            "task": [
                *(replace(_POWER, operation=operation) for operation in _MODULAR),
                _S5,
                replace(_S5, operation="conjugation"),
                replace(_S5, operation="aba"),
            ]
        },
    ),
}  # fmt: skip

ABOUT = {"powerset": ("the twelve tasks", "Power et al., arXiv 2201.02177", "the simpler, the sooner (published)")}
