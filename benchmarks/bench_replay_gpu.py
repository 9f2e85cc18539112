"""Training on a GPU from evaluation to evaluation: steps of the recipes at every precision, and whole runs.

python -m benchmarks.bench_replay_gpu --preset nanda [--models 1 64 256] [--only ours|others] [--steps 100] [--out FILE]
python -m benchmarks.bench_replay_gpu --preset nanda --to-the-end [--models 1 64]    # runs, as `grokfast run` does them
python -m benchmarks.bench_replay_gpu --preset nanda --to-the-end --engine reference --products ieee  # plain PyTorch's

A contender's time is that of one step, with its share of an evaluation every `--steps` steps. "eager" is grokfast's
plain PyTorch called step by step (one batched product for all models), "eager in a CUDA graph" the same replayed,
"script" the model as anybody writes it with torch's fused optimizer, without evaluations, and "torch.func vmap" that
for all models. "planned in a CUDA graph, tf32" tells what of a gain is algebra and what kernels: what our kernels
compute, each distinct prefix once, in PyTorch's own operations. `--only others` has one of ours beside. One model's
contenders take turns; those of an ensemble, which would not fit into memory together, are timed one after the other.
After `--seconds` no further section is begun; what fails, for want of memory say, is said and left out. The JSON is
written after every section.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.baselines import eager_step, vmap_step
from benchmarks.bench_ops import in_tf32
from benchmarks.bench_optimizer_gpu import ONLY, captured, only
from benchmarks.interleave import Contender, compare, free, one_by_one, report, write
from grokfast import Experiment, backend, train
from grokfast.models import TransformerConfig
from grokfast.models.transformer.planned_step import TransformerStep
from grokfast.models.transformer.steps import Kernels
from grokfast.training.ensemble import Ensemble
from grokfast.training.outcome import Outcome
from grokfast.training.replay import Replay, Stretch

PRECISIONS = ("ieee", "tf32x3", "tf32", "bf16")
WARM = 3  # stretches: the first is followed by another kind, which is called and then captured
TURN = 3  # stretches of one model in a row


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
        ensemble = Ensemble(experiments)
    return replayed_of(ensemble, experiments, engine)


def replayed_of(ensemble: Ensemble, experiments: list[Experiment], engine: str) -> Callable[[], Any]:
    with backend.using(engine):
        replay = Replay(ensemble, [Outcome(e.criteria) for e in experiments])
    before: list[Stretch] = []

    def run() -> None:
        """As in training, the next stretch is launched before the last is read."""
        with backend.using(engine):
            before.append(replay.launch())
            if len(before) > 1:
                before.pop(0).read()

    return run


def planned(experiments: list[Experiment]) -> Callable[[], Any]:
    """What the kernels compute, in PyTorch's operations, replayed. Raises TypeError where it is no transformer."""
    if not isinstance(experiments[0].model, TransformerConfig):
        raise TypeError(f"experiments must be of a transformer, got {type(experiments[0].model).__name__}")
    with backend.using("reference"):
        ensemble = Ensemble(experiments)
        runs = ensemble.runs
        ensemble.compute = Kernels(
            runs,
            {
                split: TransformerStep(
                    runs.module, rows.inputs, rows.targets, n_rows=rows.counts, loss=runs.spec.loss_op or "",
                    backend="reference",
                )
                for split, rows in runs.rows.items()
            },
        )  # fmt: skip
    return replayed_of(ensemble, experiments, "reference")


def contenders(preset: str, device: str, models: int, steps: int, engine: str) -> dict[str, Callable[[], Contender]]:
    """The first is the baseline. The scripts' times, too, are those of `steps` steps."""
    plain, on_gpu = steps_of(preset, device, models, steps), device == "cuda"
    is_script = on_gpu and isinstance(plain[0].model, TransformerConfig)

    def of_steps(make: Callable[[], Callable[[], Any]]) -> Contender:
        step = make()
        for _ in range(WARM):
            step()
        return Contender(step, repeat=TURN if models == 1 else 1, is_on_gpu=on_gpu)

    makers = _scripts(plain[0], models, steps) if is_script else {}
    makers["eager in a CUDA graph"] = lambda: of_steps(lambda: replayed(plain, "reference"))
    if is_script:
        makers["planned in a CUDA graph, tf32"] = lambda: of_steps(lambda: in_tf32(planned(plain)))
    if models == 1:
        makers["eager"] = lambda: of_steps(lambda: step_by_step(plain, steps))
    for precision in PRECISIONS:
        ours = steps_of(preset, device, models, steps, products=precision)
        makers[f"grokfast, {precision}"] = lambda ours=ours: of_steps(lambda: replayed(ours, engine))  # type: ignore[misc]
    return makers


def _scripts(experiment: Experiment, models: int, steps: int) -> dict[str, Callable[[], Contender]]:
    def contender(make: Callable[[], Callable[[], Any]]) -> Contender:
        one = make()
        one()
        return Contender(lambda: [one() for _ in range(steps)], is_on_gpu=True)

    def graph() -> Callable[[], Any]:
        return captured(eager_step(experiment, device="cuda", capturable=True))

    if models > 1:
        by_vmap = partial(vmap_step, experiment, models, "cuda")
        return {
            "torch.func vmap": lambda: contender(by_vmap),
            "torch.func vmap, tf32": lambda: contender(lambda: in_tf32(by_vmap())),
        }
    return {
        "script, eager": lambda: contender(lambda: eager_step(experiment, device="cuda")),
        "script, eager, tf32": lambda: contender(lambda: in_tf32(eager_step(experiment, device="cuda"))),
        "script in a CUDA graph": lambda: contender(graph),
        "script in a CUDA graph, tf32": lambda: contender(in_tf32(graph)),
    }


def compiled(preset: str, steps: int, engine: str, tf32: bool) -> dict[str, Callable[[], Contender]]:
    """One model beside torch.compile, which takes a minute."""
    plain, some = steps_of(preset, "cuda", 1, steps)[0], contenders(preset, "cuda", 1, steps, engine)
    end, ours = (", tf32", "tf32") if tf32 else ("", "ieee")

    def compile_it() -> Contender:
        one = eager_step(plain, device="cuda", compiled=True, capturable=True)
        one = in_tf32(one) if tf32 else one
        for _ in range(5):
            one()
        return Contender(lambda: [one() for _ in range(steps)], is_on_gpu=True)

    kept = {name: some[name] for name in (f"script, eager{end}", f"script in a CUDA graph{end}", f"grokfast, {ours}")}
    return {**kept, f"torch.compile, max-autotune{end}": compile_it}


def per_step(rows: list[dict[str, Any]], models: int, steps: int) -> list[dict[str, Any]]:
    """Times of `steps` steps as those of one."""
    for row in rows:
        for key in [key for key in row if key.endswith("_ms")]:
            row[key] = round(row[key] / steps, 5)
        row["model_steps_per_s"] = round(models / row["median_ms"] * 1e3) if row["median_ms"] else None
    return rows


def to_the_end(
    preset: str, device: str, engine: str, models: int, precisions: Sequence[str] = PRECISIONS
) -> list[dict[str, Any]]:
    """Whole runs, from nothing to their ends, compilation included: one or as many seeds of each precision."""
    rows: list[dict[str, Any]] = []
    for precision in precisions:
        base = Experiment.preset(preset).override({"device": device, "products": precision})
        begun = time.perf_counter()
        try:
            with backend.using(engine):
                results = train([base.override({"seed": seed}) for seed in range(models)])
        except Exception as error:  # the others are of interest all the same
            print(f"{preset}, {precision}: {type(error).__name__}: {error}", flush=True)
            continue
        seconds, steps = time.perf_counter() - begun, sum(result.steps for result in results)
        memorized = [result.t_memorize for result in results if result.t_memorize is not None]
        done = [result.t_generalize for result in results if result.t_generalize is not None]
        print(f"{preset}, {precision}: {results[0].sentence}; {len(done)} of {models} in {seconds:.1f} s", flush=True)
        rows.append(
            {
                "name": f"{'plain PyTorch' if engine == 'reference' else 'grokfast'}, {precision}",
                "median_ms": round(1e3 * seconds, 1),
                "ratio": round(1e3 * seconds / rows[0]["median_ms"], 3) if rows else 1.0,
                "model_steps_per_s": round(steps / seconds),
                "runs_per_minute": round(60 * models / seconds, 2),
                "generalized": len(done),
                "t_memorize": statistics.median(memorized) if memorized else None,
                "t_generalize": statistics.median(done) if done else None,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="nanda")
    parser.add_argument("--models", type=int, nargs="*", help="sizes of the ensembles; to the end: 1 if not given")
    parser.add_argument("--products", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), help="to the end")
    parser.add_argument("--steps", type=int, default=100, help="between evaluations")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=600, help="begin no further section after these")
    parser.add_argument("--compiled", action="store_true", help="and torch.compile, for one model")
    parser.add_argument("--to-the-end", action="store_true", help="train runs of each precision to their ends instead")
    parser.add_argument("--engine", choices=("auto", "reference"), default="auto", help="to the end")
    parser.add_argument("--only", choices=ONLY, default="all", help="which contenders")
    parser.add_argument("--interpreted", action="store_true", help="on a CPU in Triton's interpreter, to try it out")
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    args = parser.parse_args()
    if not torch.cuda.is_available() and not args.interpreted:
        raise SystemExit("needs an NVIDIA GPU and a CUDA build of torch")
    device, engine = ("cpu", "triton") if args.interpreted else ("cuda", args.engine)
    sections: dict[str, list[dict[str, Any]]] = {}
    if args.to_the_end:
        for n in args.models or [1]:
            name = "one run" if n == 1 else f"{n} runs"
            sections[name] = to_the_end(args.preset, device, engine, n, args.products)
            write(f"{args.preset} from beginning to end", sections, args.out)
        return
    title, sizes = f"{args.preset} training step", [1, 64, 256] if args.models is None else args.models
    plan = [("one model" if n == 1 else f"{n} models", n, contenders) for n in sizes]
    makers: dict[str, Callable[[], dict[str, Callable[[], Contender]]]] = {
        name: lambda n=n, make=make: only(make(args.preset, device, n, args.steps, engine), args.only)  # type: ignore[misc]
        for name, n, make in plan
    }
    if args.compiled and device == "cuda":
        for tf32 in (True, False):
            makers[f"one model, compiled{', tf32' * tf32}"] = partial(compiled, args.preset, args.steps, engine, tf32)
    begun = time.monotonic()
    for name, make in makers.items():
        if time.monotonic() - begun > args.seconds:
            print(f"{name}: left out, no time", flush=True)
            continue
        models = 1 if name.startswith("one") else int(name.split()[0])

        def keep(rows: list[dict[str, Any]], name: str = name, models: int = models) -> None:
            sections[name] = per_step(rows, models, args.steps)
            write(title, sections, args.out)

        if models == 1:
            keep(compare(make(), rounds=args.rounds, warmup=1))
        else:
            one_by_one(make(), rounds=args.rounds, keep=keep)
        free()
    report(title, sections, args.out)


if __name__ == "__main__":
    main()
