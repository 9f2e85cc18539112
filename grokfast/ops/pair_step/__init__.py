"""Loss, right answers and gradient of E PairMLPs of one hidden layer, in two or three launches over an ensemble axis.

On an NVIDIA GPU these are Triton kernels, elsewhere plain PyTorch; the interface is the same. Nothing waits for the
device after construction, memory is taken at construction only, and so a CUDA graph may hold every call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grokfast import checks
from grokfast.ops.classify.reference import LOSSES
from grokfast.ops.dispatch import PRECISIONS
from grokfast.ops.pair_step import reference
from grokfast.ops.pair_step.reference import Parameters

ACTIVATIONS = ("relu", "square", "gelu", "abs")
MAX_CLASSES = 512


@dataclass(frozen=True)
class Layout:
    """Where the parameters of one model begin in its row of flat [E, P], in elements; None: there is no such bias."""

    w_a: int
    w_b: int
    b_in: int | None
    weight: int
    bias: int | None
    n_parameters: int  # what follows in a row is padding

    @classmethod
    def of(cls, shapes: Mapping[str, Sequence[int]]) -> Layout:
        """From the parameters' names and shapes without the ensemble axis, in `model.parameters()`'s order.

        Raises ValueError where these are not the parameters of a PairMLP of one hidden layer.
        """
        offsets, end = {}, 0
        for name, shape in shapes.items():
            offsets[name] = end
            end += torch.Size(shape).numel()
        needed, optional = {"w_a", "w_b", "out.weight"}, {"b_in", "out.bias"}
        if not needed <= offsets.keys() <= needed | optional:
            accepted = f"{', '.join(sorted(needed))} and optionally {', '.join(sorted(optional))}"
            raise ValueError(f"shapes must name {accepted}, got {', '.join(offsets)}")
        bias_in, bias = offsets.get("b_in"), offsets.get("out.bias")
        return cls(offsets["w_a"], offsets["w_b"], bias_in, offsets["out.weight"], bias, end)


class PairStep:
    """Loss, right answers and gradient of E models at once, in a few launches into tensors of the caller.

    Args:
        layout: where the parameters lie in a row of flat [E, P].
        tokens: int64 [E, N, 2], or [N, 2] for all models alike; targets: int64 [E, N], or [N].
        n_tokens, n_answers: the tables' rows p and the classes V.
        width: hidden units H.
        activation: "relu", "square", "gelu" or "abs"; loss: "cross_entropy" or "mse", as ops.classify has them.
        precision: "ieee", "tf32x3", "tf32" or "bf16", of the products; parameters and sums are fp32.
        n_rows: [E], how many of the N rows each model has; the others are passed over. None: all.
        max_batch: the largest number B of rows that `gradient` is called with; None: N, 0: only `measure` is called.

    E models together get the bits that each gets alone, and the same ones every time.
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
        for name, number in (
            ("n_models", n_models),
            ("n_tokens", n_tokens),
            ("n_answers", n_answers),
            ("width", width),
        ):
            checks.integer(name, number, minimum=1)
        self.activation = checks.choice("activation", activation, ACTIVATIONS)
        self.loss = checks.choice("loss", loss, LOSSES)
        self.precision = checks.choice("precision", precision, PRECISIONS)
        self.layout, self.n_models, self.n_tokens, self.n_answers, self.width = (
            layout,
            n_models,
            n_tokens,
            n_answers,
            width,
        )
        self.tokens = tokens.expand(n_models, *tokens.shape[-2:])
        self.targets = targets.expand(n_models, targets.shape[-1])
        n = self.tokens.shape[1]
        counts = torch.full((n_models,), n) if n_rows is None else torch.as_tensor(n_rows)
        self.n_rows = counts.to(tokens.device, torch.int64)
        self.max_batch = n if max_batch is None else checks.integer("max_batch", max_batch, minimum=0, maximum=n)

    @staticmethod
    def fits(config: Any, loss: str, *, n_tokens: int, n_answers: int, dtype: torch.dtype = torch.float32) -> str:
        """Why the fused step does not take a model of this configuration (a PairMLPConfig); "" where it does."""
        if not hasattr(config, "activation") or not hasattr(config, "depth"):
            return f"a {type(config).__name__} describes no PairMLP"
        if config.depth != 1:
            return f"depth {config.depth}, the fused step takes one hidden layer"
        if config.activation not in ACTIVATIONS:
            return f"activation {config.activation!r}"
        if loss not in LOSSES:
            return f"loss {loss!r}"
        if dtype is not torch.float32:
            return f"parameters in {str(dtype).removeprefix('torch.')}, the kernels take float32"
        if n_answers > MAX_CLASSES:
            return f"{n_answers} answers, the kernels take up to {MAX_CLASSES}"
        return ""

    @property
    def splits(self) -> int:
        """S: `gradient` may be given grad [S, E, P], S partial gradients to be summed in their order."""
        return 1

    @torch.no_grad()
    def gradient(self, flat: Tensor, grad: Tensor, loss: Tensor, correct: Tensor, batch: Tensor | None = None) -> None:
        """Write grad [E, P], or partial ones [splits, E, P], loss fp32 [E] and correct int32 [E], the rows right.

        flat [E, P] holds the parameters. batch: int64 [E, B] row numbers on the device, the rows of this step (B up to
        max_batch); a number below 0 or beyond the model's rows stands for no row. The loss is the mean over the rows
        there are. Padding of grad is set to 0.
        """
        weights = self._parameters(flat)
        pairs, target, exists = self._rows(batch)
        options = self.activation, self.loss, self.precision
        values, right, grad_logits = reference.forward(weights, pairs, target, exists, *options)
        grads = reference.backward(weights, pairs, grad_logits, self.activation, self.precision)
        for out in grad.view(-1, *flat.shape)[1:]:
            out.zero_()
        first = grad.view(-1, *flat.shape)[0]
        first[:, self.layout.n_parameters :] = 0
        for out, value in zip(self._parameters(first), grads):
            if out is not None and value is not None:
                out.copy_(value)
        loss.copy_(values)
        correct.copy_(right)

    @torch.no_grad()
    def measure(self, flat: Tensor, loss: Tensor, correct: Tensor) -> None:
        """Write loss fp32 [E] and correct int32 [E] over all rows, for parameters flat [E, P]."""
        pairs, target, exists = self._rows(None)
        options = self.activation, self.loss, self.precision
        values, right, _ = reference.forward(self._parameters(flat), pairs, target, exists, *options)
        loss.copy_(values)
        correct.copy_(right)

    def _parameters(self, flat: Tensor) -> Parameters:
        def part(offset: int | None, *shape: int) -> Any:
            if offset is None:
                return None
            return flat[:, offset : offset + torch.Size(shape).numel()].view(len(flat), *shape)

        layout, table = self.layout, (self.n_tokens, self.width)
        return Parameters(
            part(layout.w_a, *table),
            part(layout.w_b, *table),
            part(layout.b_in, self.width),
            part(layout.weight, self.n_answers, self.width),
            part(layout.bias, self.n_answers),
        )

    def _rows(self, batch: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs [E, B, 2], targets [E, B], and which of them exist [E, B]."""
        if batch is None:
            every = torch.arange(self.tokens.shape[1], device=self.tokens.device)
            return self.tokens, self.targets, every < self.n_rows[:, None]
        exists = (batch >= 0) & (batch < self.n_rows[:, None])
        at = torch.where(exists, batch, 0)
        models = torch.arange(self.n_models, device=batch.device)[:, None]
        return self.tokens[models, at], self.targets[models, at], exists
