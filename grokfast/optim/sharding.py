"""DTensors (FSDP2, tensor parallelism) without importing torch.distributed: each process works on its own part."""

from __future__ import annotations

from typing import Any

import torch


def is_sharded(t: Any) -> bool:
    """Whether `t` is a DTensor."""
    return hasattr(t, "to_local")


def local_part(t: Any) -> Any:
    """This process's part of a DTensor, sharing its memory; any other value as it is."""
    return t.to_local() if is_sharded(t) else t


def placed_like(grad: Any, own: Any) -> Any:
    """`own` as this process's part of a DTensor placed like `grad`, if `grad` is one; else `own` itself.

    `own` may have further axes in front of grad's (a ring has one); they are not sharded.
    """
    if not is_sharded(grad):
        return own
    lead = own.shape[: own.ndim - grad.ndim]
    placements = [_moved(placement, len(lead)) for placement in grad.placements]
    shape = torch.Size((*lead, *grad.shape))
    stride = torch.empty(shape, device="meta").stride()
    return type(grad).from_local(own, grad.device_mesh, placements, run_check=False, shape=shape, stride=stride)


def _moved(placement: Any, axes: int) -> Any:
    """A shard of axis d is one of axis d + axes; other placements name no axis."""
    if axes == 0 or not hasattr(placement, "dim"):
        return placement
    if hasattr(placement, "split_factor"):
        return type(placement)(placement.dim + axes, split_factor=placement.split_factor)
    return type(placement)(placement.dim + axes)
