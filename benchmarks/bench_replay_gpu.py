"""Training on a GPU from evaluation to evaluation: steps of the recipes at every precision, and whole runs.

python -m benchmarks.bench_replay_gpu --preset nanda [--models 1 64 256] [--steps 100] [--seconds N] [--out FILE]
python -m benchmarks.bench_replay_gpu --preset nanda --to-the-end       # one run, as `grokfast run` does it

A contender's time is that of one step, with its share of an evaluation every `--steps` steps. "eager" is grokfast's
plain PyTorch called step by step (one batched product for all models), "eager in a CUDA graph" the same replayed,
"script" the model as anybody writes it with torch's fused optimizer, without evaluations. After `--seconds` no further
section is begun; what fails, for want of memory say, is said and left out. The JSON is written after every section.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.baselines import eager_step
from benchmarks.bench_optimizer_gpu import captured
from benchmarks.interleave import Contender, compare, report, write
from grokfast import Experiment, backend, train
from grokfast.nn import TransformerConfig
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


def contenders(preset: str, device: str, models: int, steps: int, engine: str) -> dict[str, Callable[[], Contender]]:
    """The first is the baseline. One model has a script's contenders beside it, whose times are those of one step."""
    plain, on_gpu = steps_of(preset, device, models, steps), device == "cuda"

    def of_steps(make: Callable[[], Callable[[], Any]]) -> Contender:
        step = make()
        for _ in range(2):  # called, then captured
            step()
        return Contender(step, is_on_gpu=on_gpu)

    def of_script(in_graph: bool = False, **options: Any) -> Contender:
        one = eager_step(plain[0], device=device, **options)
        if in_graph:
            one = captured(one)
        return Contender(lambda: [one() for _ in range(steps)], is_on_gpu=on_gpu)

    makers: dict[str, Callable[[], Contender]] = {}
    if models == 1 and on_gpu and isinstance(plain[0].model, TransformerConfig):
        makers["script, eager"] = of_script
        makers["script in a CUDA graph"] = lambda: of_script(in_graph=True, capturable=True)
    makers["eager in a CUDA graph"] = lambda: of_steps(lambda: replayed(plain, "reference"))
    if models == 1:
        makers["eager"] = lambda: of_steps(lambda: step_by_step(plain, steps))
    for precision in PRECISIONS:
        ours = steps_of(preset, device, models, steps, products=precision)
        makers[f"grokfast, {precision}"] = lambda ours=ours: of_steps(lambda: replayed(ours, engine))  # type: ignore[misc]
    return makers


def compiled(preset: str, steps: int, engine: str) -> dict[str, Callable[[], Contender]]:
    """One model beside torch.compile, which takes a minute."""
    some = contenders(preset, "cuda", 1, steps, engine)
    plain = steps_of(preset, "cuda", 1, steps)

    def compile_it() -> Contender:
        one = eager_step(plain[0], device="cuda", compiled=True, capturable=True)
        for _ in range(5):
            one()
        return Contender(lambda: [one() for _ in range(steps)], is_on_gpu=True)

    return {**some, "torch.compile, max-autotune": compile_it}


def per_step(rows: list[dict[str, Any]], models: int, steps: int) -> list[dict[str, Any]]:
    """Times of `steps` steps as those of one."""
    for row in rows:
        for key in [key for key in row if key.endswith("_ms")]:
            row[key] = round(row[key] / steps, 5)
        row["model_steps_per_s"] = round(models / row["median_ms"] * 1e3) if row["median_ms"] else None
    return rows


def to_the_end(preset: str, device: str, engine: str) -> list[dict[str, Any]]:
    """Whole runs, from nothing to their ends, compilation included: one of each precision."""
    rows: list[dict[str, Any]] = []
    for precision in PRECISIONS:
        try:
            with backend.using(engine):
                result = train(Experiment.preset(preset).override({"device": device, "products": precision}))
        except Exception as error:  # the others are of interest all the same
            print(f"{preset}, {precision}: {type(error).__name__}: {error}", flush=True)
            continue
        print(f"{preset}, {precision}: {result.sentence}; {result.steps:,} steps in {result.seconds:.1f} s", flush=True)
        milliseconds, first = 1e3 * result.seconds, rows[0]["median_ms"] if rows else 1e3 * result.seconds
        rows.append(
            {
                "name": f"grokfast, {precision}",
                "median_ms": round(milliseconds, 1),
                "ratio": round(milliseconds / first, 3),
                "model_steps_per_s": round(result.steps / result.seconds),
                "t_memorize": result.t_memorize,
                "t_generalize": result.t_generalize,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="nanda")
    parser.add_argument("--models", type=int, nargs="*", default=[1, 64, 256], help="sizes of the ensembles")
    parser.add_argument("--steps", type=int, default=100, help="between evaluations")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=600, help="begin no further section after these")
    parser.add_argument("--compiled", action="store_true", help="and torch.compile, for one model")
    parser.add_argument("--to-the-end", action="store_true", help="train one run of each precision to its end instead")
    parser.add_argument("--interpreted", action="store_true", help="on a CPU in Triton's interpreter, to try it out")
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    args = parser.parse_args()
    if not torch.cuda.is_available() and not args.interpreted:
        raise SystemExit("needs an NVIDIA GPU and a CUDA build of torch")
    device, engine = ("cpu", "triton") if args.interpreted else ("cuda", "auto")
    if args.to_the_end:
        sections = {"one run": to_the_end(args.preset, device, engine)}
        write(f"{args.preset} from beginning to end", sections, args.out)
        return
    title, sections = f"{args.preset} training step", {}
    plan = [("one model" if n == 1 else f"{n} models", n, contenders) for n in args.models]
    makers: dict[str, Callable[[], dict[str, Callable[[], Contender]]]] = {
        name: partial(make, args.preset, device, n, args.steps, engine) for name, n, make in plan
    }
    if args.compiled and device == "cuda":
        makers["one model, compiled"] = partial(compiled, args.preset, args.steps, engine)
    begun = time.monotonic()
    for name, make in makers.items():
        if time.monotonic() - begun > args.seconds:
            print(f"{name}: left out, no time", flush=True)
            continue
        models = 1 if name.startswith("one") else int(name.split()[0])
        sections[name] = per_step(compare(make(), rounds=args.rounds, warmup=1), models, args.steps)
        write(title, sections, args.out)
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
    report(title, sections, args.out)


if __name__ == "__main__":
    main()
