"""`Transform`: what is done to gradients before an optimizer's update, or to weights after it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from grokfast import checks, parts
from grokfast.parts import Part

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from grokfast.transforms.filters import Filter


MOMENTS = ("memorizing", "generalizing")  # of a run: it has memorised, it has generalised
Role = Literal["", "project", "l1", "l2", "filter", "clip"]


class Kept(NamedTuple):
    """A tensor that a filter keeps of a parameter: [*lead, *shape], in the parameter's precision, at least fp32.

    is_gradient: it begins as the first gradient, others as zeros. in_bf16: it is in bf16. on_host: of parameters on a
    GPU it is in page-locked host memory.
    """

    name: str
    lead: tuple[int, ...] = ()
    is_gradient: bool = False
    in_bf16: bool = False
    on_host: bool = False


class Layout(NamedTuple):
    """Where parameters lie in a row of flat [E, P]: of each its name, its first place and its shape without E.

    others: None where these are all of a model's; else the names of the rest, so far as they are known.
    """

    names: tuple[str, ...]
    offsets: tuple[int, ...]
    shapes: tuple[torch.Size, ...]
    others: tuple[str, ...] | None = None

    @classmethod
    def of(cls, shapes: Mapping[str, Sequence[int]]) -> Layout:
        """That of parameters of these shapes, one after the other."""
        import torch

        sizes = [torch.Size(shape) for shape in shapes.values()]
        return cls(tuple(shapes), tuple(accumulate((s.numel() for s in sizes[:-1]), initial=0)), tuple(sizes))

    @property
    def size(self) -> int:
        """P."""
        return sum(shape.numel() for shape in self.shapes)

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Each parameter by name, [E, *shape], as a view of flat [E, P]."""
        parts = zip(self.names, self.offsets, self.shapes)
        return {name: flat[:, at : at + shape.numel()].view(len(flat), *shape) for name, at, shape in parts}


@dataclass(frozen=True)
class Transform(Part):
    """Base of the transforms. One of one's own is a frozen dataclass with an `apply`, and a `state` if it keeps any.

    Every transform has a `start` and a `stop`: steps before which it is not yet, or no longer, on; or "memorizing" or
    "generalizing", the evaluation at which the run has memorised, or generalised. While it is off nothing is changed:
    no gradient, weight or state; the first step that it is on is its step 0. stop None: to the end.

    when: "before" the update: `apply` changes grad in place; "after" it: `apply` changes weights in place.
    is_of_all: what it does to a parameter depends on the others, so that `GrokFast`, too, gives it all as one row. For
    one after the update that keeps nothing.
    is_taken_anew: whether the gradient of a step is taken at other weights: w + `offset`, which it then has.
    varies: the fields that may differ between runs; they reach `apply` as tensors in `hyper`.
    role, role_field: what it is to the one pass, see one_pass.py, and the field that says how strongly. A "filter" is
    EMA or MA, or one with `averages`.
    kept: what a filter keeps of a parameter; watched: the name of the one number of its state by which `averages` go.
    Nothing may ask the host for a tensor's values: steps are captured in CUDA graphs. A transform that must says so in
    `needs_host`, and is then never captured.
    """

    family: ClassVar[str] = "transform"
    when: ClassVar[Literal["before", "after"]] = "before"
    is_of_all: ClassVar[bool] = False
    needs_host: ClassVar[bool] = False
    is_taken_anew: ClassVar[bool] = False
    role: ClassVar[Role] = ""
    role_field: ClassVar[str] = ""
    watched: ClassVar[str] = ""
    differs: ClassVar[frozenset[str]] = frozenset({"start", "stop"})

    start: int | str = field(default=0, kw_only=True, metadata={"added": True})
    stop: int | str | None = field(default=None, kw_only=True, metadata={"added": True})

    def __init_subclass__(cls, **options: Any) -> None:
        """Every kind, whoever writes it, has its start and stop checked, and shown where they say something."""
        super().__init_subclass__(**options)
        if "__repr__" not in vars(cls):
            cls.__repr__ = Transform.__repr__  # type: ignore[method-assign]
        if "__post_init__" in vars(cls):
            cls.__post_init__ = _also(Transform.__post_init__, cls.__post_init__)  # type: ignore

    def __post_init__(self) -> None:
        for name in ("start", "stop"):
            edge = getattr(self, name)
            if isinstance(edge, str):
                checks.choice(name, edge, MOMENTS)
            else:
                checks.Fields(self).integer(name, minimum=0, optional=name == "stop")
        if isinstance(self.start, int) and isinstance(self.stop, int) and self.stop <= self.start:
            raise ValueError(f"stop must be above start, {self.start}, got {self.stop}")

    def __repr__(self) -> str:
        own, span = parts.fields_of(self), {"start": 0, "stop": None}
        said = {name: value for name, value in own.items() if name not in span}
        said |= {name: own[name] for name, usual in span.items() if own.get(name, usual) != usual}
        return f"{type(self).__qualname__}({', '.join(f'{name}={value!r}' for name, value in said.items())})"

    @property
    def is_always_on(self) -> bool:
        """Whether it is on from the first step to the last."""
        return self.start == 0 and self.stop is None

    @property
    def as_filter(self) -> Filter | None:
        """The filter that it is, alone, which one pass over memory can compute together with an update; else None."""
        return None

    def reach(self, layout: Layout) -> list[int]:
        """In the one pass, for each parameter: a projection's or penalty's 1 where it acts; a clip's length of a row,
        -1 where all such parameters are as one row; 0: it does not act on it."""
        raise NotImplementedError

    @property
    def is_held(self) -> bool:
        """Whether what a clip leaves is just as long as its norm, not at most so."""
        return False

    @property
    def kept(self) -> tuple[Kept, ...]:
        return ()

    def averages(self, watched: float) -> list[tuple[float, float]]:
        """In the one pass α and λ of each average of the gradient that it adds."""
        raise NotImplementedError

    def state(self, layout: Layout) -> Mapping[str, tuple[int, ...]]:
        """The tensors that it keeps of a model, zeros at first: name -> shape without E."""
        return {}

    def offset(self, grad: Tensor, hyper: Mapping[str, Tensor]) -> Tensor:
        """By what [E, P] the weights are moved where the gradient is taken anew, given that at w, [E, P]."""
        raise NotImplementedError("it has none")

    def apply(
        self,
        grad: Tensor,
        weights: Tensor,
        state: Mapping[str, Tensor],
        hyper: Mapping[str, Tensor],
        layout: Layout,
        step: Tensor,
    ) -> None:
        """Change grad or weights, [E, P] both, in place, and the state [E, *shape], too.

        hyper: of each field in `varies` its values [E, 1], in the type of the weights; of one of k numbers [E, 1, k].
        step: int64 [E, 1], the steps taken before this one.
        """
        raise NotImplementedError("it has none")

    def observe(self, state: Mapping[str, Tensor], train_loss: Tensor, test_loss: Tensor) -> None:
        """An evaluation found these losses, [E, 1] both: keep what is to be known of them in the state, in place."""


def _also(first: Callable[[Any], None], then: Callable[[Any], None]) -> Callable[[Any], None]:
    @functools.wraps(then)
    def both(self: Any) -> None:
        first(self)
        then(self)

    return both
