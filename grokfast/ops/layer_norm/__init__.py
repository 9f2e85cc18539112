"""Layer normalisation of rows, its backward in one pass: torch's takes three, and on a few hundred rows that shows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from grokfast import backend as backends
from grokfast import checks
from grokfast.ops import dispatch
from grokfast.ops.layer_norm.reference import layer_norm as reference
from grokfast.ops.rows import threads_for

MAX_WIDTH = 4096  # of the kernels, which hold whole rows


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5, *, backend: str | None = None) -> Tensor:
    """(x - mean) / √(variance + eps) · weight + bias over the last axis: x [..., d], weight [d], bias [d] -> [..., d].

    An ensemble has a leading E everywhere: x [E, ..., d], weight [E, d], bias [E, d] -> [E, ..., d].

    Mean, variance and sums are fp32 for 16-bit tensors; under autocast all tensors are taken in fp32, as torch's own
    layer_norm does on a GPU. The gradients of weight and bias are sums over rows in a fixed order: the same bits for
    the same input, on a CPU for any number of threads.
    backend: as in ops.mlp. The Triton kernels take fp32, bf16 and fp16 and d up to 4096 and keep x and weight for the
    backward; on CPU fp32 tensors of one model with the extension each direction is one pass. Both are differentiable
    once, the plain path any number of times.
    Raises ValueError or TypeError naming the argument.
    """
    checks.real("eps", eps, minimum=0)
    dispatch.check_backend(backend)
    _check(x, weight, bias)
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        x, weight, bias = x.float(), weight.float(), bias.float()
    d, is_ensemble = x.shape[-1], weight.ndim == 2
    obstacle = f"they take d up to {MAX_WIDTH}, got {d}" if d > MAX_WIDTH else ""
    if dispatch.uses_triton("layer_norm", x, backend, obstacle):
        tensors = (x.flatten(1, -2), weight, bias) if is_ensemble else (x.reshape(1, -1, d), weight[None], bias[None])
        return _layer_norm(*tensors, float(eps)).view(x.shape)
    own = backend is None and backends.extension() is not None and not is_ensemble
    if own and all(map(backends.plain, (x, weight, bias))):
        return _LayerNorm.apply(x.reshape(-1, d).contiguous(), weight.contiguous(), bias.contiguous(), eps).view(
            x.shape
        )
    return reference(x, weight, bias, eps)


def _check(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    dispatch.check_tensor("x", x, ["...", "d"], x)
    if x.shape[-1] == 0:
        raise ValueError(f"x must not be empty in d, got {tuple(x.shape)}")
    models = []
    if isinstance(weight, Tensor) and weight.ndim == 2:
        models = [len(weight)]
        if x.ndim < 3 or len(x) != len(weight):
            raise ValueError(
                f"x must be [{len(weight)}, ..., d] as weight is {tuple(weight.shape)}, got {tuple(x.shape)}"
            )
    for name, t in (("weight", weight), ("bias", bias)):
        dispatch.check_tensor(name, t, [*models, x.shape[-1]], x)


@torch.library.custom_op(
    "grokfast::layer_norm", mutates_args=(), schema="(Tensor x, Tensor weight, Tensor bias, float eps) -> Tensor"
)
def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The kernels: x [E, N, d], weight [E, d], bias [E, d] -> [E, N, d]."""
    from grokfast.ops.layer_norm import kernels

    return kernels.forward(x, weight, bias, eps)


@torch.library.custom_op(
    "grokfast::layer_norm_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor weight, float eps) -> (Tensor, Tensor, Tensor)",
)
def _layer_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias."""
    from grokfast.ops.layer_norm import kernels

    return kernels.backward(grad, x, weight, eps)


@_layer_norm.register_fake
def _(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape)


@_layer_norm_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(weight.shape), x.new_empty(weight.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, ctx.eps = inputs
    ctx.save_for_backward(x, weight)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_layer_norm_backward(grad, *ctx.saved_tensors, ctx.eps), None


_layer_norm.register_autograd(_differentiate, setup_context=_save)
dispatch.refuse_second_derivative("layer_norm", _layer_norm_backward)
dispatch.fold_vmap(_layer_norm, _layer_norm_backward)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    @dispatch.outside_autocast
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        out, stats = torch.empty_like(x), x.new_empty(len(x), 2)
        backends.load_extension().layer_norm_forward(x, weight, bias, out, stats, eps, threads_for(x, cost=4))
        ctx.save_for_backward(x, weight, stats)
        return out

    @staticmethod
    @once_differentiable
    @dispatch.outside_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, stats = ctx.saved_tensors
        grad, grad_x = grad.contiguous(), torch.empty_like(x)
        grad_weight, grad_bias = torch.empty_like(weight), torch.empty_like(weight)
        backends.load_extension().layer_norm_backward(
            x, weight, stats, grad, grad_x, grad_weight, grad_bias, threads_for(x, cost=4)
        )
        return grad_x, grad_weight, grad_bias, None
