"""Products of fp32 matrices as tensor cores make them of tf32: the yardstick for kernels that do."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
PRODUCTS = (aten.mm, aten.bmm, aten.addmm, aten.baddbmm)


def cut(t):
    """fp32 without the lower 13 bits, which tensor cores do not read."""
    return (t.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)


class _Cut(TorchDispatchMode):
    """PyTorch's products, also in a backward pass, of operands that are cut to tf32."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in PRODUCTS and args[-1].dtype == torch.float32:
            args = (*args[:-2], *map(cut, args[-2:]))
        return func(*args, **(kwargs or {}))


def torch_at(precision: str) -> AbstractContextManager[object]:
    """For a block of code in which PyTorch's fp32 products are to be of that precision, "tf32" or another."""
    return _Cut() if precision == "tf32" else nullcontext()
