"""The kernels' launches for one set of rows: their scratch, made once, and the order of the rows."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

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


def constants_of(
    layout: Layout, activation: str, precision: str, *, width: int, n_tokens: int, n_answers: int
) -> dict[str, Any]:
    """What both kernels know of a model when they are compiled; -1: there is no such bias."""
    places = {"W_A": layout.w_a, "W_B": layout.w_b, "B_IN": layout.b_in, "WEIGHT": layout.weight, "BIAS": layout.bias}
    sizes = {"N_FLAT": layout.n_flat, "H": width, "V": n_answers, "VS": plan.padded_classes(n_answers)}
    kind = {"ACTIVATION": activation, "PRECISION": precision}
    return {name: -1 if place is None else place for name, place in places.items()} | sizes | kind


def gradient_constants(layout: Layout, precision: str, n_tokens: int) -> dict[str, Any]:
    return {"N_PARAMETERS": layout.n_parameters, "P": n_tokens, "PIECES": plan.PIECES[precision]}


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
        self.chunks = plan.n_chunks(self.programs, max_batch)
        self.rows_per_chunk = plan.rows_per_chunk(self.programs, max_batch)
        self.splits = plan.n_splits(self.chunks, self.programs, self.n_models, processors)
        self.constants = constants_of(layout, activation, precision, **sizes)
        self.rows_constants = {"LOSS": loss, **self.rows_tile}
        chunks = {"CHUNKS": self.chunks // self.splits}
        self.grad_constants = gradient_constants(layout, precision, n_tokens) | chunks | self.tile
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
        self.parts: Tensor | None = None

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
        if not is_partial and self.parts is None:
            self.parts = grad.new_empty(self.splits, *grad.shape)
        launch(
            kernels.gradient_kernel, (self.programs, self.splits, self.n_models), *tensors,
            grad if is_partial else self.parts, loss, correct, self.n_data, n_batch, self.rows_per_chunk,
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
