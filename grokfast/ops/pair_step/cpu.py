"""Loss, accuracy and gradient of one PairMLP of a hidden relu layer by the C++ extension, a few rows at a time.

What a piece of rows needs stays in the cache from the gather of its hidden layer to the gradients of the tables, and
only what is active is multiplied (csrc/cpu/pair_rows.cpp).
"""

from __future__ import annotations

import torch
from torch import Tensor

from grokfast import backend
from grokfast.ops.classify.reference import LOSSES
from grokfast.ops.pair_step.reference import Parameters


def only_active(activation: str, n_answers: int) -> bool:
    """Whether products are made only where a unit is active."""
    return activation == "relu" and backend.load_extension().pair_rows_fit(n_answers)


def gradient(
    weights: Parameters, grads: Parameters | None, a: Tensor, b: Tensor, target: Tensor, *, loss: str
) -> tuple[float, float]:
    """Mean loss and accuracy over rows of operands a and b and answers `target`, int64 [N], contiguous.

    Parameters are contiguous and without the axis of models, the activation is relu, and `only_active` takes them.
    `grads`, unless None, receives the gradient of the loss. Raises IndexError for an index out of range. Autocast moves
    nothing here.
    """
    if torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            return gradient(weights, grads, a, b, target, loss=loss)
    written = [None] * 4 if grads is None else [grads.w_a, grads.w_b, grads.weight, grads.bias]
    tables = [None if t is None else t.unsqueeze(0) for t in (weights.w_a, weights.w_b, weights.b_in)]  # of one model
    found = backend.load_extension().pair_rows(
        *tables, weights.weight, weights.bias, a, b, target, *written, LOSSES.index(loss), torch.get_num_threads()
    )
    if grads is not None and grads.b_in is not None:
        torch.sum(grads.w_a, 0, out=grads.b_in)  # every row adds to one row of w_a
    return found
