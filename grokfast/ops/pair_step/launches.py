"""The kernels' launches for one set of rows: their scratch, made once, and the order of the rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from grokfast.ops.dispatch import PRECISIONS
from grokfast.ops.kernels import launch
from grokfast.ops.pair_step import kernels, plan
from grokfast.ops.pair_step.layout import Layout

REDUCE_BLOCK = 1024


def _device(device: torch.device) -> tuple[int, int]:
    """Compute capability, 80 for 8.0, and processors; an H200's where kernels are interpreted."""
    if device.type != "cuda":
        return 90, 132
    about = torch.cuda.get_device_properties(device)
    return 10 * about.major + about.minor, about.multi_processor_count


def _constants(
    layout: Layout, activation: str, precision: str, *, width: int, n_tokens: int, n_answers: int
) -> dict[str, Any]:
    """What both kernels know of a model when they are compiled; -1: there is no such bias."""
    places = {"W_A": layout.w_a, "W_B": layout.w_b, "B_IN": layout.b_in, "WEIGHT": layout.weight, "BIAS": layout.bias}
    sizes = {"N_FLAT": layout.n_flat, "H": width, "V": n_answers, "VS": plan.padded_classes(n_answers)}
    kind = {"ACTIVATION": activation, "PRECISION": precision}
    return {name: -1 if place is None else place for name, place in places.items()} | sizes | kind


def _gradient_constants(layout: Layout, precision: str, n_tokens: int, tile: dict[str, int]) -> dict[str, Any]:
    rows = max(tile["BM"], tile["BM_OUT"])
    return {"N_PARAMETERS": layout.n_parameters, "P": n_tokens, "PIECES": plan.PIECES[precision], "ROWS": rows, **tile}


class Launches:
    """What PairStep calls on a device with Triton; the arguments are PairStep's, checked there."""

    def __init__(
        self, layout: Layout, tokens: Tensor, targets: Tensor, n_rows: Tensor, max_batch: int, precision: str,
        activation: str, loss: str, *, width: int, n_tokens: int, n_answers: int,
    ) -> None:  # fmt: skip
        self.layout, self.max_batch, device = layout, max_batch, tokens.device
        self.n_models, self.n_data = targets.shape
        sizes = {"width": width, "n_tokens": n_tokens, "n_answers": n_answers}
        capability, processors = _device(device)
        self.rows_tile, self.tile = (
            plan.tiles(kernel, precision, capability, **sizes) for kernel in ("rows", "gradient")
        )
        self.programs = plan.programs(self.tile, **sizes)
        own = [plan.n_chunks(self.programs, min(n, max_batch)) for n in n_rows.tolist()]
        self.chunks, self.own_chunks = max(own), torch.tensor(own, dtype=torch.int32, device=device)
        self.splits = plan.n_splits(self.chunks, self.programs, self.n_models, processors)
        self.constants = _constants(layout, activation, precision, **sizes)
        self.rows_constants = {"LOSS": loss, **self.rows_tile}
        chunks = {"CHUNKS": self.chunks // self.splits}
        self.grad_constants = _gradient_constants(layout, precision, n_tokens, self.tile) | chunks
        self.limits = n_rows.to(torch.int32)
        self.rows = torch.stack([*tokens.unbind(-1), targets], 1).int()  # [E, 3, N]: a, b, target
        # A tile of sorted rows reads few rows of w_a; those that do not count stay last.
        absent = torch.arange(self.n_data, device=device) >= n_rows[:, None]
        order = ((absent * n_tokens + tokens[..., 0]) * n_tokens + tokens[..., 1]).argsort(dim=1, stable=True)
        self.sorted_rows = self.rows.gather(2, order[:, None].expand(-1, 3, -1))
        self.no_batch = torch.zeros(1, dtype=torch.int64, device=device)
        fp32: dict[str, Any] = {"dtype": torch.float32, "device": device}
        self.losses = torch.empty(self.n_models, self.n_data, **fp32)
        self.right = torch.empty(self.n_models, self.n_data, dtype=torch.int32, device=device)
        self.grad_logits = torch.empty(self.n_models, max_batch, self.constants["VS"], **fp32)
        self.parts = torch.empty(self.splits if self.splits > 1 else 0, self.n_models, layout.n_flat, **fp32)

    def _rows(self, flat: Tensor, batch: Tensor | None, with_grad: bool) -> tuple[tuple[Any, ...], int]:
        """Launch the rows; returns the arguments that both kernels take first, and the number of rows."""
        rows = self.sorted_rows if batch is None else self.rows
        n_batch = self.n_data if batch is None else batch.shape[1]
        tensors = flat, rows, self.limits, self.no_batch if batch is None else batch
        scratch = self.grad_logits, self.losses, self.right
        grid = triton.cdiv(n_batch, self.rows_tile["BM"]), self.n_models
        launch(
            kernels.rows_kernel, grid, *tensors, *scratch, self.n_data, n_batch,
            BATCH=batch is not None, GRAD=with_grad, **self.constants, **self.rows_constants,
        )  # fmt: skip
        return (*tensors, *scratch), n_batch

    def gradient(self, flat: Tensor, grad: Tensor, loss: Tensor, correct: Tensor, batch: Tensor | None) -> None:
        tensors, n_batch = self._rows(flat, batch, with_grad=True)
        is_partial = grad.ndim == 3 or self.splits == 1
        launch(
            kernels.gradient_kernel, (self.programs, self.splits, self.n_models), *tensors,
            grad if is_partial else self.parts, loss, correct, self.own_chunks, self.n_data, n_batch,
            BATCH=batch is not None, **self.constants, **self.grad_constants,
        )  # fmt: skip
        if not is_partial:
            launch(
                kernels.reduce_kernel, (triton.cdiv(grad.numel(), REDUCE_BLOCK),), self.parts, grad, grad.numel(),
                SPLITS=self.splits, BLOCK=REDUCE_BLOCK, num_warps=4,
            )  # fmt: skip

    def measure(self, flat: Tensor, loss: Tensor, correct: Tensor) -> None:
        self._rows(flat, None, with_grad=False)
        launch(
            kernels.totals_kernel, (self.n_models,), self.limits, self.losses, self.right, loss, correct, self.n_data,
            num_warps=4,
        )  # fmt: skip


class _Case(NamedTuple):
    """A model as it is launched: tokens, units, classes; whether rows come in batches; chunks that a program sums."""

    sizes: tuple[int, int, int]
    activation: str
    loss: str
    with_bias: bool
    batch: bool
    chunks: int


def _configurations(precision: str, case: _Case, capabilities: list[int]) -> list[dict[str, Any]]:
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
    common = {**_constants(layout, case.activation, precision, **sizes), "BATCH": case.batch}
    rows, grad = (plan.tiles(kernel, precision, capabilities[0], **sizes) for kernel in ("rows", "gradient"))
    kinds: list[tuple[str, Any, dict[str, str], dict[str, Any]]] = [
        (
            f"gradient, {case.chunks} chunks",
            kernels.gradient_kernel,
            {**pointers, **outputs, "p_chunks": "*i32", **dict.fromkeys(numbers, "i32")},
            {**_gradient_constants(layout, precision, n_tokens, grad), "CHUNKS": case.chunks},
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
            _Case((97, 512, 97), "relu", "cross_entropy", True, False, 1),
            _Case((97, 512, 97), "relu", "cross_entropy", True, False, 8),
            _Case((113, 128, 113), "gelu", "cross_entropy", True, True, 1),
        ]
        if precision in ("ieee", "tf32"):
            cases += [_Case((97, 500, 97), "square", "mse", False, False, 8)]
            cases += [_Case((512, 1024, 512), "abs", "cross_entropy", True, False, 1)]
        else:
            cases += [_Case((257, 512, 257), "gelu", "mse", True, True, 1)]
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
