"""Loss, accuracy and gradient of one PairMLP by the C++ extension, a few rows at a time.

What a piece of rows needs stays in the cache from the gather of its hidden layer to the gradients of the tables. On
processors with AVX-512 only what is active of a relu's hidden layer is multiplied (csrc/cpu/pair_rows.cpp). Elsewhere,
and for other activations, the pieces are for one thread: with several, the whole set of rows in every operation is
faster, since each has to wake them up.
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


def fits(activation: str, flat: Tensor, n_answers: int) -> bool:
    """Whether this is the way for parameters in `flat`: CPU fp32, the extension, and relu or one thread and no gelu."""
    if backend.extension() is None or not backend.plain(flat):
        return False
    return only_active(activation, n_answers) or (torch.get_num_threads() == 1 and activation in ACTIVATIONS)


def only_active(activation: str, n_answers: int) -> bool:
    """Whether products are made only where a unit is active."""
    return activation == "relu" and backend.load_extension().pair_rows_fit(n_answers)


def gradient(
    weights: Parameters, grads: Parameters | None, a: Tensor, b: Tensor, target: Tensor, *, activation: str, loss: str
) -> tuple[float, float]:
    """Mean loss and accuracy over rows of operands a and b and answers `target`, int64 [N], contiguous.

    Parameters are contiguous and without the axis of models.
    `grads`, unless None, receives the gradient of the loss. Raises IndexError for an index out of range.
    """
    way = _active if only_active(activation, len(weights.weight)) else _dense
    found = way(weights, grads, a, b, target, activation, loss)
    if grads is not None and grads.b_in is not None:
        torch.sum(grads.w_a, 0, out=grads.b_in)  # every row adds to one row of w_a
    return found


def _active(
    weights: Parameters, grads: Parameters | None, a: Tensor, b: Tensor, target: Tensor, activation: str, loss: str
) -> tuple[float, float]:
    written = [0] * 4 if grads is None else [_address(t) for t in (grads.w_a, grads.w_b, grads.weight, grads.bias)]
    return backend.load_extension().pair_rows(
        _tables(weights), weights.weight.data_ptr(), _address(weights.bias), len(weights.weight), a.data_ptr(),
        b.data_ptr(), target.data_ptr(), len(a), *written, LOSSES.index(loss), torch.get_num_threads(),
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
    mean_loss, accuracy = values.double().sum(1).tolist()
    return mean_loss, accuracy


def _tables(weights: Parameters) -> Any:
    sizes = len(weights.w_a), len(weights.w_b), weights.w_a.shape[1]
    tables = [_address(t) for t in (weights.w_a, weights.w_b, weights.b_in)]
    return backend.load_extension().PairTables(*tables, 0, 0, 0, *sizes)


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()
