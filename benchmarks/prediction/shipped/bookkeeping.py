"""The bookkeeping of an evaluation: configurations that are launched."""

from __future__ import annotations

from typing import Any

from grokfast.training.kernels import keep_kernel, verdict_kernel
from grokfast.training.watch import MODELS
from grokfast.transforms.sizes import ROW_BLOCK, ROW_CHUNK


def shipped() -> list[dict[str, Any]]:
    """The configurations that are launched, for the offline check of registers and spills."""
    ints = {"p_steps": "*i64", "p_diverged": "*i64"}
    verdict = {"p_measured": "*fp32", "p_limits": "*fp64", "p_state": "*i64", "p_ended": "*i64", "p_report": "*fp64"}
    keep = {"p_flat": "*fp32", "p_kept": "*fp32", "p_ends_now": "*i64", "size": "i32"}
    chunks = {"BLOCK": ROW_BLOCK, "CHUNK": ROW_CHUNK}
    return [
        *(
            {"name": f"verdict, {count}", "kernel": verdict_kernel, "constants": {"BLOCK": MODELS}, "num_warps": 4,
             "ones": ones, "signature": _ordered(verdict_kernel, {**verdict, **ints, "n_models": "i32"})}
            for count, ones in (("one model", ["n_models"]), ("many models", []))
        ),
        {"name": "keep", "kernel": keep_kernel, "constants": chunks, "num_warps": 4, "aligned": ["size"],
         "signature": _ordered(keep_kernel, keep)},
    ]  # fmt: skip


def _ordered(kernel: Any, signature: dict[str, str]) -> dict[str, str]:
    """In the order of the kernel's arguments."""
    return {name: signature[name] for name in kernel.arg_names if name in signature}
