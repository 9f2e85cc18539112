"""A PREDICTION of how long a training step takes on an H200, beside what ptxas says of the kernels; nothing is timed.

python -m benchmarks.predict_step [--models 1 64 256 1024] [--results DIR]

The bytes that the launches of a step move and the products that they make are counted from the kernels, and divided by
the datasheet's rates; a launch inside a CUDA graph is taken to cost 2 µs more. Full rates are reached by no kernel of
this size, least of all by a single model's; on the other hand what lies in the L2 cache is read faster than memory.
Read it as a yardstick, and as where the time goes. A line for which DIR has a measurement (gpu-*.json, title "NAME
training step") shows that instead, and how far the prediction was off.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from grokfast import Experiment, checks, tasks
from grokfast.filters import EMA, MA
from grokfast.nn import GrokTransformer, TransformerConfig, transformer_cost
from grokfast.nn.transformer_step import TransformerStep
from grokfast.ops.pair_step import plan
from grokfast.training.update import state_names
from grokfast.training.waves import n_parameters

RESULTS = Path(__file__).parent / "results"
LAUNCH = 2e-6  # seconds, in a graph; an assumption, to be measured
PRECISIONS = ("ieee", "tf32x3", "tf32", "bf16")


class Ceilings(NamedTuple):
    """Bytes per second, and operations per second of each precision's products."""

    memory: float
    flops: dict[str, float]


# NVIDIA H200 Tensor Core GPU, datasheet (SXM): 4.8 TB/s; FP32 67 TFLOPS; TF32 989 and BF16 1,979 with sparsity, which
# nothing here has, so half of that. tf32x3 makes three tf32 products of one: counted as three.
H200 = Ceilings(4.8e12, {"ieee": 67e12, "tf32x3": 494.5e12, "tf32": 494.5e12, "bf16": 989.5e12})


class Work(NamedTuple):
    """One kind of launch in a step of one model: how many, bytes moved, and operations of products, all together."""

    name: str
    launches: int
    bytes: float
    flops: float


def configurations() -> dict[str, Experiment]:
    """What is predicted, by the name that its measurements have."""
    quick = Experiment.preset("quick")
    mlp = quick.override({"task.train_fraction": 0.5, "model.width": 512, "optimizer.lr": 1e-3})
    presets = {name: Experiment.preset(name) for name in ("nanda", "power", "grokfast")}
    return {**presets, "quick": quick, "p = 97 MLP": mlp}


def step_of(experiment: Experiment, models: int, precision: str) -> list[Work]:
    """The launches of a training step of `models` models together."""
    data = tasks.build(experiment.task, seed=experiment.seed)
    rows = min(experiment.schedule.batch_size or len(data.train_inputs), len(data.train_inputs))
    size = n_parameters(experiment, data)
    if isinstance(experiment.model, TransformerConfig):
        cost: NamedTuple = transformer_cost.cost(
            _Sized(experiment, models, precision),  # type: ignore[arg-type]
            None if rows == len(data.train_inputs) else rows,
        )
    else:
        sizes = {"width": experiment.model.width, "n_tokens": data.n_tokens, "n_answers": data.n_answers}
        cost = plan.cost(models, rows, **sizes, precision=precision)
    moved, flops, launches = cost
    work = [Work("loss and gradient", launches, moved, flops)]
    if rows < len(data.train_inputs):
        work.append(Work("batch", 2, 16 * models * rows, 0))
    return [*work, *optimizer_work(experiment, models * size)]


def optimizer_work(experiment: Experiment, numbers: int) -> list[Work]:
    """The tick, which reads the gradient, and the update of so many parameters."""
    states = [name for name in state_names(experiment.optimizer, experiment.filter) if name != "ring"]
    streams = 3 + 2 * len(states)  # gradient, parameter twice, each state twice
    ring = {None: 0, "full": 8, "bfloat16": 4, "host": 0}[getattr(experiment.filter, "ring", None)]
    name = {EMA: "EMA and ", MA: "MA and "}.get(type(experiment.filter), "") + experiment.optimizer.name
    return [Work("tick", 1, 4 * numbers, 0), Work(f"{name} update", 1, (4 * streams + ring) * numbers, 0)]


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
    data, config = tasks.build(experiment.task, seed=experiment.seed), experiment.model
    assert isinstance(config, TransformerConfig)
    model = GrokTransformer(config, n_tokens=data.n_tokens, n_answers=data.n_answers, seq_len=data.seq_len)
    return TransformerStep(model, data.train_inputs[None], data.train_targets[None], loss=experiment.loss)


def seconds(work: list[Work], precision: str, ceilings: Ceilings = H200) -> float:
    """Of one step: for each kind of launch the longer of moving and multiplying, and the launches themselves."""
    rate = ceilings.flops[precision]
    return sum(LAUNCH * w.launches + max(w.bytes / ceilings.memory, w.flops / rate) for w in work)


def measurements(results: Path) -> dict[tuple[str, int, str], tuple[float, str]]:
    """(seconds, device) of a step by configuration, number of models and precision."""
    found = {}
    for file in sorted(results.glob("gpu-*.json")):
        content: dict[str, Any] = json.loads(file.read_text())
        name = content.get("title", "").removesuffix(" training step")
        for section, rows in content.get("sections", {}).items():
            models = re.fullmatch(r"(one|\d+) models?", section)
            for row in rows if models else []:
                precision = row["name"].removeprefix("grokfast, ")
                if models and precision in PRECISIONS and precision != row["name"]:
                    count = 1 if models[1] == "one" else int(models[1])
                    device = content.get("machine", {}).get("gpu", "an unknown device")
                    found[name, count, precision] = row["median_ms"] / 1e3, device
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


def lines(models: list[int], results: Path) -> Iterator[str]:
    """The tables as text."""
    known = measurements(results)
    yield "Kernels, compiled for GPUs that need not be here (benchmarks.resources):"
    yield from resources(results)
    yield ""
    yield "PREDICTION, not a measurement: bytes and products counted, at the H200 datasheet's rates; a launch 2 µs."
    yield ""
    head = f"{'':<12} {'models':>6} {'products':>8} {'launches':>8} {'MB':>9} {'GFLOP':>9} {'µs/step':>9}"
    yield f"{head} {'model-steps/s':>13}"
    for name, experiment in configurations().items():
        for count in models:
            for precision in PRECISIONS:
                work = step_of(experiment, count, precision)
                predicted = seconds(work, precision)
                launches, moved, flops = (sum(w[i] for w in work) for i in (1, 2, 3))
                time, origin = predicted, "predicted"
                if (name, count, precision) in known:
                    time, device = known[name, count, precision]
                    origin = f"MEASURED on {device}: {time / predicted:.1f} × the prediction"
                figures = f"{launches:>8} {moved / 1e6:>9,.1f} {flops / 1e9:>9,.2f} {time * 1e6:>9,.1f}"
                yield f"{name:<12} {count:>6} {precision:>8} {figures} {count / time:>13,.0f}  {origin}"
        yield f"  where it goes, {models[0]} models, tf32:"
        for w in step_of(experiment, models[0], "tf32"):
            if w.launches:
                yield f"    {seconds([w], 'tf32') * 1e6:>8,.1f} µs {w.launches:>4} launches  {w.name}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, nargs="+", default=[1, 64, 256, 1024], help="sizes of the ensembles")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where measurements are looked for")
    args = parser.parse_args()
    for count in args.models:
        checks.integer("--models", count, minimum=1)
    print("\n".join(lines(args.models, args.results)))


if __name__ == "__main__":
    main()
