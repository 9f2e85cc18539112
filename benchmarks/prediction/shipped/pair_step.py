"""ops.pair_step: configurations that are launched."""

from __future__ import annotations

from typing import Any, NamedTuple

from grokfast.ops.dispatch import PRECISIONS
from grokfast.ops.pair_step import kernels, plan
from grokfast.ops.pair_step.launches import REDUCE_BLOCK, constants_of, gradient_constants
from grokfast.ops.pair_step.layout import Layout


class Case(NamedTuple):
    """A model as it is launched: tokens, units, classes; whether rows come in batches; chunks that a program sums."""

    sizes: tuple[int, int, int]
    activation: str
    loss: str
    with_bias: bool
    batch: bool
    chunks: int


def _configurations(precision: str, case: Case, capabilities: list[int]) -> list[dict[str, Any]]:
    """Both kernels for one model, compiled for `capabilities`, whose tiles are the same; one kernel for many chunks."""
    sizes = dict(zip(("n_tokens", "width", "n_answers"), case.sizes))
    n_tokens, width, n_answers = case.sizes
    table, classifier = (n_tokens, width), (n_answers, width)
    shapes = {"w_a": table, "w_b": table, "b_in": (width,), "out.weight": classifier, "out.bias": (n_answers,)}
    layout = Layout.of({name: shape for name, shape in shapes.items() if case.with_bias or len(shape) == 2})
    pointers = {
        "p_flat": "*fp32", "p_rows": "*i32", "p_limits": "*i32", "p_batch": "*i64", "p_grad_logits": "*fp32",
        "p_losses": "*fp32", "p_right": "*i32",
    }  # fmt: skip
    outputs, numbers = {"p_grad": "*fp32", "p_loss": "*fp32", "p_correct": "*i32"}, ["n_rows", "n_batch"]
    common = {**constants_of(layout, case.activation, precision, **sizes), "BATCH": case.batch}
    rows, grad = (plan.tiles(kernel, precision, capabilities[0], **sizes) for kernel in ("rows", "gradient"))
    kinds: list[tuple[str, Any, dict[str, str], dict[str, Any]]] = [
        (
            f"gradient, {case.chunks} chunks",
            kernels.gradient_kernel,
            {**pointers, **outputs, **dict.fromkeys([*numbers, "rows_per_chunk"], "i32")},
            {**gradient_constants(layout, precision, n_tokens), "CHUNKS": case.chunks, **grad},
        ),
        (
            "rows",
            kernels.rows_kernel,
            pointers | dict.fromkeys(numbers, "i32"),
            {"LOSS": case.loss, "GRAD": True, **rows},
        ),
    ]
    return [
        {
            "name": f"pair_step {name}, {precision}, {'-'.join(map(str, case.sizes))} {case.activation} {case.loss}",
            "kernel": kernel,
            "signature": signature,
            "constants": common | {k: v for k, v in constants.items() if k != "num_warps"},
            "num_warps": constants["num_warps"],
            "capabilities": capabilities,
        }
        for name, kernel, signature, constants in (kinds if case.chunks == 1 else kinds[:1])
    ]


def shipped() -> list[dict[str, Any]]:
    """Configurations at the usual sizes and at odd ones, for the offline check of registers and spills."""
    configs: list[dict[str, Any]] = []
    for precision in PRECISIONS:
        cases = [
            Case((97, 512, 97), "relu", "cross_entropy", True, False, 1),
            Case((97, 512, 97), "relu", "cross_entropy", True, False, 8),
            Case((113, 128, 113), "gelu", "cross_entropy", True, True, 1),
        ]
        if precision in ("ieee", "tf32"):
            cases += [Case((97, 500, 97), "square", "mse", False, False, 8)]
            cases += [Case((512, 1024, 512), "abs", "cross_entropy", True, False, 1)]
        else:
            cases += [Case((257, 512, 257), "gelu", "mse", True, True, 1)]
        configs += [row for case in cases for on in ([80], [90, 100]) for row in _configurations(precision, case, on)]
    reduce = {
        "name": "pair_step reduce, 16 splits",
        "kernel": kernels.reduce_kernel,
        "signature": {"p_parts": "*fp32", "p_grad": "*fp32", "n": "i32"},
        "constants": {"SPLITS": 16, "BLOCK": REDUCE_BLOCK},
        "aligned": ["n"],
        "num_warps": 4,
    }
    totals = {
        "name": "pair_step totals",
        "kernel": kernels.totals_kernel,
        "signature": {
            "p_limits": "*i32", "p_losses": "*fp32", "p_right": "*i32", "p_loss": "*fp32",
            "p_correct": "*i32", "n_batch": "i32",
        },
        "constants": {},
        "num_warps": 4,
    }  # fmt: skip
    return [*configs, reduce, totals]
