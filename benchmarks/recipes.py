"""Recipes against their bounds, seed by seed: docs/recipes.md, and the figures as JSON.

python -m benchmarks.recipes [--presets d30,a5,...] [--seeds 3]      # trains, writes benchmarks/results/recipes.json
python -m benchmarks.recipes --write                                  # docs/recipes.md of what is there

A preset that is trained anew replaces its own figures only. Bounds have slack: what is measured lies well inside.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.interleave import machine
from grokfast import Experiment, RunResult, train
from grokfast.training.presets import ABOUT

RESULTS = Path(__file__).parent / "results" / "recipes.json"
PAGE = Path(__file__).parent.parent / "docs" / "recipes.md"


class Bound(NamedTuple):
    """What must hold of every seed, in words and as a check; and what was published."""

    words: str
    holds: Callable[[RunResult], bool]
    published: str = ""


def _within(steps: int) -> Callable[[RunResult], bool]:
    return lambda run: run.t_generalize is not None and run.t_generalize < steps


def _later(times: float, by: int, not_before: int = 0) -> Callable[[RunResult], bool]:
    """Memorised, and generalised so many times later."""

    def holds(run: RunResult) -> bool:
        if run.t_memorize is None or run.t_generalize is None:
            return False
        return not_before <= run.t_generalize <= by and run.t_generalize >= times * run.t_memorize

    return holds


def _multihop(run: RunResult) -> bool:
    if run.t_memorize is None or run.t_generalize is None:
        return False
    return accuracy_at(run, run.t_memorize) < 0.35 and run.final["test_ood_accuracy"] < 0.1


def _doshi(run: RunResult) -> bool:
    return run.final["test_accuracy"] >= 0.99 and abs(run.final["train_accuracy"] - 0.8) < 0.02


def _digits(run: RunResult) -> bool:
    if run.t_memorize is None or run.t_generalize is None:
        return False
    return accuracy_at(run, run.t_memorize) <= 0.45 and run.t_generalize <= 5500


BOUNDS = {
    "quick": Bound("generalises by 2,000", _within(2000)),
    "d30": Bound("generalises by 1,200", _within(1200)),
    "a5": Bound("generalises by 8,000", _within(8000)),
    "s5": Bound("generalises by 6,000", _within(6000)),
    "chughtai-s5": Bound(
        "generalises within the published range",
        lambda run: run.t_generalize is not None and 38_675 <= run.t_generalize <= 218_023,
        "median 93,556 of 50 runs, 38,675 to 218,023",
    ),
    "parity": Bound(
        "both within 9,000, the second 1.8 times later", _later(1.8, 9000), "memorised, then a phase transition"
    ),
    "merrill": Bound(
        "both within 300 epochs, the second 1.8 times later", _later(1.8, 9600), "memorised, then a phase transition"
    ),
    "multihop": Bound(
        "85% in distribution by 12,500, below 35% when memorised; below 10% out of it",
        _multihop,
        "in distribution late, out of it never",
    ),
    "recurrence": Bound("generalises from 1,000 to 5,000, 8 times later", _later(8, 5000, 1000)),
    "sort": Bound("generalises by 2,000", _within(2000)),
    "pizza": Bound(
        "generalises by 20,000", _within(20_000), "heads that weigh alike end as pizza: symmetricity .993 in the median"
    ),
    "doshi": Bound(
        "all of the test set right, and of the training set all but the wrong labels", _doshi, "full inversion"
    ),
    "digits": Bound(
        "at most 45% of the test set when memorised, 85% by 5,500", _digits, "delayed generalisation, on MNIST"
    ),
}

LONG = ("chughtai-s5", "multihop", "pizza")  # from ten minutes to an hour


def accuracy_at(run: RunResult, step: int) -> float:
    """Test accuracy at an evaluation."""
    return float(run.curves["test_accuracy"][list(run.curves["step"]).index(step)])


def trained(name: str, seed: int) -> dict[str, Any]:
    begun = time.perf_counter()
    run = train(Experiment.preset(name).override({"seed": seed, "device": "cpu"}))
    return {
        "seed": seed, "t_memorize": run.t_memorize, "t_generalize": run.t_generalize, "steps": run.steps,
        "test_when_memorised": None if run.t_memorize is None else round(accuracy_at(run, run.t_memorize), 3),
        "final_test": round(run.final["test_accuracy"], 3), "seconds": round(time.perf_counter() - begun, 1),
        "holds": BOUNDS[name].holds(run),
    }  # fmt: skip


def page(results: dict[str, Any]) -> str:
    names = ("preset", "what", "published", "bound", "measured, seed by seed", "seconds", "met")
    lines = [
        "# Recipes and what became of them",
        "",
        "Made by `python -m benchmarks.recipes`; figures: benchmarks/results/recipes.json. Steps are the first of",
        "three evaluations in a row at the threshold, memorised / generalised. Seconds are in the median, on a machine",
        "that may have had other work.",
        "",
        f"| {' | '.join(names)} |",
        f"|{'---|' * len(names)}",
    ]
    for name, found in results.items():
        seeds = found["seeds"]
        both = ", ".join(f"{_number(s['t_memorize'])} / {_number(s['t_generalize'])}" for s in seeds)
        seconds = sorted(s["seconds"] for s in seeds)[len(seeds) // 2]
        met = f"{sum(s['holds'] for s in seeds)} of {len(seeds)}"
        bound = BOUNDS[name]
        cells = (f"`{name}`", ABOUT[name].what, bound.published, bound.words, both, f"{seconds:.0f}", met)
        lines.append(f"| {' | '.join(cells)} |")
    dates = {f"{f['machine']['device']}, {f['machine']['threads']} threads, torch {f['machine']['torch']}, "
             f"{f['machine']['date']}" for f in results.values()}  # fmt: skip
    return "\n".join([*lines, "", *sorted(dates), ""])


def _number(step: int | None) -> str:
    return "never" if step is None else f"{step:,}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", default=",".join(name for name in BOUNDS if name not in LONG))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if not args.write:
        torch.set_num_threads(args.threads)
        for name in args.presets.split(","):
            seeds = []
            for seed in range(args.seeds):
                seeds.append(trained(name, seed))
                print(name, seeds[-1], flush=True)
            results[name] = {"machine": machine(), "seeds": seeds}
            ordered = {known: results[known] for known in BOUNDS if known in results}
            RESULTS.write_text(json.dumps(ordered, indent=1) + "\n")
        results = ordered
    PAGE.write_text(page(results))


if __name__ == "__main__":
    main()
