"""Loss, accuracy and gradient of one PairMLP by the C++ extension, a few rows at a time.

What a piece of rows needs stays in the cache from the gather of its hidden layer to the gradients of the tables. On
processors with AVX-512 only what is active of a relu's hidden layer is multiplied (csrc/cpu/pair_rows.cpp). Elsewhere,
and for other activations, the pieces are for one thread: with several, the whole set of rows in every operation is
faster, since each has to wake them up.
"""

from __future__ import annotations

import torch
from torch import Tensor

from grokfast import backend
from grokfast.ops.classify.reference import LOSSES
from grokfast.ops.pair_embed import IN_EXTENSION as ACTIVATIONS
from grokfast.ops.pair_step.reference import Parameters
from grokfast.ops.products import product

PIECE = 768  # rows: of 256 hidden units, 0.8 MB


def fits(activation: str, n_answers: int) -> bool:
    """Whether this is the way where there is the extension: relu, or one thread and no gelu."""
    return only_active(activation, n_answers) or (torch.get_num_threads() == 1 and activation in ACTIVATIONS)


def only_active(activation: str, n_answers: int) -> bool:
    """Whether products are made only where a unit is active."""
    return activation == "relu" and backend.load_extension().pair_rows_fit(n_answers)


def gradient(
    weights: Parameters, grads: Parameters | None, a: Tensor, b: Tensor, target: Tensor, *, activation: str, loss: str
) -> tuple[float, float]:
    """Mean loss and accuracy over rows of operands a and b and answers `target`, int64 [N], contiguous.

    Parameters are contiguous and without the axis of models.
    `grads`, unless None, receives the gradient of the loss. Raises IndexError for an index out of range. Autocast moves
    nothing here.
    """
    if torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            return gradient(weights, grads, a, b, target, activation=activation, loss=loss)
    way = _active if only_active(activation, len(weights.weight)) else _dense
    found = way(weights, grads, a, b, target, activation, loss)
    if grads is not None and grads.b_in is not None:
        torch.sum(grads.w_a, 0, out=grads.b_in)  # every row adds to one row of w_a
    return found


def _active(
    weights: Parameters, grads: Parameters | None, a: Tensor, b: Tensor, target: Tensor, activation: str, loss: str
) -> tuple[float, float]:
    written = [None] * 4 if grads is None else [grads.w_a, grads.w_b, grads.weight, grads.bias]
    return backend.load_extension().pair_rows(
        *_tables(weights), weights.weight, weights.bias, a, b, target, *written, LOSSES.index(loss),
        torch.get_num_threads(),
    )  # fmt: skip


def _dense(
    weights: Parameters, grads: Parameters | None, a: Tensor, b: Tensor, target: Tensor, activation: str, loss: str
) -> tuple[float, float]:
    extension, kind, n, classes = backend.load_extension(), ACTIVATIONS[activation], len(a), len(weights.weight)
    tables = _tables(weights)
    hidden = weights.w_a.new_empty(min(PIECE, n), weights.w_a.shape[1])
    grad_logits = weights.w_a.new_empty(min(PIECE, n), classes)
    values = weights.w_a.new_empty(2, -(-n // PIECE))  # each piece's part of loss and accuracy
    if grads is not None:
        for t in grads:
            if t is not None:
                t.zero_()
    for i, begin in enumerate(range(0, n, PIECE)):
        rows = min(PIECE, n - begin)
        at_a, at_b, answers = (t[None, begin : begin + rows] for t in (a, b, target))
        h, of_logits = hidden[:rows], None if grads is None else grad_logits[None, :rows]
        extension.pair_embed_forward(*tables, at_a, at_b, h[None], kind, 1)
        logits = product(h, weights.weight, weights.bias)
        extension.classify(LOSSES.index(loss), logits[None], answers, of_logits, *values[:, i : i + 1], n, 1)
        if grads is None:
            continue
        g = grad_logits[:rows]
        grads.weight.addmm_(g.T, h)
        if grads.bias is not None:
            grads.bias.add_(g.sum(0))
        grad_hidden = product(g, weights.weight.T)
        extension.pair_embed_add_gradients(*tables, at_a, at_b, grad_hidden, grads.w_a, grads.w_b, kind)
    mean_loss, accuracy = values.double().sum(1).tolist()
    return mean_loss, accuracy


def _tables(weights: Parameters) -> list[Tensor | None]:
    """The tables and their bias with an axis of models."""
    return [None if t is None else t.unsqueeze(0) for t in (weights.w_a, weights.w_b, weights.b_in)]
