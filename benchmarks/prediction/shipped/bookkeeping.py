"""The bookkeeping of a training step: configurations that are launched."""

from __future__ import annotations

from typing import Any

from grokfast.training.clock import BLOCK, CHUNK
from grokfast.training.kernels import keep_kernel, tick_kernel, verdict_kernel
from grokfast.training.watch import MODELS


def shipped() -> list[dict[str, Any]]:
    """The configurations that are launched, for the offline check of registers and spills."""
    ints = {"p_steps": "*i64", "p_diverged": "*i64"}
    common: dict[str, Any] = {"num_warps": 4, "aligned": ["size"]}
    tick = {"p_grad": "*fp32", "p_loss": "*fp32", "p_lr": "*fp64", "p_warmup": "*fp64", "p_hyper": "*fp64"}
    verdict = {"p_measured": "*fp32", "p_limits": "*fp64", "p_state": "*i64", "p_ended": "*i64", "p_report": "*fp64"}
    keep = {"p_flat": "*fp32", "p_kept": "*fp32", "p_ends_now": "*i64", "size": "i32"}
    chunks = {"BLOCK": BLOCK, "CHUNK": CHUNK}
    return [
        *(
            {"name": f"tick, {splits} splits", "kernel": tick_kernel, **common,
             "constants": {"BLOCK": BLOCK, "CHUNK": chunk, "SPLITS": splits},
             "signature": _ordered(tick_kernel, {**tick, **ints, "p_tickets": "*i32", "size": "i32"})}
            for splits, chunk in ((1, CHUNK), (16, BLOCK))
        ),
        *(
            {"name": f"verdict, {count}", "kernel": verdict_kernel, "constants": {"BLOCK": MODELS}, "num_warps": 4,
             "ones": ones, "signature": _ordered(verdict_kernel, {**verdict, **ints, "n_models": "i32"})}
            for count, ones in (("one model", ["n_models"]), ("many models", []))
        ),
        {"name": "keep", "kernel": keep_kernel, "constants": chunks, **common,
         "signature": _ordered(keep_kernel, keep)},
    ]  # fmt: skip


def _ordered(kernel: Any, signature: dict[str, str]) -> dict[str, str]:
    """In the order of the kernel's arguments."""
    return {name: signature[name] for name in kernel.arg_names if name in signature}
