"""The recipe `grokfast` with the EMA filter, with the MA filter and without one, as in Lee et al. (arXiv 2405.20233).

python -m benchmarks.compare_filters [--seeds N] [--baseline-seeds N] [--store DIR] [--picture FILE] [--out FILE]

Runs that the store has already are not trained again. The runs of an arm are trained together, each as if alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.interleave import machine
from grokfast import MA, Experiment, RunStore, train
from grokfast.plots import plot_comparison

BASE = Experiment.preset("grokfast")
BASELINE_STEPS = 9100  # ten times the 910 that the EMA filter took in the paper
ARMS = {
    "no filter": BASE.override(
        {
            "filter": None,
            "optimizer.weight_decay": 0.0,
            "schedule.steps": BASELINE_STEPS,
            "schedule.stop_after": None,
        }
    ),
    "EMA (α .98, λ 2)": BASE,
    "MA (window 100, λ 5)": BASE.override({"filter": MA(window_size=100, lamb=5.0), "optimizer.weight_decay": 0.01}),
}
PUBLISHED = {"no filter": 39_890, "EMA (α .98, λ 2)": 910, "MA (window 100, λ 5)": 790}


def finished(store: RunStore, experiment: Experiment) -> str | None:
    """The id of a finished run of this experiment."""
    config = experiment.to_dict()
    return next((run.run_id for run in store.list() if run.status == "finished" and run.config == config), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--baseline-seeds", type=int, default=1, help="of the arm without a filter, which is long")
    parser.add_argument("--store", type=Path, default=Path("runs"))
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--out", type=Path, help="write the table there as JSON")
    arguments = parser.parse_args()
    curves, table = {}, {}
    with RunStore(arguments.store) as store:
        for arm, experiment in ARMS.items():
            n = arguments.baseline_seeds if experiment.filter is None else arguments.seeds
            wanted = [experiment.override({"seed": seed}) for seed in range(n)]
            if missing := [e for e in wanted if finished(store, e) is None]:
                train(missing, store=store)
            ids = [finished(store, e) for e in wanted]
            curves[arm] = [store.curves(run_id) for run_id in ids if run_id is not None]
            steps = [(store.get(run_id).result or {}).get("t_generalize") for run_id in ids if run_id is not None]
            table[arm] = {"published": PUBLISHED[arm], "steps_to_95_percent_test": steps}
            said = ", ".join(
                f"seed {i} {'not in ' + str(BASELINE_STEPS) if t is None else t}" for i, t in enumerate(steps)
            )
            print(f"{arm:<22} published {PUBLISHED[arm]:>6}: {said}", flush=True)
    if arguments.picture:
        title = "x · y mod 97, 2-layer decoder: steps to 95% test accuracy"
        plot_comparison(curves, arguments.picture, title=title, threshold=BASE.criteria.threshold)
    if arguments.out:
        result: dict[str, Any] = {"title": "Steps to 95% test accuracy", "machine": machine(), "arms": table}
        arguments.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
