"""Loss, right answers and gradient of E PairMLPs of one hidden layer, in two or three launches over an ensemble axis.

On an NVIDIA GPU these are Triton kernels, elsewhere plain PyTorch; the interface is the same. Kernels wait for nothing
and take no memory once a PairStep is made, so that a CUDA graph may hold every call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from grokfast import backend, checks
from grokfast.ops.classify.reference import LOSSES
from grokfast.ops.dispatch import PRECISIONS
from grokfast.ops.pair_step import reference
from grokfast.ops.pair_step.layout import Layout
from grokfast.ops.pair_step.reference import Parameters

__all__ = ["Layout", "PairStep"]

ACTIVATIONS = ("relu", "square", "gelu", "abs")
MAX_CLASSES = 512
MAX_MODELS = 65535  # of an axis of a grid


class PairStep:
    """Loss, right answers and gradient of E models at once, in a few launches into tensors of the caller.

    Args:
        layout: where the parameters lie in a row of flat [E, P].
        tokens: int64 [E, N, 2], or [N, 2] for all models alike; targets: int64 [E, N], or [N].
        n_models: E; n_tokens, n_answers: the tables' rows and the classes; width: hidden units.
        activation: "relu", "square", "gelu" or "abs"; loss: "cross_entropy" or "mse", as ops.classify has them.
        precision: "ieee", "tf32x3", "tf32" or "bf16", of the products; parameters and sums are fp32.
        n_rows: int64 [E], how many of the N rows each model has; the others are passed over. None: all.
        max_batch: the largest number B of rows that `gradient` is called with; None: N, 0: only `measure` is called.

    E models together get the bits that each gets alone, and the same ones every time. Which implementation runs is
    chosen here, by grokfast.backend.
    Raises TypeError, ValueError or IndexError naming the argument.
    """

    def __init__(
        self,
        layout: Layout,
        tokens: Tensor,
        targets: Tensor,
        *,
        n_models: int,
        n_tokens: int,
        n_answers: int,
        width: int,
        activation: str = "relu",
        loss: str = "cross_entropy",
        precision: str = "ieee",
        n_rows: Tensor | Sequence[int] | None = None,
        max_batch: int | None = None,
    ) -> None:
        self.layout = layout
        self.n_models = checks.integer("n_models", n_models, minimum=1, maximum=MAX_MODELS)
        self.n_tokens = checks.integer("n_tokens", n_tokens, minimum=1)
        self.n_answers = checks.integer("n_answers", n_answers, minimum=1, maximum=MAX_CLASSES)
        self.width = checks.integer("width", width, minimum=1)
        self.activation = checks.choice("activation", activation, ACTIVATIONS)
        self.loss = checks.choice("loss", loss, LOSSES)
        self.precision = checks.choice("precision", precision, PRECISIONS)
        expected = (2 * n_tokens + (layout.b_in is not None) + n_answers) * width + n_answers * (
            layout.bias is not None
        )
        if layout.n_parameters != expected:
            raise ValueError(
                f"layout must have {expected:,} parameters as n_tokens, n_answers and width say, "
                f"got {layout.n_parameters:,}"
            )
        self.tokens = _data("tokens", tokens, n_models, n_tokens, trailing=(2,))
        self.targets = _data("targets", targets, n_models, n_answers)
        self.device = tokens.device
        n = self.tokens.shape[1]
        if self.targets.shape[1] != n or targets.device != self.device:
            raise ValueError(
                f"targets must have {n} rows on {self.device} as tokens have, "
                f"got {targets.shape[-1]} on {targets.device}"
            )
        self.n_rows = _counts(n_rows, n_models, n).to(self.device)
        self.max_batch = n if max_batch is None else checks.integer("max_batch", max_batch, minimum=0, maximum=n)
        self.backend = "triton" if backend.device_kernels(self.device) == "triton" else "reference"
        self._launches: Any = None
        if self.backend == "triton":
            from grokfast.ops.pair_step.launches import Launches

            self._launches = Launches(
                layout, self.tokens, self.targets, self.n_rows, self.max_batch, precision, activation, loss,
                width=width, n_tokens=n_tokens, n_answers=n_answers,
            )  # fmt: skip

    @staticmethod
    def fits(config: Any, loss: str, *, n_tokens: int, n_answers: int, dtype: torch.dtype = torch.float32) -> str:
        """Why the fused step does not take a model of this configuration (a PairMLPConfig); "" where it does."""
        if not hasattr(config, "activation") or not hasattr(config, "depth"):
            return f"a {type(config).__name__} describes no PairMLP"
        if config.depth != 1:
            return f"depth {config.depth}, the fused step takes one hidden layer"
        if config.activation not in ACTIVATIONS:
            return f"activation {config.activation!r}, the fused step takes {', '.join(ACTIVATIONS)}"
        if loss not in LOSSES:
            return f"loss {loss!r}, the fused step takes {', '.join(LOSSES)}"
        if dtype is not torch.float32:
            return f"parameters in {str(dtype).removeprefix('torch.')}, the fused step takes float32"
        if n_answers > MAX_CLASSES:
            return f"{n_answers} answers, the fused step takes up to {MAX_CLASSES}"
        return ""

    @property
    def splits(self) -> int:
        """S: `gradient` may be given grad [S, E, P], S partial gradients, whose sum in their order is the gradient."""
        return 1 if self._launches is None else int(self._launches.splits)

    @torch.no_grad()
    def gradient(self, flat: Tensor, grad: Tensor, loss: Tensor, correct: Tensor, batch: Tensor | None = None) -> None:
        """Write grad [E, P], or partial ones [splits, E, P], loss fp32 [E] and correct int32 [E], the rows right.

        flat fp32 [E, P] holds the parameters, P is layout.n_flat. batch: int64 [E, B] row numbers on the device, the
        rows of this step (B up to max_batch); a number below 0 or beyond the model's rows stands for no row. The loss
        is the mean over the rows there are. Padding of grad is set to 0.
        Raises ValueError or TypeError naming a tensor of another shape, dtype or device.
        """
        n_batch = self.tokens.shape[1] if batch is None else batch.shape[-1]
        if batch is not None:
            _check("batch", batch, [(self.n_models, n_batch)], torch.int64, self.device)
        if not 0 < n_batch <= self.max_batch:
            raise ValueError(f"batch must have 1 to {self.max_batch} rows, as max_batch says, got {n_batch}")
        shape = self.n_models, self.layout.n_flat
        self._check_tensors(flat, loss, correct)
        _check("grad", grad, [shape, (self.splits, *shape)], torch.float32, self.device)
        if self._launches is not None:
            self._launches.gradient(flat, grad, loss, correct, batch)
            return
        weights = self._parameters(flat)
        pairs, target, exists = self._rows(batch)
        options = self.activation, self.loss, self.precision
        values, right, grad_logits = reference.forward(weights, pairs, target, exists, *options)
        grads = reference.backward(weights, pairs, grad_logits, self.activation, self.precision)
        out = grad.view(shape)
        out[:, self.layout.n_parameters :] = 0
        for part, value in zip(self._parameters(out), grads):
            if part is not None and value is not None:
                part.copy_(value)
        loss.copy_(values)
        correct.copy_(right)

    @torch.no_grad()
    def measure(self, flat: Tensor, loss: Tensor, correct: Tensor) -> None:
        """Write loss fp32 [E] and correct int32 [E] over all rows, for parameters flat [E, P]; raises as `gradient`."""
        self._check_tensors(flat, loss, correct)
        if self._launches is not None:
            self._launches.measure(flat, loss, correct)
            return
        pairs, target, exists = self._rows(None)
        options = self.activation, self.loss, self.precision
        values, right, _ = reference.forward(self._parameters(flat), pairs, target, exists, *options)
        loss.copy_(values)
        correct.copy_(right)

    def _check_tensors(self, flat: Tensor, loss: Tensor, correct: Tensor) -> None:
        _check("flat", flat, [(self.n_models, self.layout.n_flat)], torch.float32, self.device)
        _check("loss", loss, [(self.n_models,)], torch.float32, self.device)
        _check("correct", correct, [(self.n_models,)], torch.int32, self.device)

    def _parameters(self, flat: Tensor) -> Parameters:
        return self.layout.parameters(flat, n_tokens=self.n_tokens, n_answers=self.n_answers, width=self.width)

    def _rows(self, batch: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs [E, B, 2], targets [E, B], and which of them exist [E, B]."""
        if batch is None:
            every = torch.arange(self.tokens.shape[1], device=self.device)
            return self.tokens, self.targets, every < self.n_rows[:, None]
        exists = (batch >= 0) & (batch < self.n_rows[:, None])
        at = torch.where(exists, batch, 0)
        models = torch.arange(self.n_models, device=self.device)[:, None]
        return self.tokens[models, at], self.targets[models, at], exists


def _data(name: str, t: Tensor, n_models: int, size: int, trailing: tuple[int, ...] = ()) -> Tensor:
    """[E, N, *trailing] of a tensor with or without the models' axis, its entries in [0, size)."""
    if not isinstance(t, Tensor) or t.dtype != torch.int64:
        raise TypeError(f"{name} must be an int64 tensor, got {getattr(t, 'dtype', type(t).__name__)}")
    shared = t.ndim == 1 + len(trailing)
    rest = t.shape if shared else t.shape[1:]
    if rest[1:] != trailing or len(rest) != 1 + len(trailing) or not rest[0] or not (shared or len(t) == n_models):
        accepted = ", ".join(["N", *map(str, trailing)])
        raise ValueError(f"{name} must be [{n_models}, {accepted}] or [{accepted}], not empty, got {tuple(t.shape)}")
    low, high = (int(edge) for edge in t.aminmax())
    if low < 0 or high >= size:
        raise IndexError(f"{name} must be in [0, {size}), got {low if low < 0 else high}")
    return t.expand(n_models, *rest)


def _counts(n_rows: Tensor | Sequence[int] | None, n_models: int, n: int) -> Tensor:
    """int64 [E], each in [1, n]."""
    counts = torch.full((n_models,), n) if n_rows is None else torch.as_tensor(n_rows)
    if counts.shape != (n_models,) or counts.dtype != torch.int64:
        raise ValueError(f"n_rows must be {n_models} integers, got {tuple(counts.shape)} {counts.dtype}")
    low, high = (int(edge) for edge in counts.aminmax())
    if low < 1 or high > n:
        raise ValueError(f"n_rows must be between 1 and {n}, got {low if low < 1 else high}")
    return counts


def _check(name: str, t: Tensor, shapes: list[tuple[int, ...]], dtype: torch.dtype, device: torch.device) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a tensor, got {t!r} ({type(t).__name__})")
    if t.shape not in shapes or t.dtype != dtype or t.device != device or not t.is_contiguous():
        accepted = " or ".join(str(list(shape)) for shape in shapes)
        raise ValueError(
            f"{name} must be {accepted}, {dtype} on {device}, contiguous, "
            f"got {list(t.shape)}, {t.dtype} on {t.device}{'' if t.is_contiguous() else ', not contiguous'}"
        )
