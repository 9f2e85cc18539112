"""Published sweeps: `grokfast sweep NAME`."""

from __future__ import annotations

from grokfast.sweeps.toml import SweepFile
from grokfast.tasks import GroupTask, ModularTask
from grokfast.training.experiment import Experiment

_POWER = {"train_fraction": 0.5, "layout": "operator"}
_MODULAR = ("add", "sub", "div", "conditional", "a2+b2", "a2+ab+b2", "a2+ab+b2+a", "a3+ab", "a3+ab2+b")

SWEEPS = {
    # Power et al. 2022, arXiv 2201.02177, section 3.1: nine operations mod 97, three on S5.
    "powerset": SweepFile(
        Experiment.preset("power").override({"name": "powerset"}),
        {
            "task": [
                *(ModularTask(operation=operation, p=97, **_POWER) for operation in _MODULAR),
                *(GroupTask(group="S5", operation=operation, **_POWER) for operation in ("composition", "conjugation", "aba")),
            ]
        },
    ),
}  # fmt: skip

ABOUT = {"powerset": ("the twelve tasks", "Power et al., arXiv 2201.02177", "most generalise, the sooner the simpler")}
