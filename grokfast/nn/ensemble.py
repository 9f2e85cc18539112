"""E independent models as one: every parameter is [E, ...], every activation [E, ...], and E = 1 is the ordinary case.

On the CPU the operations below run once per model, so that model e of an ensemble computes bit for bit what it computes
alone (a batched GEMM may sum in another order). On other devices one batched call serves all models.

A weight without the leading axis is one model's: the operations are then torch's own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grokfast import checks
from grokfast.seeds import MAX_SEED, generator


class EnsembleModule(nn.Module):
    """Base of the trainable models: E = len(seeds) models, each parameter [E, ...], model e drawn from seeds[e].

    Two equal seeds start two equal models. Raises TypeError or ValueError where seeds is empty or not integers >= 0.

    can_unstack: whether `forward` counts axes from the end, and asks `lead` for the first, so that `unstack` can be.
    """

    can_unstack: ClassVar[bool] = False
    is_unstacked = False

    def __init__(self, seeds: Sequence[int]) -> None:
        super().__init__()
        if isinstance(seeds, str) or not isinstance(seeds, Sequence):
            raise TypeError(f"seeds must be a sequence of integers, got {seeds!r} ({type(seeds).__name__})")
        if not seeds:
            raise ValueError("seeds must name at least one model, got an empty sequence")
        self.seeds = tuple(
            checks.integer(f"seeds[{e}]", seed, minimum=0, maximum=MAX_SEED) for e, seed in enumerate(seeds)
        )

    @property
    def n_models(self) -> int:
        """E."""
        return len(self.seeds)

    @property
    def lead(self) -> tuple[int, ...]:
        """The leading axis: (E,); none of one that `is_unstacked`."""
        return () if self.is_unstacked else (self.n_models,)

    def unstack(self) -> list[nn.Module]:
        """The models as ordinary modules, with copies of their parameters, which keep their names and lose the leading
        axis: forward(inputs [N, ...]) -> [N, n_outputs]. Raises TypeError where `can_unstack` is False."""
        if not self.can_unstack:
            raise TypeError(f"{type(self).__name__} must define `unstack`: its forward pass is an ensemble's alone")
        return [self._of_model(e) for e in range(self.n_models)]

    def _of_model(self, e: int) -> nn.Module:
        own: dict[int, Any] = {id(p): nn.Parameter(p[e].detach().clone()) for p in self.parameters()}
        own |= {id(b): b[0 if len(b) == 1 else e].clone() for b in self.buffers()}
        made = copy.deepcopy(self, own)
        made.seeds, made.is_unstacked = self.seeds[e : e + 1], True
        return made

    @property
    def n_parameters(self) -> int:
        """Parameters of one model."""
        return sum(parameter.numel() for parameter in self.parameters()) // self.n_models

    def embedded(self, inputs: Tensor) -> Tensor:
        """Inputs [N, ...] or [E, N, ...] as the real numbers [E, N, ...] that the network is a function of: features
        themselves; of tokens [..., T] their embeddings, or one-hot vectors where it has none, [E, N, T, d].

        Raises TypeError where the module does not say what it makes of tokens.
        """
        if not inputs.is_floating_point():
            raise TypeError(
                f"the model must have `embedded` and `from_embedded`, as grokfast's own do, where it is moved between "
                f"tokens; {type(self).__name__} has not"
            )
        return inputs.expand(self.n_models, *inputs.shape) if inputs.ndim == 2 else inputs

    def from_embedded(self, x: Tensor, preactivations: list[Tensor] | None = None) -> Tensor:
        """Outputs of what `embedded` gives, or of numbers between; differentiable in x, where that is asked for.

        To `preactivations` it appends what comes before the nonlinearity of each hidden layer, [E, N, ..., width].
        Raises TypeError where the module does not say what these are.
        """
        if preactivations is not None:
            raise TypeError(
                f"the model must have a `from_embedded` that tells its preactivations, as grokfast's own do; "
                f"{type(self).__name__} has not"
            )
        outputs: Tensor = self(x)
        return outputs


class Initializer:
    """Draws [E, *shape] parameters, model e from generator(seeds[e], "init"): it starts with the same bits as alone.

    Drawn on the CPU in fp32, then moved to torch's default device and cast to dtype. The order of the calls matters.
    Raises TypeError where dtype is no floating-point type.
    """

    def __init__(self, seeds: Sequence[int], dtype: torch.dtype) -> None:
        if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise TypeError(f"dtype must be a floating-point torch.dtype, got {dtype!r}")
        self.generators = [generator(seed, "init") for seed in seeds]
        self.dtype = dtype

    def normal(self, *shape: int, std: float) -> nn.Parameter:
        """N(0, std²)."""
        return self._stack(lambda g: torch.empty(shape, dtype=torch.float32, device="cpu").normal_(0, std, generator=g))

    def uniform(self, *shape: int, bound: float) -> nn.Parameter:
        """U(-bound, bound)."""
        return self._stack(
            lambda g: torch.empty(shape, dtype=torch.float32, device="cpu").uniform_(-bound, bound, generator=g)
        )

    def constant(self, *shape: int, value: float) -> nn.Parameter:
        """`value` everywhere; draws nothing."""
        return self._stack(lambda _: torch.full(shape, value, dtype=torch.float32, device="cpu"))

    def _stack(self, draw: Callable[[torch.Generator], Tensor]) -> nn.Parameter:
        models = torch.stack([draw(g) for g in self.generators])
        return nn.Parameter(models.to(device=torch.get_default_device(), dtype=self.dtype))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y[e] = x[e] weight[e]ᵀ + bias[e]: x [E, ..., K], weight [E, O, K], bias [E, O] or None -> [E, ..., O]."""
    if weight.ndim == 2:
        return F.linear(x, weight, bias)
    if _one_by_one(x):
        return _each(F.linear, x, weight, bias)
    rows = x.flatten(1, -2)  # [E, N, K]
    y = torch.bmm(rows, weight.mT) if bias is None else torch.baddbmm(bias.unsqueeze(1), rows, weight.mT)
    return y.unflatten(1, x.shape[1:-1])


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Layer normalisation of the last axis: x [E, ..., d], weight [E, d], bias [E, d] -> [E, ..., d]."""
    if weight.ndim == 1:
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)

    def one(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)

    if _one_by_one(x):
        return _each(one, x, weight, bias)
    shape = (len(x), *[1] * (x.dim() - 2), x.shape[-1])  # [E, 1, ..., 1, d]
    return F.layer_norm(x, x.shape[-1:], eps=eps) * weight.view(shape) + bias.view(shape)


def embedding(indices: Tensor, weight: Tensor) -> Tensor:
    """y[e] = weight[e][indices[e]]: indices [E, ...] int64 in 0..V-1, weight [E, V, d] -> [E, ..., d]."""
    if weight.ndim == 2:
        return F.embedding(indices, weight)
    if _one_by_one(weight):
        return _each(F.embedding, indices, weight)
    models = torch.arange(len(weight), device=weight.device).view(-1, *[1] * (indices.dim() - 1))  # [E, 1, ..., 1]
    return weight[models, indices]


def _one_by_one(x: Tensor) -> bool:
    return len(x) == 1 or x.device.type == "cpu"


def _each(function: Callable[..., Tensor], *tensors: Tensor | None) -> Tensor:
    """function(tensors[0][e], tensors[1][e], ...) of every model e, stacked. A None stays None."""
    n_models = len(next(tensor for tensor in tensors if tensor is not None))
    if n_models == 1:
        return function(*(None if tensor is None else tensor.squeeze(0) for tensor in tensors)).unsqueeze(0)
    slices = [[None] * n_models if tensor is None else _alone(tensor) for tensor in tensors]
    results = [function(*of_model) for of_model in zip(*slices)]
    if not _keeps_alignment(results[0].numel(), results[0]):
        results = [_Apart.apply(result) for result in results]
    return torch.stack(results)


def _alone(tensor: Tensor) -> Sequence[Tensor]:
    """tensor[e] of every model, where a product reads it as it would alone."""
    models = tensor.unbind()
    return models if _keeps_alignment(tensor.stride(0), tensor) else [_Apart.apply(t) for t in models]


def _keeps_alignment(elements: int, like: Tensor) -> bool:
    """Whether addresses so many elements apart are alike to the widest loads: MKL's bits may depend on it."""
    return elements * like.element_size() % 64 == 0


class _Apart(torch.autograd.Function):
    """A copy; its gradient is one, too."""

    @staticmethod
    def forward(ctx: Any, t: Tensor) -> Tensor:
        return t.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.clone()
