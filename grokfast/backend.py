"""Which implementation an operation uses, and why: on a CPU the compiled extension where it is built, on a GPU Triton's
kernels or the extension's CUDA ones, else plain PyTorch.

`GROKFAST_BACKEND` chooses: "auto"; "reference", plain PyTorch everywhere; "triton" or "cuda", these GPU kernels only.
`GROKFAST_ISA` chooses the instruction set of the extension's products with a relu's hidden layer: "avx512", "avx2" or
"baseline", which every processor of its kind has; without it the best there is.
With TRITON_INTERPRET=1 in the environment "triton" also takes CPU tensors, slowly, to be compared with the reference.
`using(...)` chooses for a block of code, in the thread and the asyncio task that run it.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch  # before the extension, so that both share one OpenMP runtime
from torch import Tensor, nn

from grokfast import checks, context

BACKENDS = ("auto", "reference", "triton", "cuda")
OLDEST_GPU = (8, 0)  # compute capability


@functools.cache
def built() -> tuple[ModuleType | None, str]:
    """grokfast._C whatever the backend, or None, and why it is not there."""
    try:
        module = importlib.import_module("grokfast._C")
    except ImportError as error:
        info = build_info()
        return None, str(error if info.get("extension") else info.get("why") or error)
    if "GROKFAST_ISA" in os.environ:
        module.use_active_isa(checks.choice("GROKFAST_ISA", os.environ["GROKFAST_ISA"], module.active_isas()))
    return module, ""


def build_info() -> dict[str, str | bool]:
    """What the build wrote down: `extension` and `cuda` (built or not) and `why` not."""
    path = Path(__file__).with_name("_build_info.json")
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def current() -> str:
    """One of BACKENDS, from the innermost `using` block, else GROKFAST_BACKEND."""
    chosen = context.backend if torch.compiler.is_compiling() else context.chosen.get()
    if chosen is not None:
        return chosen
    return checks.choice("GROKFAST_BACKEND", os.environ.get("GROKFAST_BACKEND", "auto"), BACKENDS)


@contextmanager
def using(name: str) -> Iterator[None]:
    """Run a block on backend `name`, one of BACKENDS. Other threads keep theirs, and a new one begins with
    GROKFAST_BACKEND: `contextvars.copy_context().run` takes the choice along. Raises ValueError for another name.
    """
    token = context.chosen.set(checks.choice("backend", name, BACKENDS))
    try:
        yield
    finally:
        context.chosen.reset(token)


def extension() -> ModuleType | None:
    """grokfast._C, or None where it is not built, plain PyTorch is asked for, or torch.compile or torch.func works."""
    if torch.compiler.is_compiling() or torch._C._functorch.maybe_current_level() is not None:
        return None
    return None if current() == "reference" else built()[0]


def device_kernels(device: torch.device) -> str | None:
    """The kernels for tensors of a device, "triton" or "cuda"; None: why_no_device_kernels says why."""
    return None if torch.compiler.is_compiling() else kernels_for(device, current())[0]


def why_no_device_kernels(device: torch.device) -> str:
    """Why `device_kernels` is None, in words; empty where it is not."""
    return kernels_for(device, current())[1]


@functools.cache
def kernels_for(device: torch.device, wish: str) -> tuple[str | None, str]:
    """The kernels for a device where `wish` is the backend, or None, and why there are none."""
    if wish == "reference":
        return None, "GROKFAST_BACKEND=reference"
    if device.type == "cpu":
        interpreted = wish == "triton" and os.environ.get("TRITON_INTERPRET") == "1" and _has_triton()
        return ("triton", "") if interpreted else (None, "a CPU")
    if device.type != "cuda" or torch.version.hip:
        return None, "not an NVIDIA GPU"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_GPU:
        found, needed = (".".join(map(str, version)) for version in (capability, OLDEST_GPU))
        return None, f"compute capability {found}, the kernels need {needed}"
    if wish != "cuda" and _has_triton():
        return "triton", ""
    module, why = built()
    if wish != "triton" and module is not None and module.with_cuda:
        return "cuda", ""
    missing = {"triton": "Triton is not installed", "cuda": f"no CUDA kernels in the extension {why}".strip()}
    return None, missing.get(wish, " and ".join(missing.values()))


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def plain(t: Tensor) -> bool:
    """Whether the extension may read `t` by pointer: dense CPU fp32 memory, no subclass (fake, distributed, ...)."""
    is_plain = type(t) is nn.Parameter or type(t) is Tensor
    return is_plain and t.dtype is torch.float32 and t.is_cpu and t.layout is torch.strided and not t.is_neg()


def load_extension() -> ModuleType:
    """grokfast._C whatever the backend, for what was begun on it."""
    module, why = built()
    if module is None:
        raise ImportError(f"grokfast._C is not available: {why}")
    return module


def why_no_extension() -> str:
    """Why `extension()` is None, in words; empty where it is there."""
    return "GROKFAST_BACKEND=reference" if current() == "reference" else built()[1]
