"""One network's loss, accuracy and gradients by the C++ extension (csrc/cpu/mlp_rows.cpp), in one call.

A tile of 64 rows goes through all layers and back while it is in the cache. Products pass over what is
zero, of a relu's hidden layer, of its gradient and of the features; where nothing is they are dense.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from grokfast import backend
from grokfast.ops.rows import threads_for

ACTIVATIONS = {"relu": 1, "square": 2, "abs": 3, "gelu": 4}  # as csrc/grokfast.h has them
LOSSES = ("cross_entropy", "mse", "hinge", "stablemax", "signs")
MOST_DENSE = 1 << 16  # weights of products that pass over nothing: torch's are faster beyond
MOST_WEIGHTS = 1 << 20  # they and a gradient for each part of the rows are to stay near the processor


class Loss(NamedTuple):
    """kind: one of LOSSES, means over rows as grokfast.losses has them; "signs" is the hinge of targets ±1 and one
    output. temperature and smoothing are of "cross_entropy"."""

    kind: str
    temperature: float = 1.0
    smoothing: float = 0.0


class Parameters(NamedTuple):
    """Weights [n_out, n_in] and biases [n_out] or None of the layers; or their gradients. The first weight is
    [table_rows, n_out] where inputs are rows of it."""

    weights: Sequence[Tensor]
    biases: Sequence[Tensor | None]


def why_not() -> str:
    """Why this instruction set does not take it; empty where it does. The extension must be there."""
    extension = backend.load_extension()
    return "" if extension.mlp_rows_are_fast() else f"products are faster with AVX2, not with {extension.active_isa()}"


def gradient(
    own: Parameters, to: Parameters | None, inputs: Tensor, target: Tensor, *, activation: str, loss: Loss
) -> tuple[float, float]:
    """Mean loss and accuracy over rows: inputs [N, D] features, or int64 [N, T], the T rows of the first weight that a
    row's first layer is the sum of; target int64 [N]. All contiguous, floats fp32.

    `to`, unless None, receives the gradient of the loss. Raises IndexError for an index or class out of range.
    """
    index = None if inputs.is_floating_point() else inputs
    work = sum(w.numel() for w in (own.weights if index is None else own.weights[1:]))
    return backend.load_extension().mlp_rows(
        inputs if index is None else None, index, target, own.weights, own.biases,
        () if to is None else to.weights, () if to is None else to.biases,
        ACTIVATIONS[activation], LOSSES.index(loss.kind), loss.temperature, loss.smoothing, threads_for(target, work),
    )  # fmt: skip
