"""What this machine has, which implementation each operation will use here, and why."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys

import torch

import grokfast
from grokfast import backend


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
    for extra in ("tensorboard", "wandb", "ray"):
        rows.append((extra, _version(extra) or f"not installed: pip install 'grokfast[{extra}]'"))
    return rows


def operations() -> list[tuple[str, str, str]]:
    """(operation, where, implementation) as they will be chosen here."""
    why = backend.why_no_extension() if backend.extension() is None else ""
    costs = f"plain PyTorch, {why}"
    fast = "C++ extension"
    rows = [
        ("GrokFast + AdamW, Adam, SGD", "CPU fp32", f"{fast}, filter and update in one pass" if not why else costs),
        ("GrokFast + other optimizers", "any", "PyTorch, filter before the optimizer's own step"),
        ("gradfilter_ema, gradfilter_ma", "any", "PyTorch, O(1) in the window"),
        ("ops.pair_embed", "CPU fp32", fast if not why else costs),
        ("ops.classify", "CPU fp32", fast if not why else costs),
        (
            "matrix products",
            "any",
            f"PyTorch ({'MKL' if torch.backends.mkl.is_available() else 'its own BLAS'} on CPU)",
        ),
        ("GrokTransformer", "any", "plain PyTorch"),
    ]
    fused = "ops.mlp, ops.attention, ops.linear_cross_entropy"
    rows.append((fused, "CPU", "plain PyTorch"))
    if torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
        found, why_not = backend.device_kernels(device), backend.why_no_device_kernels(device)
        rows.append(
            (fused, "CUDA", "Triton" if found == "triton" else f"plain PyTorch, {why_not or 'no CUDA kernels'}")
        )
        update = {"triton": "Triton, one launch", "cuda": "CUDA extension, one launch"}
        rows.append(("GrokFast + AdamW, Adam, SGD, Lion", "CUDA", update.get(found or "", f"plain PyTorch, {why_not}")))
        rows.append(("every other operation", "CUDA", "plain PyTorch"))
    return rows


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
