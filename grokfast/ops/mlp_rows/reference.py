"""The outputs whose loss `cpu.gradient` works out, in plain PyTorch; the losses are grokfast.losses'."""

from __future__ import annotations

from torch import Tensor

from grokfast.ops.mlp_rows.cpu import Parameters
from grokfast.ops.pair_embed.reference import ACTIVATIONS


def outputs(own: Parameters, inputs: Tensor, activation: str) -> Tensor:
    """[N, n_out] of features [N, D], or of rows [N, T] of the first weight."""
    first, *others = zip(own.weights, own.biases)
    weight, bias = first
    z = inputs @ weight.T if inputs.is_floating_point() else weight[inputs].sum(1)
    z = z if bias is None else z + bias
    for weight, bias in others:
        z = ACTIVATIONS[activation](z) @ weight.T
        z = z if bias is None else z + bias
    return z
