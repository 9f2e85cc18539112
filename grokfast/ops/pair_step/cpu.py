"""Loss, accuracy and gradient of one PairMLP by the C++ extension, a few rows at a time: for a processor of one's own.

What a piece of rows needs stays in the cache from the gather of its hidden layer to the gradients of the tables. With
several threads the whole set of rows in every operation is faster, since each has to wake them up.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from grokfast import backend
from grokfast.ops.classify.reference import LOSSES
from grokfast.ops.pair_embed import IN_EXTENSION as ACTIVATIONS
from grokfast.ops.pair_step.reference import Parameters
from grokfast.ops.products import product

PIECE = 768  # rows: of 256 hidden units, 0.8 MB


def fits(activation: str, flat: Tensor) -> bool:
    """Whether this is the way for parameters in `flat`: CPU fp32, one thread, the extension, no gelu."""
    return (
        backend.extension() is not None
        and backend.plain(flat)
        and torch.get_num_threads() == 1
        and activation in ACTIVATIONS
    )


def gradient(
    weights: Parameters, grads: Parameters | None, a: Tensor, b: Tensor, target: Tensor, *, activation: str, loss: str
) -> tuple[float, float]:
    """Mean loss and accuracy over rows of operands a and b and answers `target`, int64 [N], contiguous.

    Parameters are contiguous and without the axis of models.
    `grads`, unless None, receives the gradient of the loss. Raises IndexError for an index out of range.
    """
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
        at_a, at_b, answers = (t.data_ptr() + 8 * begin for t in (a, b, target))
        h = hidden[:rows]
        extension.pair_embed_forward(tables, at_a, at_b, h.data_ptr(), 1, rows, kind, 1)
        logits = product(h, weights.weight, weights.bias)
        extension.classify(
            LOSSES.index(loss), logits.data_ptr(), answers, 0 if grads is None else grad_logits.data_ptr(),
            values[0, i].data_ptr(), values[1, i].data_ptr(), 1, rows, n, classes, 1,
        )  # fmt: skip
        if grads is None:
            continue
        g = grad_logits[:rows]
        grads.weight.addmm_(g.T, h)
        if grads.bias is not None:
            grads.bias.add_(g.sum(0))
        grad_hidden = product(g, weights.weight.T)
        extension.pair_embed_add_gradients(
            tables, at_a, at_b, grad_hidden.data_ptr(), grads.w_a.data_ptr(), grads.w_b.data_ptr(), rows, kind
        )
    if grads is not None and grads.b_in is not None:
        torch.sum(grads.w_a, 0, out=grads.b_in)  # every row adds to one row of w_a
    mean_loss, accuracy = values.double().sum(1).tolist()
    return mean_loss, accuracy


def _tables(weights: Parameters) -> Any:
    bias = 0 if weights.b_in is None else weights.b_in.data_ptr()
    sizes = len(weights.w_a), len(weights.w_b), weights.w_a.shape[1]
    return backend.load_extension().PairTables(weights.w_a.data_ptr(), weights.w_b.data_ptr(), bias, 0, 0, 0, *sizes)
