"""What `import grokfast` and the optimizer wrapper add to `import torch`, in fresh processes.

python -m benchmarks.bench_import [--out FILE]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.interleave import report

RUNS = 15
CODE = "import time, torch; a = time.perf_counter(); import grokfast; grokfast.GrokFast; print(time.perf_counter() - a)"
BASE = "import time; a = time.perf_counter(); import torch; print(time.perf_counter() - a)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    out = parser.parse_args().out
    seconds: dict[str, list[float]] = {"import torch": [], "import grokfast, after torch": []}
    for _ in range(RUNS):
        for name, code in zip(seconds, (BASE, CODE)):
            said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
            seconds[name].append(float(said))
    base = statistics.median(seconds["import torch"])
    rows = [
        {
            "name": name,
            "median_ms": round(statistics.median(v) * 1e3, 2),
            "ratio": round(statistics.median(v) / base, 4),
        }
        for name, v in seconds.items()
    ]
    report("Import", {f"{RUNS} fresh processes each": rows}, out)


if __name__ == "__main__":
    main()
