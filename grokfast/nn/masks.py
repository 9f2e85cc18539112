"""Dropout of E models, each with masks of its own stream, wherever these are drawn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_BITS = 31  # of a drawn number


class Masks:
    """The masks of one pass: `keep` draws the next one of every model.

    rate: float64 [E], the probabilities to drop in the place of the modules' own; None: these.
    """

    def __init__(self, models: int, rate: Tensor | None = None) -> None:
        self.models, self.rate = models, rate

    def __len__(self) -> int:
        return self.models

    def keep(self, x: Tensor, rate: float | Tensor) -> Tensor:
        """1 where an entry of x [E, ...] is kept, else 0, in the type of x."""
        raise NotImplementedError


class Generated(Masks):
    """Of torch generators, one for each model, on the device where they are."""

    def __init__(self, generators: Sequence[torch.Generator], rate: Tensor | None = None) -> None:
        super().__init__(len(generators), rate)
        self.generators = list(generators)

    def keep(self, x: Tensor, rate: float | Tensor) -> Tensor:
        rates = rate.tolist() if isinstance(rate, Tensor) else [rate] * len(self)
        own = [
            torch.empty(x.shape[1:], dtype=x.dtype, device=g.device).bernoulli_(1 - p, generator=g)
            for g, p in zip(self.generators, rates)
        ]
        return torch.stack(own).to(x.device)


class Counted(Masks):
    """Functions of a model's key, int64 [E], the step, int64 [E], how many were drawn before in this pass, and the
    entry's number, mixed as by SplitMix64 (Steele et al. 2014): nothing is asked of the host, and nothing kept, so that
    a CUDA graph draws other masks at every step, which depend on no other model."""

    def __init__(self, keys: Tensor, steps: Tensor, rate: Tensor | None = None) -> None:
        super().__init__(len(keys), rate)
        self._state, self._drawn = _mixed(keys + _signed(_GOLDEN) * (steps + 1)), 0

    def keep(self, x: Tensor, rate: float | Tensor) -> Tensor:
        self._drawn += 1
        state = _mixed(self._state + _signed(_GOLDEN * self._drawn))
        numbers = torch.arange(1, x[0].numel() + 1, device=x.device) * _signed(_GOLDEN)
        drawn = (_mixed(state[:, None] + numbers) >> (64 - _BITS)) & ((1 << _BITS) - 1)
        below = rate[:, None] * (1 << _BITS) if isinstance(rate, Tensor) else rate * (1 << _BITS)
        return (drawn >= below).to(x.dtype).view(x.shape)


def dropout(x: Tensor, p: float, training: bool, masks: Masks | Sequence[torch.Generator] | None = None) -> Tensor:
    """In training, zero each entry of x [E, ...] with probability p and scale the others by 1/(1 - p).

    Model e's mask comes from masks[e], a generator of its own or what `Masks` are, whose rates go before p; from
    torch's global stream if None.
    """
    if masks is not None and not isinstance(masks, Masks):
        masks = Generated(masks)
    rate = p if masks is None or masks.rate is None else masks.rate
    if not training or (not isinstance(rate, Tensor) and rate == 0):
        return x
    if masks is None:
        return F.dropout(x, p)
    share = (1 - rate).to(x.dtype).view(-1, *[1] * (x.ndim - 1)) if isinstance(rate, Tensor) else 1 - rate
    return x * masks.keep(x, rate) / share


def _mixed(x: Tensor) -> Tensor:
    """SplitMix64's finalizer of int64, whose products wrap around."""
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * _signed(factor)
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def _signed(x: int) -> int:
    """The same 64 bits as int64."""
    x &= (1 << 64) - 1
    return x - (1 << 64) if x >> 63 else x
