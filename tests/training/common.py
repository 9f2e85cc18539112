"""Results that must have the same bits, and observers that interfere."""

import os
import signal

import numpy as np
import torch

from grokfast.training import Observer


def same_result(one, other):
    leave_out = ("run_id", "seconds", "directory")
    assert {n: v for n, v in one.summary().items() if n not in leave_out} == {
        n: v for n, v in other.summary().items() if n not in leave_out
    }
    for name, tensor in one.weights.items():
        np.testing.assert_array_equal(tensor, other.weights[name], err_msg=name)  # NaN is NaN
    for name, column in one.curves.items():
        np.testing.assert_array_equal(column, other.curves[name], err_msg=name)


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


class StopAt(Observer):
    """Does something once, after a given number of steps."""

    def __init__(self, steps, action=interrupt):
        self.steps, self.action, self.is_done = steps, action, False

    def stepped(self, steps):
        if steps >= self.steps and not self.is_done:  # in a replay not after every step
            self.is_done = True
            self.action()


class Waves(Observer):
    """The sizes of the ensembles that were begun, and every evaluation."""

    def __init__(self):
        self.sizes, self.records = [], []

    def started(self, ensemble, run_ids):
        self.sizes.append(len(run_ids))

    def recorded(self, run, record, outcome):
        self.records.append((run, record.step))


def short_of_memory(monkeypatch, owner, name, most, when=lambda self: True):
    """`owner.name` raises where an ensemble of more than `most` runs comes to it; returns the sizes that came."""
    original, seen = getattr(owner, name), []

    def call(self, *args, **kwargs):
        size = len(self.experiments if hasattr(self, "experiments") else args[0])
        if size > most and when(self):
            seen.append(size)
            raise torch.OutOfMemoryError("CUDA out of memory (injected)")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, call)
    return seen
