"""What this machine has, which implementation each operation will use here, and why."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch

import grokfast
from grokfast import backend, parts
from grokfast.ops.dispatch import TORCHS_OWN
from grokfast.training import PRESETS, Experiment
from grokfast.training.ensemble import Ensemble, choice_of, resolve_device
from grokfast.training.memory import keep_freed_memory
from grokfast.training.probing import Probes

PROBED = ("quick", "nanda")  # the presets that probes are timed with
TRIES = 3


def machine() -> list[tuple[str, str]]:
    """Versions and devices, as (what, found) pairs."""
    extension = backend.extension()
    rows = [
        (
            "grokfast",
            f"{grokfast.__version__}, Python {platform.python_version()} on {platform.machine()} {sys.platform}",
        ),
        ("torch", f"{torch.__version__}, {torch.get_num_threads()} threads of {os.cpu_count()} processors"),
        ("GPU", _gpu()),
        ("triton", _version("triton") or "not installed (GPU kernels need it)"),
    ]
    if extension is None:
        rows.append(("C++ extension", f"not in use: {backend.why_no_extension()}"))
        rows.append(("CUDA extension", "not in use"))
    else:
        rows.append(("C++ extension", "built"))
        without = backend.build_info().get("why") or "not compiled in"
        rows.append(("CUDA extension", "built" if extension.with_cuda else f"not built: {without}"))
    for extra, package in (("tensorboard",) * 2, ("wandb",) * 2, ("ray",) * 2, ("parquet", "pyarrow")):
        rows.append((extra, _version(package) or f"not installed: pip install 'grokfast[{extra}]'"))
    return rows


def operations() -> list[tuple[str, str, str]]:
    """(operation, where, implementation) as they will be chosen here."""
    why = backend.why_no_extension() if backend.extension() is None else ""
    costs = f"plain PyTorch, {why}"
    fast = "C++ extension"
    rows = [
        (
            "GrokFast + AdamW, Adam, SGD, Lion",
            "CPU fp32",
            f"{fast}, filter and update in one pass" if not why else costs,
        ),
        ("GrokFast + other optimizers", "CPU fp32", f"{fast}, the filter in one pass" if not why else costs),
        ("gradfilter_ema, gradfilter_ma", "any", "PyTorch, O(1) in the window"),
        ("ops.pair_embed", "CPU fp32", fast if not why else costs),
        ("ops.classify", "CPU fp32", fast if not why else costs),
        (
            "ops.gathered_attention, ops.layer_norm, ops.linear_cross_entropy",
            "CPU fp32",
            fast if not why else costs,
        ),
        ("ops.mlp", "CPU fp32", _mlp(why)),
        (
            "matrix products",
            "any",
            f"PyTorch ({_blas()} on a CPU)",
        ),
        ("products of what a relu leaves", "CPU fp32", _active(why)),
        ("ops.attention", "CPU fp32", _attention()),
    ]
    fused = "ops.mlp, ops.attention, ops.linear_cross_entropy, ops.pair_embed, ops.layer_norm"
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        device = torch.device("cuda", i)
        kernels, missing = backend.device_kernels(device), backend.why_no_device_kernels(device)
        by = {"triton": "Triton", "cuda": "CUDA extension", None: f"plain PyTorch, {missing}"}[kernels]
        launch = f"{by}, one launch" if kernels else by
        rows.append(("GrokFast + AdamW, Adam, SGD, Lion", str(device), f"{launch} for filter and update"))
        rows.append(("GrokFast + other optimizers", str(device), f"{launch} for the filter"))
        rows.append((fused, str(device), "Triton" if kernels == "triton" else f"plain PyTorch {missing}".strip()))
        rows.append(("every other operation", str(device), "plain PyTorch"))
    return rows + training_steps()


def training_steps() -> list[tuple[str, str, str]]:
    """(grokfast run PRESET, where, which training step and why) on the device that it would run on."""
    device, rows = resolve_device("auto"), []
    for name, experiment in PRESETS.items():
        said = f"needs {missing}" if (missing := experiment.task.missing()) else ""
        said = said or str(choice_of(experiment, device, experiment.task.build(seed=experiment.seed)))
        rows.append((f"grokfast run {name}", str(device), said))
    return rows


def probe_costs() -> list[tuple[str, ...]]:
    """(probe, what it adds from one evaluation to the next of each preset in PROBED): timed here, now, on the CPU.

    "" where the preset's task has nothing of the kind. It is time of one thread's that counts, the least of a few, so
    that a busy machine says nearly what an idle one does.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_freed_memory()
    try:
        return _probe_costs()
    finally:
        torch.set_num_threads(threads)


def _probe_costs() -> list[tuple[str, ...]]:
    found = {name: [name] for name in parts.kinds("probe")}
    for preset in PROBED:
        ensemble = Ensemble([Experiment.preset(preset).override({"device": "cpu"})])
        step = _least(ensemble.step)  # the one after an evaluation has its gradient already
        between = (ensemble.schedule.eval_every - 1) * step + _least(partial(ensemble.evaluate, goes_on=True))
        data = ensemble.experiments[0].task.build(seed=0)
        for name, row in found.items():
            row.append("")
            with suppress(ValueError):  # the task has no such columns
                probes = Probes([parts.chosen("probe", name)], data, ensemble.runs.layout.names)
                if probes.names:
                    seconds = _least(partial(probes.measure, ensemble.runs))
                    row[-1] = f"{1 + seconds / between:.2f} × ({1e3 * seconds:.1f} ms)"
    return [tuple(row) for row in found.values()]


def _least(action: Callable[[], Any]) -> float:
    """Seconds of the processor's."""
    times = []
    for _ in range(TRIES):
        begun = time.process_time()
        action()
        times.append(time.process_time() - begun)
    return min(times)


def _mlp(why_no_extension: str) -> str:
    large = f"plain PyTorch, {why_no_extension}" if why_no_extension else "C++ extension"
    return f"{large}, below {TORCHS_OWN['mlp']:,} multiplications a product torch's own layers, which are faster"


def _attention() -> str:
    if backend.current() == "reference":
        return "plain PyTorch, GROKFAST_BACKEND=reference"
    return "torch's scaled_dot_product_attention"


def _active(why_no_extension: str) -> str:
    if why_no_extension:
        return f"plain PyTorch, {why_no_extension}"
    return f"C++ extension, only where a unit is active, {backend.load_extension().active_isa()}"


def _blas() -> str:
    own = "MKL" if torch.backends.mkl.is_available() else "its own BLAS"
    return f"large ones by oneDNN, others by {own}" if torch.backends.mkldnn.is_available() else own


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpu() -> str:
    if not torch.cuda.is_available():
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        return f"none (torch is built {built})"
    name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    return f"{torch.cuda.device_count()} × {name}, sm_{major}{minor}"
