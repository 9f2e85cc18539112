"""One training step of the transformer recipes, against the same recipes as anybody would write them; peak memory.

python -m benchmarks.bench_transformer [--presets nanda,...] [--out FILE]     # interleaved: the ratios to quote
pytest benchmarks/bench_transformer.py                   # the same steps under pytest-benchmark

Eager PyTorch, torch.compile of it (where it can compile) and JAX (where it is installed: it is no dependency) compute
every position of every row; so does --engine reference. Freed memory is kept between steps for all of them, as
`grokfast.train` has it.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.baselines import eager_step, jax_step
from benchmarks.interleave import Contender, interleave, report
from grokfast import Experiment, backend
from grokfast.training.ensemble import Ensemble
from grokfast.training.memory import keep_freed_memory

ROUNDS = {"nanda": 40, "power": 60, "grokfast": 60, "multihop": 60}
SECTIONS = {
    "nanda": "nanda: p 113, 3,830 rows × 3 tokens, 1 layer, full batch",
    "power": "power: p 97, 4 tokens, 2 post-norm layers, batch 512",
    "grokfast": "grokfast: p 97, 4 tokens, 2 layers, EMA filter, batch 512",
    "multihop": "multihop: 3 tokens, 2 pre-norm layers of 64, batch 1,024",
}


def grokfast_step(experiment: Experiment, *, engine: str) -> Callable[[], Any]:
    with backend.using(engine):
        ensemble = Ensemble([experiment])

    def step() -> None:
        with backend.using(engine):
            ensemble.step()

    return step


CONTENDERS: dict[str, Callable[[Experiment], Callable[[], Any]]] = {
    "eager PyTorch": eager_step,
    "torch.compile": partial(eager_step, compiled=True),
    "JAX jit": jax_step,
    "grokfast --engine reference": partial(grokfast_step, engine="reference"),
    "grokfast": partial(grokfast_step, engine="auto"),
}
IN_MEMORY_TABLE = ("eager PyTorch", "grokfast --engine reference", "grokfast")


def recipe(preset: str) -> Experiment:
    return Experiment.preset(preset).override({"device": "cpu"})


def contenders(preset: str) -> dict[str, Contender]:
    """Compilation and JAX for nanda only; a contender that cannot run here is left out and said so."""
    made = {}
    for name, make in CONTENDERS.items():
        if name in ("torch.compile", "JAX jit") and preset != "nanda":
            continue
        if name == "JAX jit" and importlib.util.find_spec("jax") is None:
            print("JAX is not installed: left out")
            continue
        step = make(recipe(preset))
        try:
            step()
        except Exception as error:
            if name != "torch.compile":
                raise
            print(f"torch.compile does not work here: left out ({type(error).__name__})")
            continue
        made[name] = Contender(step)
    return made


def peak_memory(preset: str, name: str) -> float:
    """MB that a fresh process needs at most for data, model and six steps, beyond what it has after importing."""
    command = [sys.executable, "-m", "benchmarks.bench_transformer", "--memory-of", preset, name]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def measure_memory(preset: str, name: str) -> None:
    before = peak_so_far()
    step = CONTENDERS[name](recipe(preset))
    for _ in range(6):
        step()
    print(peak_so_far() - before)


def peak_so_far() -> float:
    """MB; Linux only. (getrusage's figure is handed down from the parent process.)"""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


@pytest.mark.parametrize("preset", SECTIONS)
@pytest.mark.parametrize("name", IN_MEMORY_TABLE)
def test_training_step(benchmark, name, preset):  # type: ignore[no-untyped-def]
    benchmark.group = f"training step, {preset}"
    benchmark.pedantic(CONTENDERS[name](recipe(preset)), rounds=10, warmup_rounds=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", default=",".join(SECTIONS), help="default: all")
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    parser.add_argument("--memory-of", nargs=2, metavar=("PRESET", "CONTENDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        measure_memory(*arguments.memory_of)
        return
    keep_freed_memory()
    sections = {}
    for preset in arguments.presets.split(","):
        title = SECTIONS[preset]
        sections[title] = interleave(contenders(preset), baseline="eager PyTorch", rounds=ROUNDS[preset])
        for row in sections[title]:
            if row["name"] in IN_MEMORY_TABLE:
                row["peak_memory_mb"] = round(peak_memory(preset, row["name"]), 1)
    report("Training step of the transformers", sections, arguments.out)
    print("\npeak memory, MB")
    for title, rows in sections.items():
        print(f"  {title}: " + ", ".join(f"{r['name']} {r['peak_memory_mb']}" for r in rows if "peak_memory_mb" in r))


if __name__ == "__main__":
    main()
