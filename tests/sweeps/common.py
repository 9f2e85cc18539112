"""A sweep of tiny runs, what it has computed as bytes, and an observer that acts in the middle."""

import os

from grokfast import Experiment
from grokfast.sweeps import SweepObserver

TINY = Experiment.preset("quick").override(
    {
        "task.p": 13,
        "model.width": 16,
        "schedule.steps": 60,
        "schedule.eval_every": 5,
        "schedule.stop_after": None,
        "device": "cpu",
    }
)
GRID = {"optimizer.weight_decay": [0.1, 1.0], "task.train_fraction": [0.3, 0.4]}
LONG = TINY.override({"schedule.steps": 1500, "schedule.eval_every": 20})


class Watch(SweepObserver):
    """Keeps the events, and calls `action` once, at the first that `when` accepts."""

    def __init__(self, when=None, action=None):
        self.events, self.when, self.action = [], when, action

    def happened(self, event, progress):
        self.events.append(event)
        self.progress = progress
        if self.when is not None and self.when(event):
            self.when = None
            self.action()

    def begun(self):
        """Run id and step of every beginning of a run."""
        return [(event.run_id, event.steps) for event in self.events if event.status == "running" and not event.stage]


def bits(result):
    """All that a sweep has computed, without times and places."""
    table = {name: column.tolist() for name, column in result.table().items() if name != "seconds"}
    curves = {name: column.tobytes() for name, column in result.curves().items()}
    weights = [sorted((name, w.numpy().tobytes()) for name, w in run.weights.items()) for run in result.runs]
    return repr(table), curves, weights


def workers():
    """The worker processes that this process has started."""
    found = []
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/children") as file:
            found += [int(pid) for pid in file.read().split()]
    return [pid for pid in found if _is_worker(pid)]


def _is_worker(pid):
    with open(f"/proc/{pid}/cmdline") as file:
        return "grokfast.sweeps.child" in file.read()
