"""Transforms as torch operations on the weights and gradients of E models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from grokfast import checks
from grokfast.transforms.base import Layout, Transform
from grokfast.transforms.chain import elements, named
from grokfast.transforms.spans import Span


class Operation:
    """The transform in one place of a chain, of E models that may differ in what it says may vary.

    Attributes:
        transform: that of the first model.
        place, prefix: its place in the chain; before the names of its state stands "<place>.".
        hyper: of each field that may vary the values [E, 1].
        span: when it is on; None: always.
    """

    def __init__(self, place: int, filters: Sequence[Transform | None], layout: Layout, like: Tensor) -> None:
        own = [elements(filter)[place] for filter in filters]
        self.transform, self.name, self.layout = own[0], list(named(filters[0]))[place], layout
        self.place, self.prefix = place, f"{place}."
        self.span = Span.of(own, like.device)
        values = {field: [getattr(one, field) for one in own] for field in sorted(self.transform.varies)}
        for field, of_models in values.items():
            if len({len(own) for own in of_models if isinstance(own, tuple)}) > 1:
                raise ValueError(f"{self.name}.{field} must be equally many numbers for all models, got {of_models}")
        self.hyper = {
            field: torch.tensor(of_models, dtype=torch.float64).to(like.device, like.dtype)[:, None]
            for field, of_models in values.items()
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """What it keeps of a model: name -> shape without E."""
        own = self.transform.state(self.layout)
        return {self.prefix + name: tuple(shape) for name, shape in own.items()}

    def apply(self, grad: Tensor, flat: Tensor, state: Mapping[str, Tensor], step: Tensor) -> None:
        """To the parameters in the rows of grad and flat [E, P]; what lies behind them stays."""
        size, own = self.layout.size, self._own(state)
        self.transform.apply(grad[:, :size], flat[:, :size], own, MappingProxyType(self.hyper), self.layout, step)

    def observe(self, state: Mapping[str, Tensor], train_loss: Tensor, test_loss: Tensor) -> None:
        """Tell it the losses [E, 1] of an evaluation."""
        self.transform.observe(self._own(state), train_loss, test_loss)

    def _own(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        names = (name for name in state if name.startswith(self.prefix))
        return MappingProxyType({name.removeprefix(self.prefix): state[name] for name in names})

    def apply_where(self, on: Tensor, grad: Tensor, flat: Tensor, state: Mapping[str, Tensor], step: Tensor) -> None:
        """`apply` to the models that are `on`, bool [E]; of the others all stays as it is."""
        if on.is_cpu and on.all():
            self.apply(grad, flat, state, step)
        elif not on.is_cpu or on.any():
            own = [grad if self.transform.when == "before" else flat]
            own += [t for name, t in state.items() if name.startswith(self.prefix)]
            before = [t.clone() for t in own]
            self.apply(grad, flat, state, step)
            for t, was in zip(own, before):
                t.copy_(torch.where(on.view(-1, *[1] * (t.ndim - 1)), t, was))

    @torch.no_grad()
    def try_out(self, flat: Tensor) -> None:
        """Apply it to a copy of the first model; TypeError or ValueError names it where it does what it must not."""
        weights = flat[:1, : self.layout.size].clone()
        grad = torch.ones_like(weights)
        state = {
            name.removeprefix(self.prefix): flat.new_zeros(1, *shape) for name, shape in checked_shapes(self).items()
        }
        given = {"grad": grad, "weights": weights, **{f"state[{name!r}]": t for name, t in state.items()}}
        before = {name: (tuple(t.shape), t.dtype, t.device) for name, t in given.items()}
        hyper = MappingProxyType({field: values[:1] for field, values in self.hyper.items()})
        step = torch.zeros(1, 1, dtype=torch.int64, device=flat.device)
        kind = type(self.transform).__name__
        try:
            said = self.transform.apply(grad, weights, MappingProxyType(state), hyper, self.layout, step)  # type: ignore[func-returns-value]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise ValueError(f"{kind}.apply failed on weights {list(weights.shape)}: {error}") from error
        if said is not None:
            raise TypeError(
                f"{kind}.apply must change {'grad' if self.transform.when == 'before' else 'weights'} in place and "
                f"return nothing, it returned {checks.shown(type(said).__name__)}"
            )
        for name, t in given.items():
            now = tuple(t.shape), t.dtype, t.device
            if now != before[name]:
                raise ValueError(f"{kind}.apply must leave {name} {before[name]}, it made it {now}")


def checked_shapes(operation: Operation) -> dict[str, tuple[int, ...]]:
    """`operation.shapes()`; TypeError where they are none."""
    shapes = operation.shapes()
    for name, shape in shapes.items():
        if not all(isinstance(size, int) and size >= 0 for size in shape):
            kind, own = type(operation.transform).__name__, name.removeprefix(operation.prefix)
            raise TypeError(f"{kind}.state[{own!r}] must be a shape, got {checks.shown(shape)}")
    return shapes


def check_kinds(filters: Sequence[Transform | None]) -> None:
    """ValueError unless all have the same kinds of transforms in the same places."""
    first = list(map(type, elements(filters[0])))
    for i, filter in enumerate(filters):
        if list(map(type, elements(filter))) != first:
            raise ValueError(f"filters[{i}] must be of the same kinds as filters[0], {filters[0]}, got {filter}")
