"""Everything that only a machine with an NVIDIA GPU can say: first the tests, then the benchmarks.

python -m benchmarks.gpu --out DIR [--parts NAME ...] [--minutes M]

A part that fails or takes too long is noted and does not stop the others; after M minutes none is begun, and none goes
on for longer. DIR gets each part's output, JSON as far as it came, and `gpu.md`, the tables with device, driver,
versions and date. Another call with other parts adds to them. The first part compiles kernels, on all processors, into
Triton's cache, so that the others need not, one by one.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.interleave import machine

TESTS = [
    "ops",
    "nn/test_layers.py",
    "models/transformer/test_planned_step.py",
    "models/transformer/test_fused.py",
    "transforms/test_clock.py",
    "transforms/test_flat.py",
    "optim/test_launches.py",
    "optim/test_capturable.py",
    "csrc/test_update.py",
    "csrc/test_update_filters.py",
    "csrc/test_update_on_gpu.py",
]
TRAINING = ("watch", "batches", "replay", "graphs", "fused_training", "fractions", "whole_runs")
TESTS += [f"training/test_{name}.py" for name in TRAINING]
COLUMNS = ("name", "median_ms", "host_ms", "ratio", "GB_per_s", "TFLOP_per_s", "model_steps_per_s", "runs_per_minute")
HEAD = "| | ms | host ms | ratio | GB/s | TFLOP/s | model-steps/s | runs/minute |"
PROFILE = ("name", "calls", "median_us", "share", "predicted_us", "bound", "asked_TB_per_s", "memory_TB_per_s")
PROFILE_HEAD = "| | calls | µs | share | predicted µs | by | TB/s asked | TB/s of memory |"


def parts() -> dict[str, tuple[list[str], int]]:
    """Command and seconds at most, by name; {out} is DIR."""

    def module(name: str, *arguments: str, seconds: int) -> tuple[list[str], int]:
        return [sys.executable, "-m", name, *arguments], seconds

    def replay(preset: str, *arguments: str, seconds: int, name: str = "") -> tuple[list[str], int]:
        out = "--out", f"{{out}}/gpu-{name or preset}.json"
        return module("benchmarks.bench_replay_gpu", "--preset", preset, *arguments, *out, seconds=seconds)

    # A process each for as many tests, which mostly wait for the compiler.
    at_once = ["-n", str(max(1, min(12, (os.cpu_count() or 2) - 2)))] if importlib.util.find_spec("xdist") else []
    return {
        "compile": module("benchmarks.launches", seconds=150),
        "tests": module("pytest", "-q", *at_once, *(f"tests/{name}" for name in TESTS), seconds=240),
        "nanda": replay("nanda", "--models", "1", "--rounds", "5", seconds=120),
        "nanda-many": replay(
            "nanda", "--models", "256", "64", "--steps", "40", "--rounds", "3", name="nanda-many", seconds=180
        ),
        "step": module(
            "benchmarks.bench_step_gpu", "--models", "256", "1024", "64", "--seconds", "100",
            "--out", "{out}/gpu-step.json", seconds=240,
        ),
        "profile": module("benchmarks.profile_step", "--seconds", "50", "--out", "{out}", seconds=120),
        "power": replay("power", "--models", "1", "64", "--rounds", "3", seconds=150),
        "nanda-whole": replay("nanda", "--to-the-end", name="nanda-whole", seconds=120),
        "nanda-runs": replay(
            "nanda", "--to-the-end", "--models", "64", "--products", "tf32", name="nanda-runs", seconds=200
        ),
        "optimizer": module("benchmarks.bench_optimizer_gpu", "--out", "{out}/gpu-optimizer.json", seconds=120),
        "nanda-compiled": replay(
            "nanda", "--models", "--compiled", "--rounds", "3", "--seconds", "60", name="nanda-compiled", seconds=240
        ),
        "operations": module(
            "benchmarks.bench_ops", "--seconds", "150", "--out", "{out}/gpu-ops.json", seconds=240
        ),
    }  # fmt: skip


def run(name: str, command: list[str], limit: float, out: Path) -> str:
    """Run one part, keep its output in DIR/NAME.txt, and say in a line how it went."""
    begun = time.monotonic()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with (out / f"{name}.txt").open("w") as file:
        process = subprocess.Popen(
            [word.format(out=out) for word in command], stdout=file, stderr=subprocess.STDOUT, env=environment,
            start_new_session=True,
        )  # fmt: skip
        try:
            code: int | str = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
            process.wait()
            code = f"stopped after {limit:.0f} s"
    return f"{name}: {'passed' if code == 0 else f'failed ({code})'}, {time.monotonic() - begun:.0f} s"


def tables(out: Path) -> list[str]:
    """Markdown of every JSON of results in DIR."""
    lines: list[str] = []
    for file in sorted(out.glob("gpu-*.json")):
        try:
            result = json.loads(file.read_text())
        except ValueError:  # stopped while it was written
            continue
        is_profile = result["title"].endswith(" profile")
        head, names = (PROFILE_HEAD, PROFILE) if is_profile else (HEAD, COLUMNS)
        for section, rows in result["sections"].items():
            lines += ["", f"## {result['title']}: {section}", "", head, "|---" * len(names) + "|"]
            lines += [f"| {' | '.join(str(row.get(name, '')) for name in names)} |" for row in rows]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument(
        "--parts", nargs="+", choices=parts(), default=list(parts()), help="default: all, in this order"
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("needs an NVIDIA GPU and a CUDA build of torch")
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * args.minutes
    said = {name: line for line in _before(out) for name in [line.partition(":")[0]]}
    for name in args.parts:
        command, limit = parts()[name]
        left = deadline - time.monotonic()
        said[name] = run(name, command, min(limit, left), out) if left > 5 else f"{name}: failed (no time)"
        print(said[name], flush=True)
        heading = ["# grokfast on a GPU", "", *(f"- {key}: {value}" for key, value in machine().items()), ""]
        (out / "gpu.md").write_text(
            "\n".join([*heading, *(f"- {line}" for line in said.values()), *tables(out)]) + "\n"
        )
    return int(any("failed" in said[name] for name in args.parts))


def _before(out: Path) -> list[str]:
    """How the parts of an earlier call went."""
    report = out / "gpu.md"
    lines = report.read_text().splitlines() if report.exists() else []
    return [line[2:] for line in lines if line.startswith("- ") and line[2:].partition(":")[0] in parts()]


if __name__ == "__main__":
    sys.exit(main())
