"""What a step of each arm costs beside plain AdamW's: they take turns, so that a busy machine favours none of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from grokfast import backend, checks
from grokfast.training import Experiment
from grokfast.training.ensemble import Ensemble, resolve_device
from grokfast.training.outcome import Outcome
from grokfast.training.replay import Replay
from grokfast.training.surroundings import undisturbed

ROUNDS = 15
STEPS = 3  # of a turn; of graphs it is a stretch between two evaluations
STRETCH = 20  # steps of such, at most


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one run alone, with one thread on a CPU, medians over the rounds.

    step: seconds of an optimizer step. ratio: to the base's in the same round; low and high are the quantiles .2 and .8
    of it. whole: seconds of a step with its share of the evaluations.
    """

    step: float
    ratio: float
    low: float
    high: float
    whole: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.ratio:.2f}"


@undisturbed
def step_costs(experiments: Mapping[str, Experiment], base: str, *, rounds: int = ROUNDS) -> dict[str, Cost]:
    """The costs of the experiments, which have one device, by name; `base` is the one to compare with.

    Raises ValueError where `base` is none of them, rounds is not at least 2, and as training does.
    """
    checks.choice("base", base, experiments)
    rounds = checks.integer("rounds", rounds, minimum=2)
    threads = torch.get_num_threads()
    if resolve_device(experiments[base].device).type == "cpu":
        torch.set_num_threads(1)
    try:
        with backend.using("reference" if experiments[base].engine == "reference" else backend.current()):
            turns = {name: _turn(experiment, rounds + 1) for name, experiment in experiments.items()}
            for turn in turns.values():
                turn()
            times = {name: list[tuple[float, float]]() for name in turns}
            for number in range(rounds):
                first = number % len(turns)
                for name in [*turns][first:] + [*turns][:first]:
                    times[name].append(turns[name]())
    finally:
        torch.set_num_threads(threads)
    return {name: _cost(own, times[base], experiments[name].schedule.eval_every) for name, own in times.items()}


def _cost(own: list[tuple[float, float]], base: list[tuple[float, float]], eval_every: int) -> Cost:
    ratios = [step / other for (step, _), (other, _) in zip(own, base)]
    fifths = statistics.quantiles(ratios, n=5)
    step = statistics.median(step for step, _ in own)
    evaluation = statistics.median(evaluation for _, evaluation in own)
    return Cost(
        step=step, ratio=statistics.median(ratios), low=fifths[0], high=fifths[-1], whole=step + evaluation / eval_every
    )


def _turn(experiment: Experiment, turns: int) -> Callable[[], tuple[float, float]]:
    """What takes so many turns, each of which returns the seconds of a step and of an evaluation."""
    ensemble = Ensemble([experiment])
    if ensemble.choice.why_no_replay:
        return lambda: _stepped(ensemble)
    steps = min(ensemble.schedule.eval_every, STRETCH)
    ensemble.schedule = replace(ensemble.schedule, eval_every=steps, steps=(turns + 3) * steps)
    replay = Replay(ensemble, [Outcome(experiment.criteria)])
    for _ in range(3):  # compiles, and captures
        replay.evaluate().read()
        replay.launch().read()
    return lambda: _replayed(replay, steps)


def _stepped(ensemble: Ensemble) -> tuple[float, float]:
    first = _timed(lambda: _steps(ensemble, 1, evaluates=True))
    step = _timed(lambda: _steps(ensemble, STEPS)) / STEPS
    return step, max(0.0, first - step)


def _steps(ensemble: Ensemble, n: int, *, evaluates: bool = False) -> None:
    if evaluates:
        ensemble.evaluate(goes_on=True)
    for _ in range(n):
        ensemble.step()


def _replayed(replay: Replay, steps: int) -> tuple[float, float]:
    evaluation = _timed(lambda: replay.evaluate().read())
    return max(1e-9, (_timed(lambda: replay.launch().read()) - evaluation) / steps), evaluation


def _timed(action: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun
