"""When transforms are on: from their `start` up to their `stop`, for E models; the host is asked nothing."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from grokfast.transforms.base import MOMENTS, Transform

NEVER = torch.iinfo(torch.int64).max


def is_on(transform: Transform, steps: int, reached: Collection[str] = ()) -> bool:
    """Whether it is on at the step before which `steps` were taken; `reached`: the moments that have come."""

    def has_come(edge: int | str | None) -> bool:
        return edge is not None and (edge in reached if isinstance(edge, str) else steps >= edge)

    return has_come(transform.start) and not has_come(transform.stop)


class Span:
    """When a transform is on, of E models that may differ in it.

    waits: whether a moment of the run starts or stops any of them.
    """

    def __init__(self, transforms: Sequence[Transform], device: torch.device) -> None:
        edges = [(one.start, one.stop) for one in transforms]
        self.waits = any(isinstance(edge, str) for own in edges for edge in own)
        moments = [[MOMENTS.index(edge) if isinstance(edge, str) else -1 for edge in own] for own in zip(*edges)]
        steps = [[edge if isinstance(edge, int) else NEVER for edge in own] for own in zip(*edges)]
        self._moments = torch.tensor(moments).to(device)  # int64 [2, E]: of start and stop, -1: it is a step
        self._steps = torch.tensor(steps).to(device)

    @classmethod
    def of(cls, transforms: Sequence[Transform], device: torch.device) -> Span | None:
        """None: all are on from the first step to the last."""
        return None if all(one.is_always_on for one in transforms) else cls(transforms, device)

    def now(self, steps: Tensor, reached: Tensor, begun: int = 0) -> tuple[Tensor, Tensor]:
        """bool [E], which are on at the step before which `steps`, int64 [E], were taken, and int64 [E], how many steps
        each has been on, 0 where it is not.

        reached: int64 [2, E], after which steps the moments came, -1: not yet; begun: before this step none is on.
        """
        came = reached.gather(0, self._moments.clamp(min=0))
        edges = torch.where(self._moments < 0, self._steps, torch.where(came < 0, NEVER, came))
        start = edges[0].clamp(min=begun)
        on = (steps >= start) & (steps < edges[1])
        return on, torch.where(on, steps - start, 0)
