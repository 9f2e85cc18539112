"""A PREDICTION of how long a training step takes on a GPU, beside what ptxas says of the kernels; nothing is timed.

python -m benchmarks.predict_step [--device H200|H100] [--models 1 64 256 1024] [--results DIR]

Of each launch of a step are counted its programs, the bytes that they ask for, those of them that memory must serve
because the L2 cache no longer holds them, the operations of its products, and, where the compiled kernels were executed
on the CPU, the instructions of their warps, the products that they repeat and the turns of the shared memory. It takes
no less than what a launch in a CUDA graph costs, and the longest of: the memory's bytes, the cache's bytes, the shared
memory's, the products, the instructions at four a cycle, and the share of all that falls to the processor with most
programs: "at most" is a LIMIT, at these rates, which none of this size reaches. An aim above it is marked. What
is "predicted" is a range: memory at the rate that others have measured, and instructions as fast as so few warps are
likely to issue them (`prediction.issue`). Launches do not overlap. A line for which DIR has a measurement (gpu-*.json,
title "NAME training step") shows that instead, and how far from the limit it is; a launch that was profiled there
(title "NAME profile") shows its time beside its own.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.prediction import pair_step, transformer
from benchmarks.prediction.devices import DEVICES, H200, Ceilings
from benchmarks.prediction.issue import executed
from benchmarks.prediction.timing import Time, spent, times, whole
from benchmarks.prediction.work import Launch, Use
from grokfast import Experiment, checks
from grokfast.models import GrokTransformer, TransformerConfig
from grokfast.models.transformer.planned_step import TransformerStep
from grokfast.ops.pair_step import plan
from grokfast.transforms.base import Layout
from grokfast.transforms.filters import EMA, MA
from grokfast.transforms.flat import state_slots
from grokfast.transforms.sizes import MANY, chunk_size
from grokfast.transforms.sizes import ROW_BLOCK as BLOCK
from grokfast.transforms.sizes import ROW_CHUNK as CHUNK

RESULTS = Path(__file__).parent / "results"
PRECISIONS = ("ieee", "tf32x3", "tf32", "bf16")
SHOWN, ENSEMBLE = "tf32", 256  # the precision and one of the sizes whose launches are listed one by one


class Aim(NamedTuple):
    """Model-steps a second that a step should take."""

    name: str
    models: int
    precision: str
    rate: float


AIMS = [
    Aim("nanda", 1, "tf32", 25_000),
    Aim("nanda", 1, "tf32x3", 13_000),
    Aim("nanda", ENSEMBLE, "tf32", 40_000),
    Aim("nanda", ENSEMBLE, "tf32x3", 20_000),
    Aim("nanda", ENSEMBLE, "bf16", 75_000),
    Aim("p = 97 MLP", ENSEMBLE, "tf32", 80_000),
]


def configurations() -> dict[str, Experiment]:
    """What is predicted, by the name that its measurements have."""
    quick = Experiment.preset("quick")
    mlp = quick.override({"task.train_fraction": 0.5, "model.width": 512, "optimizer.lr": 1e-3})
    presets = {name: Experiment.preset(name) for name in ("nanda", "power", "grokfast")}
    return {**presets, "quick": quick, "p = 97 MLP": mlp}


def step_of(experiment: Experiment, models: int, precision: str) -> list[Launch]:
    """The launches of a training step of `models` models together."""
    data = experiment.task.build(seed=experiment.seed)
    rows = min(experiment.schedule.batch_size or len(data.train.inputs), len(data.train.inputs))
    is_batch, splits = rows < len(data.train.inputs), 1
    if isinstance(experiment.model, TransformerConfig):
        sized = _Sized(experiment, models, precision)
        launches = transformer.cost(sized, rows if is_batch else None)  # type: ignore[arg-type]
        parameters = {name: shape.numel() for name, shape in sized.shapes.items()}
    else:
        width = experiment.model.width
        sizes = {"width": width, "n_tokens": data.n_tokens, "n_answers": data.n_answers}
        launches = pair_step.cost(models, rows, **sizes, precision=precision, partial=True, minibatch=is_batch)
        splits = plan.splits_of(models, rows, precision, **sizes)
        parameters = {"tables": (2 * data.n_tokens + 1) * width, "classifier": data.n_answers * (width + 1)}
    if is_batch:
        size = 8 * models * rows
        select = Use("ring", size, size), Use("batch", size, size, loads=False, stores=True)
        launches = [Launch("batch", "", max(1, size // 4096), (select,), count=2), *launches]
    return [*launches, *optimizer_launches(experiment, models, parameters, splits)]


def optimizer_launches(
    experiment: Experiment, models: int, parameters: Mapping[str, int], splits: int = 1
) -> list[Launch]:
    """The tick, which reads the gradient, or sums its parts, and the update of so many numbers of each model."""
    numbers = sum(parameters.values())
    whole = 4 * models * numbers
    grad = Use("grad", whole, whole)
    sums = Use("parts", splits * whole, splits * whole), grad._replace(loads=False, stores=True)
    chunk = CHUNK if models * numbers >= MANY else BLOCK
    tick = Launch("tick", "tick_kernel", models * -(-numbers // chunk), ((grad,) if splits == 1 else sums,))
    layout = Layout.of({"parameters": (numbers,)})
    slots = state_slots(experiment.optimizer, experiment.filter, layout, numbers, torch.float32)
    states = [name for name in slots if name != "ring"]
    uses = [grad, *(Use(name, whole, 2 * whole, stores=True) for name in states)]
    uses += [Use(name, 4 * models * n, 8 * models * n, stores=True) for name, n in parameters.items()]
    ring = {None: 0, "full": 4, "bfloat16": 2, "host": 0}[getattr(experiment.filter, "ring", None)] * models * numbers
    if ring:  # one gradient leaves the window, another enters
        uses += [Use("ring, oldest", ring, ring), Use("ring, newest", ring, ring, loads=False, stores=True)]
    name = {EMA: "EMA and ", MA: "MA and "}.get(type(experiment.filter), "") + experiment.optimizer.rule
    programs = -(-models * numbers // chunk_size(models * numbers))
    return [tick, Launch(f"{name} update", "update_kernel", programs, (tuple(uses),))]


class _Sized:
    """What transformer_cost asks of a TransformerStep, of any number of models without their data."""

    def __init__(self, experiment: Experiment, models: int, precision: str) -> None:
        step = _step_of_one(experiment)
        self.config, self.targets, self.n_outputs, self.shapes = step.config, step.targets, step.n_outputs, step.shapes
        self.n_models, self.precision, self.n_parameters = models, precision, step.n_parameters
        self.plan, self.tables = self, step.plan.tables
        self._plan, self.own_positions = step.plan, step.plan.own_positions

    def rows(self, batch: torch.Tensor | None = None) -> Any:
        return self._plan.rows(None if batch is None else batch[:1])


@functools.cache
def _step_of_one(experiment: Experiment) -> TransformerStep:
    data, config = experiment.task.build(seed=experiment.seed), experiment.model
    assert isinstance(config, TransformerConfig)
    model = GrokTransformer(config, n_tokens=data.n_tokens, n_answers=data.n_answers, seq_len=data.seq_len)
    return TransformerStep(model, data.train.inputs[None], data.train.targets[None], loss=experiment.loss.op)


def predicted(name: str, models: int, precision: str, ceilings: Ceilings = H200) -> tuple[list[Time], Time]:
    """Launches and the step of a configuration, with its instructions where they are counted."""
    step = step_of(configurations()[name], models, precision)
    found = times(step, precision, ceilings, executed(name, models, precision, step), models)
    return found, whole(found)


class Measured(NamedTuple):
    """What files of results say: of steps, by configuration, models and precision, (seconds, device); of the kernels
    that were profiled, seconds by name of the launch."""

    steps: dict[tuple[str, int, str], tuple[float, str]]
    kernels: dict[tuple[str, int, str], dict[str, float]]


def measurements(results: Path) -> Measured:
    """Of the files in a folder."""
    found = Measured({}, {})
    for file in sorted(results.glob("gpu-*.json")):
        try:
            content: dict[str, Any] = json.loads(file.read_text())
        except ValueError:  # stopped while it was written
            continue
        title = content.get("title", "")
        name = title.removesuffix(" training step").removesuffix(" profile")
        for section, rows in content.get("sections", {}).items():
            models = re.fullmatch(r"(one|\d+) models?(?:, (\w+))?", section)
            if models is None:
                continue
            count = 1 if models[1] == "one" else int(models[1])
            if title.endswith(" profile") and models[2]:
                kernels = found.kernels.setdefault((name, count, models[2]), {})
                kernels |= {row["name"]: row["median_us"] / 1e6 for row in rows if "at_least_us" in row}
                continue
            for row in rows if models[2] is None else []:
                precision = row["name"].removeprefix("grokfast, ")
                if precision in PRECISIONS and precision != row["name"]:
                    device = content.get("machine", {}).get("gpu", "an unknown device")
                    found.steps[name, count, precision] = row["median_ms"] / 1e3, device
    return found


def resources(results: Path) -> list[str]:
    """The offline table, a line for each kernel and compute capability."""
    path = results / "kernel-resources.json"
    if not path.exists():
        return [f"no {path}: python -m benchmarks.resources --out {path}"]
    return [
        f"sm_{row['sm']:<4} {row['registers']:>4} registers {row['spilled_bytes']:>5} bytes spilled "
        f"{row['shared_bytes']:>7} shared  {row['kernel']}"
        for row in json.loads(path.read_text())["rows"]
    ]


def launch_lines(found: Sequence[Time], measured: Mapping[str, float]) -> Iterator[str]:
    """Where a step's time goes, launch by launch: the least that each takes."""
    yield (
        f"    {'':<34} {'launches':>8} {'programs':>9} {'MB asked':>9} {'of memory':>9} {'GFLOP':>8} {'µs ≥':>9} "
        f"{'measured':>9}  bound by"
    )
    for time in found:
        launch = time.launch
        known = f"{measured[launch.name] * 1e6:>9,.1f}" if launch.name in measured else f"{'':>9}"
        yield (
            f"    {launch.name:<34} {launch.count:>8} {launch.programs:>9,} {launch.bytes / 1e6:>9,.1f} "
            f"{time.memory / 1e6:>9,.1f} {launch.flops / 1e9:>8,.2f} {time.seconds * 1e6:>9,.1f} {known}  {time.bound}"
        )


def lines(models: list[int], results: Path, ceilings: Ceilings = H200) -> Iterator[str]:
    """The tables as text."""
    known = measurements(results)
    yield "Kernels, compiled for GPUs that need not be here (benchmarks.resources):"
    yield from resources(results)
    yield ""
    yield f"PREDICTION, not a measurement: programs, bytes, products and instructions, over an {ceilings.name}'s rates."
    yield (
        f"Datasheet: memory {ceilings.memory / 1e12:.1f} TB/s, of which {ceilings.sustained / 1e12:.1f} are reached, "
        f"and products; {ceilings.instructions / 1e12:.2f}e12 instructions of warps and "
        f"{ceilings.shared / 1e12:.1f} TB of shared memory a second. Measured by others: a launch "
        f"{ceilings.launch * 1e6:.1f} µs, L2 {ceilings.l2 / 1e12:.1f} TB/s, {ceilings.cache / 1e6:.0f} MB of it. "
        f"ASSUMED: one processor's port to L2, {ceilings.port / 1e9:.0f} GB/s, and how fast few warps issue."
    )
    yield ""
    for name in configurations():
        head = f"{name:<12} {'models':>6} {'products':>8} {'launches':>8} {'MB asked':>9} {'of memory':>9} {'GFLOP':>9}"
        yield f"{head} {'µs at least':>11} {'steps/s at most':>15} {'predicted':>17}"
        for count in models:
            for precision in PRECISIONS:
                found, step = predicted(name, count, precision, ceilings)
                likely, origin = range_of(step, count) or "not counted", spent(found)
                if (name, count, precision) in known.steps:
                    taken, device = known.steps[name, count, precision]
                    origin = f"MEASURED on {device}: {taken * 1e6:,.1f} µs, {taken / step.seconds:.1f} × the limit"
                yield (
                    f"{name:<12} {count:>6} {precision:>8} {step.launch.count:>8} "
                    f"{sum(time.launch.bytes for time in found) / 1e6:>9,.1f} {step.memory / 1e6:>9,.1f} "
                    f"{sum(time.launch.flops for time in found) / 1e9:>9,.2f} {step.seconds * 1e6:>11,.1f} "
                    f"{count / step.seconds:>15,.0f} {likely:>17}  {origin}"
                )
        for count in sorted({models[0], ENSEMBLE if ENSEMBLE in models else models[-1]}):
            yield f"  where it goes, {count} model{'s' * (count > 1)}, {SHOWN}:"
            found, _ = predicted(name, count, SHOWN, ceilings)
            yield from launch_lines(found, known.kernels.get((name, count, SHOWN), {}))
        yield ""
    yield from aim_lines(known, ceilings)


def range_of(step: Time, models: int) -> str:
    """Model-steps a second that are likely, from and to; empty where instructions are not counted."""
    return "" if step.likely is None else " to ".join(f"{models / end:,.0f}" for end in reversed(step.likely))


def aim_lines(known: Measured, ceilings: Ceilings) -> Iterator[str]:
    """What is aimed at, what comes of it, and what stands between."""
    yield (
        f"{'aim':<12} {'models':>6} {'products':>8} {'model-steps/s':>13} {'at most':>9} {'predicted':>17} "
        f"{'measured':>9}  spent on"
    )
    for aim in AIMS:
        found, step = predicted(aim.name, aim.models, aim.precision, ceilings)
        measured, most = known.steps.get(aim[:3]), aim.models / step.seconds
        shown = f"{aim.models / measured[0]:>9,.0f}" if measured else f"{'not yet':>9}"
        verdict = "" if most >= aim.rate else f"; ABOVE THE LIMIT, which is {most / aim.rate:.0%} of the aim"
        yield (
            f"{aim.name:<12} {aim.models:>6} {aim.precision:>8} {aim.rate:>13,.0f} {most:>9,.0f} "
            f"{range_of(step, aim.models) or 'not counted':>17} {shown}  {spent(found)}{verdict}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, nargs="+", default=[1, 64, 256, 1024], help="sizes of the ensembles")
    parser.add_argument("--device", choices=DEVICES, default=H200.name)
    parser.add_argument("--results", type=Path, default=RESULTS, help="where measurements are looked for")
    args = parser.parse_args()
    for count in args.models:
        checks.integer("--models", count, minimum=1)
    print("\n".join(lines(args.models, args.results, DEVICES[args.device])))


if __name__ == "__main__":
    main()
