"""Everything that only a machine with an NVIDIA GPU can say: first the tests, then the benchmarks, in some minutes.

python -m benchmarks.gpu --out DIR

A part that fails or takes too long is noted and does not stop the others. DIR gets each part's output and JSON, and
`gpu.md`, the tables with device, driver, versions and date.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.interleave import machine

# (name, command, seconds at most); {out} is DIR.
TESTS = [
    "ops",
    "nn/test_layers.py",
    "nn/test_transformer_step.py",
    "optim/test_launches.py",
    "optim/test_capturable.py",
    "csrc/test_update.py",
]
TESTS += [f"training/test_{name}.py" for name in ("clock", "watch", "batches", "replay")]
PARTS: list[tuple[str, list[str], int]] = [
    ("tests", [sys.executable, "-m", "pytest", "-q", *(f"tests/{name}" for name in TESTS)], 145),
    (
        "operations",
        [sys.executable, "-m", "benchmarks.bench_ops", "--seconds", "65", "--out", "{out}/gpu-ops.json"],
        90,
    ),
    ("optimizer", [sys.executable, "-m", "benchmarks.bench_optimizer_gpu", "--out", "{out}/gpu-optimizer.json"], 85),
    (
        "step",
        [sys.executable, "-m", "benchmarks.bench_step_gpu", "--seconds", "40", "--out", "{out}/gpu-step.json"],
        90,
    ),
    (
        "training",
        [
            *(sys.executable, "-m", "benchmarks.bench_replay_gpu", "--models", "1", "256", "--seconds", "30"),
            *("--out", "{out}/gpu-nanda.json"),
        ],
        70,
    ),
]


def run(name: str, command: list[str], limit: int, out: Path) -> str:
    """Run one part, keep its output in DIR/NAME.txt, and say in a line how it went."""
    begun = time.monotonic()
    with (out / f"{name}.txt").open("w") as file:
        try:
            code: int | str = subprocess.run(
                [word.format(out=out) for word in command], stdout=file, stderr=subprocess.STDOUT, timeout=limit,
                check=False,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            code = f"stopped after {limit} s"
    return f"{name}: {'passed' if code == 0 else f'failed ({code})'}, {time.monotonic() - begun:.0f} s"


def tables(out: Path) -> list[str]:
    """Markdown of every JSON of results in DIR."""
    lines: list[str] = []
    for file in sorted(out.glob("gpu-*.json")):
        result = json.loads(file.read_text())
        for section, rows in result["sections"].items():
            lines += [
                "",
                f"## {result['title']}: {section}",
                "",
                "| | ms | host ms | ratio | GB/s | TFLOP/s | model-steps/s |",
                "|---|---|---|---|---|---|---|",
            ]
            for row in rows:
                rates = (row.get(name, "") for name in ("GB_per_s", "TFLOP_per_s", "model_steps_per_s"))
                cells = row["name"], row["median_ms"], row.get("host_ms", ""), row["ratio"], *rates
                lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    out = parser.parse_args().out
    if not torch.cuda.is_available():
        raise SystemExit("needs an NVIDIA GPU and a CUDA build of torch")
    out.mkdir(parents=True, exist_ok=True)
    about = machine()
    said = []
    for name, command, limit in PARTS:
        said.append(run(name, command, limit, out))
        print(said[-1], flush=True)
        heading = ["# grokfast on a GPU", "", *(f"- {key}: {value}" for key, value in about.items()), ""]
        (out / "gpu.md").write_text("\n".join([*heading, *(f"- {line}" for line in said), *tables(out)]) + "\n")
    return int(any("failed" in line for line in said))


if __name__ == "__main__":
    sys.exit(main())
