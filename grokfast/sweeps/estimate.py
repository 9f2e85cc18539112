"""What a sweep will take, from a few timed steps of one run."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch

from grokfast import backend
from grokfast.training.ensemble import Ensemble
from grokfast.training.experiment import Experiment
from grokfast.training.outcome import Outcome
from grokfast.training.replay import Replay
from grokfast.training.surroundings import undisturbed
from grokfast.training.waves import first_wave, forget, too_large

SECONDS = 0.5  # spent on timing, if that is more than STEPS
STEPS = 3
STRETCH = 20  # steps in a graph, at most


@dataclass(frozen=True)
class Estimate:
    """Seconds of a step of one run, its share of the evaluations included, and bytes of memory of one worker."""

    seconds_per_step: float
    worker_bytes: int


@undisturbed
def estimate(experiments: Sequence[Experiment], device: str) -> Estimate:
    """Time and memory of these experiments, as many of them together as fit, with one thread on a CPU.

    Raises MemoryError where one alone is too large.
    """
    try:
        with suppress(torch.OutOfMemoryError):
            return _measured(experiments, device)
    finally:
        forget()  # workers want it
    if len(experiments) == 1:
        raise too_large(experiments[0])
    return estimate(experiments[: len(experiments) // 2], device)


def _measured(experiments: Sequence[Experiment], device: str) -> Estimate:
    threads = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
    else:
        torch.cuda.reset_peak_memory_stats()
    try:
        with backend.using("reference" if experiments[0].engine == "reference" else backend.current()):
            ensemble, _ = first_wave(experiments)
            step, evaluation = (_step_by_step if ensemble.choice.why_no_replay else _replayed)(ensemble)
    finally:
        torch.set_num_threads(threads)
    seconds = step + evaluation / experiments[0].schedule.eval_every
    return Estimate(
        seconds / len(ensemble.experiments), torch.cuda.max_memory_allocated() if device == "cuda" else _peak_memory()
    )


def _step_by_step(ensemble: Ensemble) -> tuple[float, float]:
    """Seconds of a step and of an evaluation."""
    ensemble.step()
    evaluation = _timed(ensemble.evaluate)
    steps: list[float] = []
    while len(steps) < STEPS or sum(steps) < SECONDS:
        steps.append(_timed(ensemble.step))
    return statistics.median(steps), evaluation


def _replayed(ensemble: Ensemble) -> tuple[float, float]:
    """The same of graphs; what comes before compiles kernels, and captures."""
    steps = min(ensemble.schedule.eval_every, STRETCH)
    ensemble.schedule = replace(ensemble.schedule, eval_every=steps, steps=4 * steps)
    replay = Replay(ensemble, [Outcome(experiment.criteria) for experiment in ensemble.experiments])
    for _ in range(3):
        replay.evaluate().read()
        replay.launch().read()
    evaluation = _timed(lambda: replay.evaluate().read())
    stretch = _timed(lambda: replay.launch().read())
    return max(0.0, stretch - evaluation) / steps, evaluation


def _timed(action: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def _peak_memory() -> int:
    """Of this process, in bytes, which has just done what a worker does; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
