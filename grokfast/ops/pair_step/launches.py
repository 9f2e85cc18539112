"""The kernels' launches for one set of rows: their scratch, made once, and the order of the rows."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from grokfast.ops.dispatch import PRECISIONS
from grokfast.ops.kernels import launch
from grokfast.ops.pair_step import kernels, plan
from grokfast.ops.pair_step.layout import Layout

REDUCE_BLOCK = 1024


def _offsets(layout: Layout) -> dict[str, int]:
    """The layout as the kernels have it; -1: there is no such bias."""
    places = {
        "W_A": layout.w_a, "W_B": layout.w_b, "B_IN": layout.b_in, "WEIGHT": layout.weight, "BIAS": layout.bias,
    }  # fmt: skip
    return {name: -1 if place is None else place for name, place in places.items()} | {"N_FLAT": layout.n_flat}


class Launches:
    """What PairStep calls on a device with Triton; the arguments are PairStep's, checked there."""

    def __init__(
        self, layout: Layout, tokens: Tensor, targets: Tensor, n_rows: Tensor, max_batch: int, precision: str,
        activation: str, loss: str, *, width: int, n_tokens: int, n_answers: int,
    ) -> None:  # fmt: skip
        self.layout, self.max_batch, device = layout, max_batch, tokens.device
        self.n_models, self.n_data = targets.shape
        sizes = {"width": width, "n_tokens": n_tokens, "n_answers": n_answers}
        self.rows_tile, self.tile = (plan.tiles(kernel, precision, **sizes) for kernel in ("rows", "gradient"))
        self.programs = plan.programs(self.tile, **sizes)
        self.chunks = plan.n_chunks(self.programs, max_batch)
        processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132
        self.splits = plan.n_splits(self.chunks, self.programs, self.n_models, processors)
        self.constants: dict[str, Any] = {
            **_offsets(layout), "H": width, "V": n_answers, "VS": plan.padded_classes(n_answers),
            "ACTIVATION": activation, "PRECISION": precision,
        }  # fmt: skip
        self.rows_constants = {"LOSS": loss, **self.rows_tile}
        self.grad_constants = {
            "N_PARAMETERS": layout.n_parameters, "P": n_tokens, "PIECES": plan.PIECES[precision],
            "CHUNKS": self.chunks // self.splits, **self.tile,
        }  # fmt: skip
        self.limits = n_rows.to(torch.int32)
        self.rows = torch.stack([*tokens.unbind(-1), targets], 1).int()  # [E, 3, N]: a, b, target
        # A tile of sorted rows reads few rows of w_a; those that do not count stay last.
        absent = torch.arange(self.n_data, device=device) >= n_rows[:, None]
        order = ((absent * n_tokens + tokens[..., 0]) * n_tokens + tokens[..., 1]).argsort(dim=1, stable=True)
        self.sorted_rows = self.rows.gather(2, order[:, None].expand(-1, 3, -1))
        self.no_batch = torch.zeros(1, dtype=torch.int64, device=device)
        fp32: dict[str, Any] = {"dtype": torch.float32, "device": device}
        n_tiles = triton.cdiv(self.n_data, self.rows_tile["BM"])
        self.loss_parts = torch.empty(self.n_models, n_tiles, **fp32)
        self.right_parts = torch.empty(self.n_models, n_tiles, dtype=torch.int32, device=device)
        self.grad_logits = torch.empty(self.n_models, max_batch, self.constants["VS"], **fp32)
        self.parts = torch.empty(self.splits if self.splits > 1 else 0, self.n_models, layout.n_flat, **fp32)

    def _rows(self, flat: Tensor, batch: Tensor | None, with_grad: bool) -> tuple[tuple[Any, ...], int, int]:
        """Launch the rows; returns what both kernels take, the number of rows and of tiles."""
        rows = self.sorted_rows if batch is None else self.rows
        n_batch = self.n_data if batch is None else batch.shape[1]
        tensors = flat, rows, self.limits, self.no_batch if batch is None else batch
        numbers = self.n_data, n_batch, 3 * self.n_data
        n_tiles = triton.cdiv(n_batch, self.rows_tile["BM"])
        scratch = self.grad_logits, self.loss_parts, self.right_parts
        launch(
            kernels.rows_kernel, (n_tiles, self.n_models), *tensors, *scratch, *numbers,
            BATCH=batch is not None, GRAD=with_grad, **self.constants, **self.rows_constants,
        )  # fmt: skip
        return (tensors, scratch, numbers), n_batch, n_tiles

    def gradient(self, flat: Tensor, grad: Tensor, loss: Tensor, correct: Tensor, batch: Tensor | None) -> None:
        (tensors, scratch, numbers), n_batch, n_tiles = self._rows(flat, batch, with_grad=True)
        is_partial = grad.ndim == 3 or self.splits == 1
        rows = max(self.tile["BM"], self.tile["BM_OUT"])
        per_chunk = triton.cdiv(triton.cdiv(n_batch, rows), self.chunks) * rows
        launch(
            kernels.gradient_kernel, (self.programs, self.splits, self.n_models), *tensors, *scratch,
            grad if is_partial else self.parts, loss, correct, *numbers, n_tiles, per_chunk,
            BATCH=batch is not None, **self.constants, **self.grad_constants,
        )  # fmt: skip
        if not is_partial:
            launch(
                kernels.reduce_kernel, (triton.cdiv(grad.numel(), REDUCE_BLOCK),), self.parts, grad, grad.numel(),
                SPLITS=self.splits, BLOCK=REDUCE_BLOCK, num_warps=4,
            )  # fmt: skip

    def measure(self, flat: Tensor, loss: Tensor, correct: Tensor) -> None:
        _, _, n_tiles = self._rows(flat, None, with_grad=False)
        parts = self.loss_parts, self.right_parts
        launch(
            kernels.totals_kernel, (self.n_models,), self.limits, *parts, loss, correct, n_tiles, num_warps=4,
        )  # fmt: skip


def shipped() -> list[dict[str, Any]]:
    """Configurations at the usual sizes and at odd ones, for the offline check of registers and spills."""
    pointers = {
        "p_flat": "*fp32", "p_rows": "*i32", "p_limits": "*i32", "p_batch": "*i64", "p_grad_logits": "*fp32",
        "p_loss_parts": "*fp32", "p_right_parts": "*i32",
    }  # fmt: skip
    numbers = ["n_rows", "n_batch", "rows_model"]
    usual = {"n_tokens": 97, "n_answers": 97, "width": 512}
    models: list[tuple[str, dict[str, int], str, str, bool, bool, int]] = [
        (precision, usual, "relu", "cross_entropy", True, False, chunks)
        for precision in PRECISIONS
        for chunks in (1, 8)
    ]
    models += [
        (precision, {"n_tokens": 97, "n_answers": 97, "width": 500}, "square", "mse", False, False, 8)
        for precision in ("ieee", "tf32")
    ]
    for size, width in ((113, 128), (257, 512), (512, 1024)):
        sizes = {"n_tokens": size, "n_answers": size, "width": width}
        models += [(precision, sizes, "gelu", "cross_entropy", True, True, 1) for precision in PRECISIONS]
    configs = []
    for precision, sizes, activation, loss, bias, batch, chunks in models:
        rows, grad = (plan.tiles(kernel, precision, **sizes) for kernel in ("rows", "gradient"))
        table, classifier = (sizes["n_tokens"], sizes["width"]), (sizes["n_answers"], sizes["width"])
        shapes: dict[str, tuple[int, ...]] = {"w_a": table, "w_b": table, "b_in": table[1:], "out.weight": classifier}
        shapes["out.bias"] = classifier[:1]
        layout = Layout.of({name: shape for name, shape in shapes.items() if bias or len(shape) == 2})
        common = {
            **_offsets(layout), "H": sizes["width"], "V": sizes["n_answers"],
            "VS": plan.padded_classes(sizes["n_answers"]),
            "ACTIVATION": activation, "PRECISION": precision, "BATCH": batch,
        }  # fmt: skip
        about = f"{precision}, {sizes['n_tokens']}-{sizes['width']}-{sizes['n_answers']} {activation} {loss}"
        kinds: list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]] = [
            (
                f"gradient {chunks} chunks", kernels.gradient_kernel,
                {**pointers, "p_grad": "*fp32", "p_loss": "*fp32", "p_correct": "*i32"},
                {"N_PARAMETERS": layout.n_parameters, "P": sizes["n_tokens"], "PIECES": plan.PIECES[precision],
                 "CHUNKS": chunks}, grad,
            )
        ]  # fmt: skip
        if chunks == 1:
            kinds.append(("rows", kernels.rows_kernel, pointers, {"LOSS": loss, "GRAD": True}, rows))
        for name, kernel, signature, constants, tile in kinds:
            more = ["n_tiles", "rows_per_chunk"] if "P" in constants else []
            configs.append(
                {
                    "name": f"pair_step {name}, {about}",
                    "kernel": kernel,
                    "signature": signature | dict.fromkeys([*numbers, *more], "i32"),
                    "constants": {**common, **constants, **{k: v for k, v in tile.items() if k != "num_warps"}},
                    "num_warps": tile["num_warps"],
                }
            )
    configs.append(
        {
            "name": "pair_step reduce, 8 splits",
            "kernel": kernels.reduce_kernel,
            "signature": {"p_parts": "*fp32", "p_grad": "*fp32", "n": "i32"},
            "constants": {"SPLITS": 8, "BLOCK": REDUCE_BLOCK},
            "aligned": ["n"],
            "num_warps": 4,
        }
    )
    return configs
