"""Training on a GPU from evaluation to evaluation: steps of the recipes at every precision, and whole runs.

python -m benchmarks.bench_replay_gpu --preset nanda [--models 1 64 256] [--steps 100] [--seconds N] [--out FILE]
python -m benchmarks.bench_replay_gpu --preset nanda --to-the-end       # one run, as `grokfast run` does it

A contender's time is that of one step, with its share of an evaluation every `--steps` steps. "eager" is plain PyTorch
called step by step (one batched product for all models), "eager in a CUDA graph" the same replayed. After `--seconds`
no further section is begun; what memory does not hold is said and left out.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.interleave import Contender, interleave, report
from grokfast import Experiment, backend, train
from grokfast.training.ensemble import Ensemble
from grokfast.training.outcome import Outcome
from grokfast.training.replay import Replay

PRECISIONS = ("ieee", "tf32x3", "tf32", "bf16")


def steps_of(preset: str, device: str, models: int, steps: int, **changes: Any) -> list[Experiment]:
    """The recipe, `models` seeds of it, with an evaluation every `steps` steps and no end in sight."""
    schedule = {"schedule.eval_every": steps, "schedule.steps": 10**7, "schedule.stop_after": None}
    base = Experiment.preset(preset).override({"device": device, **schedule, **changes})
    return [base.override({"seed": seed}) for seed in range(models)]


def step_by_step(experiments: list[Experiment], steps: int) -> Callable[[], Any]:
    with backend.using("reference"):
        ensemble = Ensemble(experiments)

    def run() -> None:
        with backend.using("reference"):
            for _ in range(steps):
                ensemble.step()
            ensemble.evaluate()

    return run


def replayed(experiments: list[Experiment], engine: str) -> Callable[[], Any]:
    with backend.using(engine):
        replay = Replay(Ensemble(experiments), [Outcome(e.criteria) for e in experiments])

    def run() -> None:
        with backend.using(engine):
            window = replay.launch()
            window.read()

    return run


def contenders(preset: str, device: str, models: int, steps: int, engine: str) -> dict[str, Contender]:
    """Those that fit into memory, by name."""
    plain = steps_of(preset, device, models, steps)
    makers: dict[str, Callable[[], Callable[[], Any]]] = {
        "eager": lambda: step_by_step(plain, steps),
        "eager in a CUDA graph": lambda: replayed(plain, "reference"),
    }
    for precision in PRECISIONS:
        ours = steps_of(preset, device, models, steps, products=precision)
        makers[f"grokfast, {precision}"] = lambda ours=ours: replayed(ours, engine)  # type: ignore[misc]
    made = {}
    for name, make in makers.items():
        try:
            step = make()
            for _ in range(2):  # called, then captured
                step()
            made[name] = Contender(step, is_on_gpu=device == "cuda")
        except torch.OutOfMemoryError as error:
            print(f"{name}, {models} models: left out, {str(error).splitlines()[0]}", flush=True)
    return made


def per_step(rows: list[dict[str, Any]], models: int, steps: int) -> list[dict[str, Any]]:
    """Times of `steps` steps as those of one."""
    for row in rows:
        for key in [key for key in row if key.endswith("_ms")]:
            row[key] = round(row[key] / steps, 5)
        row["model_steps_per_s"] = round(models / row["median_ms"] * 1e3)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="nanda")
    parser.add_argument("--models", type=int, nargs="+", default=[1, 64, 256], help="sizes of the ensembles")
    parser.add_argument("--steps", type=int, default=100, help="between evaluations")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=600, help="begin no further section after these")
    parser.add_argument("--to-the-end", action="store_true", help="train one run to its end instead")
    parser.add_argument("--interpreted", action="store_true", help="on a CPU in Triton's interpreter, to try it out")
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    args = parser.parse_args()
    if not torch.cuda.is_available() and not args.interpreted:
        raise SystemExit("needs an NVIDIA GPU and a CUDA build of torch")
    device, engine = ("cpu", "triton") if args.interpreted else ("cuda", "auto")
    if args.to_the_end:
        for precision in PRECISIONS:
            with backend.using(engine):
                result = train(Experiment.preset(args.preset).override({"device": device, "products": precision}))
            print(f"{args.preset}, {precision}: {result.sentence}; {result.steps:,} steps in {result.seconds:.1f} s")
        return
    begun, sections = time.monotonic(), {}
    for models in args.models:
        if time.monotonic() - begun > args.seconds:
            break
        made = contenders(args.preset, device, models, args.steps, engine)
        rows = interleave(made, baseline=next(iter(made)), rounds=args.rounds, warmup=1) if made else []
        sections["one model" if models == 1 else f"{models} models"] = per_step(rows, models, args.steps)
        del made
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
    report(f"{args.preset} training step", sections, args.out)


if __name__ == "__main__":
    main()
