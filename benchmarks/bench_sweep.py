"""48 runs of `quick`: `grokfast sweep`, against 48 processes of an eager PyTorch script, one after the other.

python -m benchmarks.bench_sweep [--cells N] [--eager N] [--steps N] [--out FILE]

grokfast sweep quick --grid optimizer.weight_decay=0.1,0.3,1,3 task.train_fraction=0.3,0.4,0.5 --seeds 4, with a process
per core and with one process, each from nothing, imports included. --cells trains a sample of the 48, evenly spread, on
both sides; --eager a smaller one with the script only, whose time is then scaled up by runs, and marked so.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.interleave import machine
from grokfast import RunStore
from grokfast.sweeps.processes import cores

DECAYS, FRACTIONS, SEEDS = (0.1, 0.3, 1.0, 3.0), (0.3, 0.4, 0.5), (0, 1, 2, 3)
CELLS = list(itertools.product(DECAYS, FRACTIONS, SEEDS))
SCRIPT = Path(__file__).with_name("eager_quick.py")


def sample(n: int) -> list[tuple[float, float, int]]:
    """n of the cells, evenly spread."""
    return [CELLS[i] for i in np.linspace(0, len(CELLS) - 1, n).round().astype(int)]


def eager(cells: list[tuple[float, float, int]], limit: int) -> dict[str, Any]:
    """One process after the other."""
    steps, generalized, begun = 0, 0, time.perf_counter()
    for decay, fraction, seed in cells:
        options = ["--weight-decay", str(decay), "--train-fraction", str(fraction), "--seed", str(seed)]
        options += ["--steps", str(limit)]
        done = subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True, check=True)
        said = json.loads(done.stdout)
        steps += said["steps"]
        generalized += said["t_generalize"] is not None
    seconds = time.perf_counter() - begun
    return {"runs": len(cells), "seconds": round(seconds, 2), "steps": steps, "generalized": generalized}


def swept(cells: list[tuple[float, float, int]], processes: int, limit: int) -> dict[str, Any]:
    """One `grokfast sweep`, into an empty store."""
    names = ("optimizer.weight_decay", "task.train_fraction", "seed")
    if cells == CELLS:
        axes = [f"{name}={','.join(map(str, values))}" for name, values in zip(names[:2], (DECAYS, FRACTIONS))]
        options = [*axes, "--seeds", str(len(SEEDS))]
    else:
        options = [*(f"{n}={','.join(map(str, values))}" for n, values in zip(names, zip(*cells))), "--zip"]
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "grokfast", "sweep", "quick", "--steps", str(limit), "--grid", *options]
        begun = time.perf_counter()
        subprocess.run([*command, "--processes", str(processes), "--out", out], check=True, capture_output=True)
        seconds = time.perf_counter() - begun
        with RunStore(out, create=False) as store:
            table, size = store.table(), store.size()
    assert set(table["status"]) == {"finished"}
    return {
        "runs": len(cells),
        "seconds": round(seconds, 2),
        "steps": int(table["steps"].sum()),
        "generalized": int(np.isfinite(table["t_generalize"]).sum()),
        "store_bytes": size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=len(CELLS), help="so many of the 48 runs")
    parser.add_argument("--eager", type=int, help="so many of them with the script; default all")
    parser.add_argument("--steps", type=int, default=3000, help="of a run at most; fewer than the recipe's: a trial")
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    arguments = parser.parse_args()
    cells = sample(arguments.cells)
    rows = {
        f"grokfast sweep, {cores()} processes": swept(cells, cores(), arguments.steps),
        "grokfast sweep, 1 process": swept(cells, 1, arguments.steps),
        "eager PyTorch script, one process after the other": eager(
            sample(arguments.eager or len(cells)), arguments.steps
        ),
    }
    baseline = list(rows.values())[-1]
    about = machine()
    print(f"{len(cells)} runs of quick: {about['device']}, torch {about['torch']}, {about['date']}")
    for name, row in rows.items():
        row["seconds_for_all"] = round(row["seconds"] * len(cells) / row["runs"], 2)
        row["is_scaled"] = row["runs"] != len(cells)
        row["ratio"] = round(baseline["seconds"] / baseline["runs"] / (row["seconds"] / row["runs"]), 3)
        print(
            f"  {name:<52} {row['seconds_for_all']:>9.1f} s{'*' if row['is_scaled'] else ' '} {row['ratio']:>6.2f} ×  "
            f"{row['steps'] / row['seconds']:>8,.0f} steps/s  {row['generalized']} of {row['runs']} generalised"
        )
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(
            json.dumps({"title": "Sweep of quick", "machine": about, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
