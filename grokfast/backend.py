"""Which implementation an operation uses, and why: the compiled extension where it is built, else plain PyTorch.

`GROKFAST_BACKEND=reference` forces plain PyTorch everywhere; `using("reference")` does so for a block of code.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch  # before the extension, so that both share one OpenMP runtime
from torch import Tensor, nn

from grokfast import checks

BACKENDS = ("auto", "reference")
_chosen: list[str] = []


@functools.cache
def _load() -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module("grokfast._C"), ""
    except ImportError as error:
        info = build_info()
        return None, str(error if info.get("extension") else info.get("why") or error)


def build_info() -> dict[str, str | bool]:
    """What the build wrote down: `extension` and `cuda` (built or not) and `why` not."""
    path = Path(__file__).with_name("_build_info.json")
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def current() -> str:
    """'auto' or 'reference', from the innermost `using` block, else GROKFAST_BACKEND."""
    if _chosen:
        return _chosen[-1]
    return checks.choice("GROKFAST_BACKEND", os.environ.get("GROKFAST_BACKEND", "auto"), BACKENDS)


@contextmanager
def using(name: str) -> Iterator[None]:
    """Run a block on backend `name` ('auto' or 'reference'); for this process, not per thread."""
    _chosen.append(checks.choice("backend", name, BACKENDS))
    try:
        yield
    finally:
        _chosen.pop()


def extension() -> ModuleType | None:
    """grokfast._C, or None where it is not built, plain PyTorch is asked for, or torch.compile is tracing."""
    return None if torch.compiler.is_compiling() or current() == "reference" else _load()[0]


def plain(t: Tensor) -> bool:
    """Whether the extension may read `t` by pointer: dense CPU fp32 memory, no subclass (fake, distributed, ...)."""
    is_plain = type(t) is nn.Parameter or type(t) is Tensor
    return is_plain and t.dtype is torch.float32 and t.is_cpu and t.layout is torch.strided and not t.is_neg()


def load_extension() -> ModuleType:
    """grokfast._C whatever the backend, for what was begun on it."""
    module, why = _load()
    if module is None:
        raise ImportError(f"grokfast._C is not available: {why}")
    return module


def why_no_extension() -> str:
    """Why `extension()` is None, in words; empty where it is there."""
    return "GROKFAST_BACKEND=reference" if current() == "reference" else _load()[1]
