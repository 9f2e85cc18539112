"""How tensors lie in memory, to be compared at every step with how they lay when their addresses were written down."""

from __future__ import annotations

import functools
from collections.abc import Callable
from operator import attrgetter
from typing import Any

from torch import Tensor

from grokfast import backend

_EXCHANGE = getattr(Tensor, "__dlpack_c_exchange_api__", None)  # of torch >= 2.10
_address, _dtype, _device = Tensor.data_ptr, attrgetter("dtype"), attrgetter("device")


def look(tensors: list[Tensor], *, with_addresses: bool = True) -> Any:
    """Device, dtype, shape, strides and, if asked for, address of each, as something to compare.

    Raises RuntimeError or TypeError for what is no tensor, or one without memory of its own (sparse, say).
    """
    return _fastest()(tensors, with_addresses)


@functools.cache
def _fastest() -> Callable[[list[Tensor], bool], Any]:
    module, _ = backend.built()
    return look_in_python if _EXCHANGE is None or module is None else functools.partial(module.look, _EXCHANGE)


def look_in_python(tensors: list[Tensor], with_addresses: bool) -> Any:
    """As `look`, a few times slower."""
    in_order = all(map(Tensor.is_contiguous, tensors))  # then strides follow from shapes
    return (
        list(map(_address, tensors)) if with_addresses else None,
        list(map(Tensor.size, tensors)),
        None if in_order else list(map(Tensor.stride, tensors)),
        list(map(_dtype, tensors)),
        set(map(_device, tensors)),
    )
