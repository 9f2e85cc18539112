"""Whether two versions give the same bits on one machine: curves and weights of every recipe, as sha256.

`python -m benchmarks.same_bits record GOLD.json` with the one version, `... check GOLD.json [--cases quick,nanda]` with
the other names what differs (exit status 1). Of the file only `grokfast` is imported, so that it runs on an older
version, too: `python benchmarks/same_bits.py record GOLD.json` with that version's Python. Two to three minutes on two
slow cores. Bits depend on the processor, torch and the number of threads (2 here), which are recorded beside them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

import grokfast
from grokfast import EMA, MA, Experiment, RunStore, train
from grokfast.training import Interrupted, Observer, resume

COLUMNS = ("step", "train_loss", "test_loss", "train_accuracy", "test_accuracy", "weight_norm")
THREADS = 2
IS_OLD = "optimizer.name" in Experiment.preset("quick").flat()  # the version before parts had a registry
Options = Mapping[str, Any]


def optimizer(kind: str, options: Options) -> dict[str, Any]:
    """Overrides that choose an optimizer: all that differs between the versions."""
    said = {f"optimizer.{name}": value for name, value in options.items()}
    return {"optimizer.name" if IS_OLD else "optimizer": kind, **said}


def made(preset: str, steps: int, eval_every: int, options: Options = {}) -> Experiment:  # noqa: B006
    schedule = {"schedule.steps": steps, "schedule.eval_every": eval_every, "schedule.stop_after": None}
    return Experiment.preset(preset).override({**schedule, **options})


def quick(steps: int = 300, **options: Any) -> Experiment:
    return made("quick", steps, 7, {name.replace("__", "."): value for name, value in options.items()})


SMALL = {"task.p": 23, "model.d_model": 32, "model.d_mlp": 64, "model.n_heads": 2}


def small(steps: int = 100, preset: str = "nanda", **options: Any) -> Experiment:
    """A transformer of a few thousand parameters."""
    said = {name.replace("__", "."): value for name, value in options.items()}
    return made(preset, steps, 7, {**SMALL, **said})


THREE = ((0, 1.0, 0.4), (1, 0.5, 0.5), (2, 2.0, 0.3))  # seed, factor of the rate, share of the pairs


def three(make: Callable[..., Experiment], **options: Any) -> list[Experiment]:
    rate = make().optimizer.lr
    return [
        make(seed=seed, optimizer__lr=rate * factor, task__train_fraction=share, **options)
        for seed, factor, share in THREE
    ]


LION = optimizer("lion", {"lr": 1e-3, "weight_decay": 0.1, "betas": (0.9, 0.99)})
ADAM = optimizer("adam", {"lr": 1e-3, "weight_decay": 1e-4, "betas": (0.9, 0.98), "eps": 1e-8})
SGD = optimizer("sgd", {"lr": 0.1, "weight_decay": 1e-4, "momentum": 0.9, "nesterov": True, "warmup": 20})
AVERAGE = MA(window_size=20, lamb=2.0)
SUM = MA(window_size=10, lamb=0.1, filter_type="sum", warmup=False)

CASES: dict[str, Callable[[], list[Experiment]]] = {
    "quick": lambda: [quick()],
    "gromov": lambda: [made("gromov", 300, 10)],
    "swaroop": lambda: [made("swaroop", 300, 10)],
    "prieto": lambda: [made("prieto", 300, 10)],
    "nanda": lambda: [made("nanda", 60, 20)],
    "power": lambda: [made("power", 60, 20)],
    "grokfast": lambda: [made("grokfast", 60, 20)],
    "quick-ema": lambda: [quick(filter=EMA(alpha=0.9, lamb=1.0))],
    "quick-ma": lambda: [quick(filter=AVERAGE)],
    "quick-ma-sum": lambda: [quick(filter=SUM)],
    "quick-ma-bfloat16": lambda: [quick(filter=MA(window_size=20, lamb=2.0, ring="bfloat16"))],
    "quick-lion": lambda: [quick().override(LION)],
    "quick-lion-ema": lambda: [quick(filter=EMA()).override(LION)],
    "quick-adam": lambda: [quick().override(ADAM)],
    "quick-sgd": lambda: [quick().override(SGD)],
    "quick-fp64": lambda: [quick(precision="float64")],
    "quick-batches": lambda: [quick(schedule__batch_size=512)],
    "quick-noise": lambda: [quick(task__label_noise=0.1, task__stratified=True, task__operation="conditional")],
    "quick-reference": lambda: [quick(engine="reference")],
    "quick-three": lambda: three(quick),
    "quick-three-batches": lambda: three(quick, schedule__batch_size=500, filter=AVERAGE),
    "quick-resumed": lambda: [quick(schedule__batch_size=512, filter=EMA())],
    "quick-resumed-ma": lambda: [quick(filter=AVERAGE)],
    "quick-longer": lambda: [quick(schedule__batch_size=512)],
    "gromov-three-fp64": lambda: [quick(100, model__activation="square", model__bias=False, model__depth=2, loss="mse",
                                        precision="float64", seed=seed) for seed in range(3)],
    "small": lambda: [small()],
    "small-ma": lambda: [small(filter=AVERAGE)],
    "small-lion": lambda: [small().override(LION)],
    "small-fp64": lambda: [small(precision="float64")],
    "small-batches": lambda: [small(schedule__batch_size=50)],
    "small-dropout": lambda: [small(model__dropout=0.1)],
    "small-tied": lambda: [small(model__tied=True, model__norm="pre", model__activation="gelu", loss="mse")],
    "small-power": lambda: [small(preset="power", schedule__batch_size=100)],
    "small-grokfast": lambda: [small(preset="grokfast", schedule__batch_size=100)],
    "small-reference": lambda: [small(engine="reference")],
    "small-three": lambda: three(small),
    "small-three-batches": lambda: three(small, schedule__batch_size=64, filter=AVERAGE),
    "small-three-dropout": lambda: three(small, model__dropout=0.1),
    "small-resumed": lambda: [small(schedule__batch_size=50, filter=EMA())],
    "small-resumed-dropout": lambda: [small(model__dropout=0.1)],
}  # fmt: skip


class StopAt(Observer):
    """Interrupts the run once it has taken so many steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def stepped(self, steps: int) -> None:
        if steps >= self.steps:
            self.steps = sys.maxsize
            os.kill(os.getpid(), signal.SIGINT)


def results(name: str, experiments: list[Experiment], folder: Path) -> tuple[list[Any], dict[str, Any]]:
    """What they end with, and the tensors of the checkpoint that one leaves which went on."""
    if "-resumed" not in name and "-longer" not in name:
        return train(experiments), {}
    (experiment,) = experiments
    steps = experiment.schedule.steps
    with RunStore(folder / name) as store:
        if "-longer" in name:
            run_id = train(experiment.override({"schedule.steps": steps // 2}), store=store).run_id
            result = resume(run_id, store, steps=steps)
        else:
            try:
                train(experiment, store=store, observers=[StopAt(steps // 2 + 1)])
                raise AssertionError(f"{name} was not interrupted")
            except Interrupted as interrupted:
                (run_id,) = interrupted.run_ids
            result = resume(run_id, store)
        kept = store.has_checkpoint(run_id)  # long ago a finished run had none any more
        return [result], dict(store.load_checkpoint(run_id)[0]) if kept else {}


def digests(name: str, folder: Path, device: str) -> dict[str, str]:
    """Of each curve, weight and tensor of the checkpoint."""
    experiments = [experiment.override({"device": device}) for experiment in CASES[name]()]
    ended, checkpoint = results(name, experiments, folder)
    found = {f"checkpoint {key}": sha256(checkpoint[key]) for key in sorted(checkpoint)}
    for i, result in enumerate(ended):
        run = f"run {i} " if len(ended) > 1 else ""
        curves = {column: torch.as_tensor(result.curves[column]).double() for column in COLUMNS}
        assert len(curves["step"]) > 3
        found |= {f"{run}curve {column}": sha256(curve) for column, curve in curves.items()}
        found |= {f"{run}weight {key}": sha256(weight) for key, weight in result.weights.items()}
    return found


def sha256(tensor: torch.Tensor) -> str:
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(raw.numpy().tobytes()).hexdigest()[:32]


def machine(device: str) -> dict[str, str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {
        "cpu": cpu,
        "device": device if device == "cpu" else torch.cuda.get_device_name(),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "grokfast": f"{grokfast.__version__}, {'before' if IS_OLD else 'with'} parts",
    }


def computed(names: list[str], device: str) -> dict[str, dict[str, str]]:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            begun = time.perf_counter()
            found[name] = digests(name, Path(folder), device)
            print(f"{name:<24} {time.perf_counter() - begun:6.1f} s", file=sys.stderr, flush=True)
    return found


def check(gold: Mapping[str, Any], names: list[str], device: str) -> int:
    """Say what differs; how many cases do. Tensors that only one of the versions has are no difference in bits."""
    for key, value in machine(device).items():
        if value != gold["machine"][key]:
            print(f"note: {key} was {gold['machine'][key]}, is {value}")
    different = 0
    for name, found in computed(names, device).items():
        known = gold["cases"].get(name)
        if known is None:
            print(f"{name}: not in the recording")
            continue
        both = [key for key in known if key in found]
        wrong = [key for key in both if known[key] != found[key]]
        absent = [key for key in known if key not in found]
        lost = [key for key in absent if not key.startswith("checkpoint ")]
        if wrong or lost:
            different += 1
            print(f"{name}: DIFFERENT: {', '.join(wrong + [key + ' (missing)' for key in lost])}")
        elif absent:
            print(f"{name}: no longer there: {', '.join(absent)}")
    print(f"{different} of {len(names)} cases differ")
    return different


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["record", "check"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--cases", help=f"comma-separated, of {', '.join(CASES)}; default: all")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(THREADS)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in a background shell it is ignored
    names = args.cases.split(",") if args.cases else list(CASES)
    for name in names:
        if name not in CASES:
            parser.error(f"unknown case {name!r}; there are {', '.join(CASES)}")
    if args.action == "check":
        sys.exit(1 if check(json.loads(args.file.read_text()), names, args.device) else 0)
    recording = {"machine": machine(args.device), "cases": computed(names, args.device)}
    args.file.write_text(json.dumps(recording, indent=1) + "\n")


if __name__ == "__main__":
    main()
