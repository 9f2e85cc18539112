"""What operations with Triton kernels do at their door: check tensors, follow autocast, choose an implementation."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from grokfast import backend as backends
from grokfast import checks

Method = TypeVar("Method", bound=Callable[..., Any])
PRECISIONS = ("ieee", "tf32x3", "tf32", "bf16")


def _torchs_own_mlp() -> int:
    module, _ = backends.built()
    return 1 << 25 if module is not None and module.active_isa() == "avx512" else 3 << 26  # as measured


# Multiplications of one product from which on something else than torch's own layers is faster on a CPU.
TORCHS_OWN = {"mlp": _torchs_own_mlp(), "attention": 1 << 63}
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_options(precision: str, backend: str | None) -> None:
    """Raise ValueError unless both are known."""
    checks.choice("precision", precision, PRECISIONS)
    check_backend(backend)


def check_backend(backend: str | None) -> None:
    """Raise ValueError unless it is known."""
    if backend is not None:
        checks.choice("backend", backend, ("reference", "triton"))


def check_tensor(name: str, t: Tensor, shape: Sequence[int | str], like: Tensor) -> None:
    """Raise TypeError or ValueError unless `t` is a float tensor of `shape`, with dtype and device of `like`.

    A letter stands for any size; "..." in front for any axes.
    """
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a tensor, got {t!r} ({type(t).__name__})")
    sizes = [size for size in shape if size != "..."]
    has_rank = t.ndim >= len(sizes) if "..." in shape else t.ndim == len(sizes)
    last = t.shape[t.ndim - len(sizes) :] if has_rank else ()
    if not has_rank or any(isinstance(size, int) and size != n for size, n in zip(sizes, last)):
        raise ValueError(f"{name} must be [{', '.join(map(str, shape))}], got {tuple(t.shape)}")
    if not t.is_floating_point():
        raise TypeError(f"{name} must be of a float dtype, got {t.dtype}")
    if t.dtype != like.dtype:
        raise ValueError(f"{name} must be {like.dtype} as the first argument is, got {t.dtype}")
    if t.device != like.device:
        raise ValueError(f"{name} must be on {like.device} as the first argument is, got {t.device}")


def check_models(name: str, x: Tensor, weight_name: str, weight: Tensor, of_model: int = 2) -> list[int]:
    """[E] where `weight` has one axis more than a model's, else []; raise ValueError unless `x` has E in front, too."""
    if not isinstance(weight, Tensor) or weight.ndim != of_model + 1:
        return []
    if x.ndim < 3 or len(x) != len(weight):
        sizes = f"[{len(weight)}, ..., {weight.shape[-1]}] as {weight_name} is {tuple(weight.shape)}"
        raise ValueError(f"{name} must be {sizes}, got {tuple(x.shape)}")
    return [len(weight)]


def autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors in autocast's dtype where it is on; fp64 stays, as in torch's own linear layers."""
    device = next(t for t in tensors if t is not None).device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [t if t is None or t.dtype == torch.float64 or not t.is_floating_point() else t.to(dtype) for t in tensors]


def outside_autocast(method: Method) -> Method:
    """A forward or backward of a torch.autograd.Function as it is without autocast.

    Dtypes are those of the tensors that came: `autocast` has said what they are to be before the call, and the backward
    follows the forward, whatever is on by then.
    """

    @functools.wraps(method)
    def exact(ctx: Any, first: Tensor, *rest: Any) -> Any:
        device = "cpu" if first.is_cpu else first.device.type
        if not torch.is_autocast_enabled(device):
            return method(ctx, first, *rest)
        with torch.autocast(device, enabled=False):
            return method(ctx, first, *rest)

    return cast(Method, exact)


def product(a: Tensor, b: Tensor, precision: str) -> Tensor:
    """a b. "bf16" rounds fp32 matrices, and what comes out, to bf16; the others leave it to torch's own setting."""
    if precision == "bf16" and a.dtype == torch.float32:
        return (a.bfloat16() @ b.bfloat16()).to(a.dtype)
    return a @ b


def torchs_own(op: str, x: Tensor, multiplications: int, precision: str, backend: str | None) -> bool:
    """Whether torch's own layers compute ops.`op` of tensors like `x`: on a CPU where they are faster.

    multiplications: of one product. The rule is measured (benchmarks/bench_layers.py). Under autocast, for "bf16"
    products, which torch's layers do not know, and where another backend is asked for, the answer is no.
    """
    return (
        multiplications < TORCHS_OWN[op]
        and backend is None
        and x.is_cpu
        and precision != "bf16"
        and not torch.is_autocast_enabled("cpu")
        and backends.current() not in ("reference", "triton")
    )


def kernel_precision(dtype: torch.dtype, precision: str) -> str:
    """What the kernels' products are made in: 16-bit tensors are multiplied as they are, whatever `precision` says."""
    return {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, precision)


def uses_triton(op: str, first: Tensor, backend: str | None, obstacle: str) -> bool:
    """Whether ops.`op` runs its kernels on tensors like `first`; `obstacle` says what these do not take, or is empty.

    Raises ValueError where backend "triton" was demanded and cannot be had. With None the choice is that of
    grokfast.backend, and an obstacle is said once.
    """
    if first.dtype not in KERNEL_DTYPES:
        obstacle = f"they take no {first.dtype}"
    if not torch.compiler.is_compiling() and _differentiates():
        obstacle = "they are not for torch.func.grad, vjp or jvp; Tensor.backward and torch.func.vmap are"
    return _uses_triton(op, first.device, backend, backends.current(), obstacle)


def _differentiates() -> bool:
    """Whether a transform of torch.func other than vmap is at work, which torch.library's operations do not take."""
    transforms = torch._C._functorch.get_interpreter_stack() or ()
    return any(transform.key().name in ("Grad", "Jvp") for transform in transforms)


def _uses_triton(op: str, device: torch.device, backend: str | None, current: str, obstacle: str) -> bool:
    if backend == "reference":
        return False
    found, why = backends.kernels_for(device, backend or current)
    if backend == "triton" and (found != "triton" or obstacle):
        raise ValueError(f"backend 'triton' cannot run ops.{op} here: {why or obstacle}")
    if found == "triton" and obstacle:
        _say_once(f"ops.{op} runs on plain PyTorch: its kernels cannot be used, {obstacle}")
    return found == "triton" and not obstacle


# What torch.compiler.assume_constant_result does, which would import the compiler.
_uses_triton._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _say_once(message: str) -> None:
    warnings.warn(message, stacklevel=5)


def fold_vmap(*ops: torch.library.CustomOpDef) -> None:
    """Let torch.func.vmap fold its axis into the leading one, which all tensors of `ops` have: that of models."""
    for op in ops:
        op.register_vmap(functools.partial(_folded, op))


def _folded(op: torch.library.CustomOpDef, info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
    n = info.batch_size

    def fold(value: Any, dim: Any) -> Any:
        if isinstance(value, (list, tuple)) and any(isinstance(t, Tensor) for t in value):
            return [fold(*pair) for pair in zip(value, dim)]
        if not isinstance(value, Tensor):
            return value
        return (value.expand(n, *value.shape) if dim is None else value.movedim(dim, 0)).flatten(0, 1)

    results = op(*map(fold, arguments, in_dims))
    if isinstance(results, Tensor):
        return results.unflatten(0, (n, len(results) // n)), 0
    return tuple(t.unflatten(0, (n, len(t) // n)) for t in results), (0,) * len(results)


def refuse_second_derivative(op: str, backward: torch.library.CustomOpDef) -> None:
    """Let the backward of a backward raise RuntimeError."""

    def refuse(ctx: object, *grads: Tensor) -> None:
        raise RuntimeError(f"the kernels of ops.{op} are differentiable once; backend='reference' any number of times")

    backward.register_autograd(refuse)
