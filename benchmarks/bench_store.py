"""A store of 10,000 runs with 200 evaluations each: how long listing and loading take, and its size.

python -m benchmarks.bench_store [--runs N] [--evaluations N] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.interleave import machine
from grokfast import Experiment, RunStore
from grokfast.store import NewRun, Record
from grokfast.store.records import STANDARD
from grokfast.store.sweeps import digest

REPEATS = 5


def fill(store: RunStore, runs: int, evaluations: int) -> str:
    """One sweep of ended runs; its id."""
    base, random = Experiment.preset("quick"), np.random.default_rng(0)
    configs = [base.override({"seed": i, "optimizer.weight_decay": (i % 40) / 10}).to_dict() for i in range(runs)]
    new = [NewRun(config, digest(config), "benchmark", "cpu") for config in configs]
    grid = {"axes": {"optimizer.weight_decay": [], "seed": []}}
    sweep_id = store.sweeps.create("quick", base.to_dict(), grid, new)
    for i, run_id in enumerate(store.sweeps.statuses(sweep_id)):
        values = random.random((evaluations, len(STANDARD)))
        store.append(run_id, [Record(10 * step, dict(zip(STANDARD, row))) for step, row in enumerate(values.tolist())])
        result = {
            "run_id": run_id, "phase": "grokking", "t_memorize": 60, "t_generalize": 10 * (i % evaluations),
            "diverged_at": None, "steps": 10 * evaluations, "seconds": 5.0, "collapsed": False,
            "final": dict(zip(STANDARD, values[-1].tolist())),
        }  # fmt: skip
        store.update(run_id, status="finished", result=result)
    return sweep_id


def timed(action: Callable[[], Any]) -> float:
    """Median of seconds."""
    times = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        action()
        times.append(time.perf_counter() - begun)
    return round(statistics.median(times), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--evaluations", type=int, default=200)
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as root, RunStore(root) as store:
        begun = time.perf_counter()
        sweep_id = fill(store, arguments.runs, arguments.evaluations)
        filled = time.perf_counter() - begun
        command = [sys.executable, "-m", "grokfast", "list", "--out", root]
        seconds = {
            "open": timed(lambda: RunStore(root, create=False).close()),
            "list": timed(store.list),
            "sweeps.list": timed(store.sweeps.list),
            "table": timed(lambda: store.table(sweep_id)),
            "all_curves": timed(lambda: store.all_curves(sweep_id)),
            "size": timed(store.size),
            "grokfast list, a process": timed(lambda: subprocess.run(command, check=True, capture_output=True)),
        }
        size = store.size()
    about = machine()
    print(f"{arguments.runs:,} runs x {arguments.evaluations} evaluations: {size / 1e6:,.1f} MB, "
          f"filled in {filled:.1f} s; {about['device']}, {about['date']}")  # fmt: skip
    for name, value in seconds.items():
        print(f"  {name:<26} {value:>8.3f} s")
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        found = {"runs": arguments.runs, "evaluations": arguments.evaluations, "bytes": size, "seconds": seconds}
        arguments.out.write_text(json.dumps({"title": "Run store", "machine": about, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
