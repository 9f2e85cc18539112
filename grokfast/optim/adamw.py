"""`GrokFastAdamW`: optimizer and filter as one class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from grokfast.optim.wrapper import GrokFast
from grokfast.transforms.base import Transform
from grokfast.transforms.filters import EMA


class GrokFastAdamW(GrokFast):
    """AdamW with a gradient filter, as one class for frameworks that build the optimizer themselves.

    Arguments are `torch.optim.AdamW`'s and `GrokFast`'s.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        filter: Transform = EMA(),
        start_step: int = 0,
        start_when: Callable[[int], bool] | None = None,
        write_grad: bool = False,
        **options: Any,
    ) -> None:
        inner = torch.optim.AdamW(params, lr, betas, eps, weight_decay, amsgrad, **options)
        super().__init__(inner, filter, start_step=start_step, start_when=start_when, write_grad=write_grad)
