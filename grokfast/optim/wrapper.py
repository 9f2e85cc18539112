"""`GrokFast`: a gradient filter around any torch optimizer, itself a `torch.optim.Optimizer`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from grokfast import checks
from grokfast.optim import fused
from grokfast.optim.filtering import Filtering
from grokfast.optim.history import history_of, init_state, placed, require_state, settle
from grokfast.optim.inner import evaluate, is_to_make_state, take_step, takes_closure, theirs
from grokfast.optim.saved import Aside, all_params, drop_history, split, with_histories
from grokfast.optim.settings import Setting, check_counts, check_group, reach, setting_of, transform_of
from grokfast.optim.sharpness import sharpened
from grokfast.optim.slots import RULES
from grokfast.optim.start import Start
from grokfast.parts import kinds
from grokfast.transforms.base import Transform
from grokfast.transforms.chain import elements
from grokfast.transforms.filters import EMA
from grokfast.transforms.sam import SAM


class GrokFast(torch.optim.Optimizer):
    """Filter every gradient, then let `optimizer` take its step: ĝ = filter(g) (Lee et al. 2024, arXiv 2405.20233).

        opt = grokfast.GrokFast(torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1.0), grokfast.EMA())

    `param_groups`, `state`, `defaults` and all other public attributes are the inner optimizer's own, live. The
    filter's tensors are in `state[p]`, under `grokfast_*` keys, and begin, move and end with it; so they are in state
    dicts, whatever the inner optimizer's look like. A state dict without them begins the filter anew.
    `p.grad` holds the raw gradient before and after the step. A parameter without a gradient is passed over; its
    history starts with its first gradient. With λ = 0 the step is the inner optimizer's own, bit for bit, and takes
    sparse gradients, too. Every evaluation of a closure is filtered, whoever evaluates it; further arguments of `step`
    are the inner step's.

    The filter sees what is in `p.grad` when `step` is called: accumulated over micro-batches, unscaled by a GradScaler,
    clipped, if that is done before. It adds up to λ times the gradient's size, which clipping does not see.

    A param group may have values of its own, read at every step: `grokfast_alpha` (EMA), `grokfast_lamb`, and
    `grokfast_enabled`; `enable()` and `disable()` set the last for all. A filter of the group's own is its `filter`. A
    group that is off has no filter, no history and no cost; switched on again, its history starts anew.

        GrokFast(AdamW([{"params": body}, {"params": head, "grokfast_lamb": 0.5}, {"params": norms,
                 "grokfast_enabled": False}]))

    A transform's own `start` and `stop` are steps of this optimizer, or moments that `reach("memorizing")` says have
    come; a transform alone, while it is off, is as in a group that is off.

    Args:
        optimizer: the inner optimizer.
        filter: `grokfast.EMA(...)`, `grokfast.MA(...)`, any other transform or a Chain of them; the attribute may be
            replaced by one with other values. Transforms after the update change the parameters that had a gradient.
        start_step: steps of the inner optimizer alone before the filter begins.
        start_when: called with the number of steps taken, before each step, until it returns True; the filter begins
            then (after start_step). `lambda step: train_accuracy() > 0.99` starts it after memorisation.
        write_grad: leave the filtered gradient in `p.grad` after a step, instead of the raw one.
        capturable: the step may be captured in a CUDA graph: nothing in it waits for the device, and a group's
            `grokfast_alpha`, `grokfast_lamb` and `grokfast_enabled` may be 0-dim fp32 tensors there, read at every
            replay (0 is off). True, too, if the inner optimizer was made so. Excludes start_step and start_when: begin
            with grokfast_enabled = torch.zeros((), device="cuda") and fill it with 1 later.

    A step with zero gradients at lr 0, by which torch.distributed.checkpoint lets an optimizer make its state, makes
    the filter's, too, but is no part of any history.

    Where the inner optimizer is torch's AdamW, Adam or SGD, or grokfast.optim.Lion, filter and update are one pass: on
    CPU fp32 tensors, and on NVIDIA GPUs, fp32, bf16 or fp16, one launch for all tensors of a dtype. Around any other
    optimizer the filter is. On CPU fp32 tensors OrthoGrad, L1 and Compression before them, in this order, MultiEMA or
    GrokAdamW in their place, and NormClip, NormClamp or Spherical after them are in that pass, too, alone or together,
    while all of them are on. Other transforms, and chains, are torch operations on each parameter by
    itself, and see it as [1, n]. SAM takes the gradient twice: its step needs the closure, which it evaluates twice.

    With an inner optimizer made `differentiable` the filter is, too. One that takes derivatives of `p.grad` itself (a
    Hessian's diagonal, say) gets the raw gradients of groups that are off or at λ = 0; filtered ones have none.

    Raises TypeError for an `optimizer` or `filter` of another type, and for sparse gradients; ValueError for options
    that exclude each other, and where `optimizer.state` holds the history of another filter.
    """

    optimizer: torch.optim.Optimizer
    filter: Transform
    start_step: int
    start_when: Callable[[int], bool] | None
    write_grad: bool
    _is_capturable: bool
    _is_blank: bool  # histories were made for a checkpoint to fill; no gradient has been seen
    _filtering: Filtering

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        filter: Transform = EMA(),
        *,
        start_step: int = 0,
        start_when: Callable[[int], bool] | None = None,
        write_grad: bool = False,
        capturable: bool = False,
    ) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if isinstance(optimizer, GrokFast):
            raise TypeError("optimizer is a GrokFast already; wrap the inner optimizer once")
        if not isinstance(filter, Transform):
            raise TypeError(f"filter must be grokfast.EMA(...), grokfast.MA(...) or another transform, got {filter!r}")
        if start_when is not None and not callable(start_when):
            raise TypeError(f"start_when must be callable or None, got {start_when!r}")
        checks.boolean("capturable", capturable)
        for group in optimizer.param_groups:
            is_capturable = capturable or bool(group.get("capturable"))
            if capturable and group.get("capturable") is False:
                raise ValueError(f"capturable=True needs {type(optimizer).__name__}(..., capturable=True), too")
            check_group(group, theirs(optimizer), capturable=is_capturable)
            own = elements(transform_of(group, filter, theirs(optimizer)))
            asks = [one for one in own if one.needs_host]
            spans = [one for one in own if not one.is_always_on]
            if is_capturable and asks:
                raise ValueError(f"{asks[0]} needs the host, which a captured step does without: capturable=False")
            if is_capturable and spans:
                raise ValueError(
                    f"{spans[0]} counts steps on the host, which a captured step does without: make "
                    "grokfast_enabled a 0-dim tensor on the device"
                )
            if is_capturable and (start_step or start_when is not None):
                raise ValueError(
                    f"start_step={start_step!r} and start_when={start_when!r} count steps on the host, which a "
                    "captured step does without: make grokfast_enabled a 0-dim tensor on the device"
                )
        # Not Optimizer.__init__: it would make groups and state of its own. __setstate__ makes the hooks.
        self.__setstate__(
            {
                "optimizer": optimizer,
                "filter": filter,
                "start_step": checks.integer("start_step", start_step, minimum=0),
                "start_when": start_when,
                "write_grad": checks.boolean("write_grad", write_grad),
                "_is_capturable": capturable,
                "_is_blank": False,
            }
        )
        self._adopt()
        self._start.note(self.param_groups)

    def __setstate__(self, state: dict[str, Any]) -> None:
        histories = state.pop("filter_state", {})  # of a copy made before histories lay in `state`
        super().__setstate__({**state, "_filtering": Filtering()})
        for p, history in histories.items():
            self.state.setdefault(p, {}).update(history)

    # Clients that unwrap an optimizer (`optimizer.optimizer`) and look for it among those they know find it.
    def __eq__(self, other: object) -> bool:
        return other is self or other is self.optimizer

    def __hash__(self) -> int:
        return hash(self.optimizer)

    def __getattr__(self, name: str) -> Any:
        """The inner optimizer's public interface: `train()` and `eval()` of a schedule-free one, say."""
        if name.startswith("_") or "optimizer" not in vars(self):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.optimizer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        inner = vars(self).get("optimizer")
        is_own = name.startswith("_") or name in vars(self) or hasattr(type(self), name)
        if is_own or inner is None or not hasattr(inner, name):
            super().__setattr__(name, value)
        else:
            setattr(inner, name, value)

    @property
    def capturable(self) -> bool:
        """Whether the step may be captured in a CUDA graph."""
        return self._is_capturable or any(group.get("capturable") for group in self.param_groups)

    # The inner optimizer's own, so that they stay live whatever replaces them there.
    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.optimizer.param_groups = groups

    @property
    def state(self) -> Any:
        return self.optimizer.state

    @state.setter
    def state(self, state: Any) -> None:
        self.optimizer.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        return self.optimizer.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self.optimizer.defaults = defaults

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the inner optimizer; its parameters' histories start with their first gradients."""
        check_group(param_group, theirs(self.optimizer), capturable=self.capturable)
        self.optimizer.add_param_group(param_group)
        self._start.note(self.param_groups)

    def enable(self) -> None:
        """Filter the gradients of all groups."""
        self._switch(True)

    def disable(self) -> None:
        """Filter no gradients, and forget the past ones."""
        self._switch(False)

    @property
    def _start(self) -> Start:
        return Start(self.start_step, self.start_when)

    def reach(self, moment: Literal["memorizing", "generalizing"]) -> None:
        """Say that training has memorised, or generalised: what starts or stops by that does so with the next step."""
        reach(self.param_groups, moment)

    def _switch(self, on: bool) -> None:
        for group in self.param_groups:
            group["grokfast_enabled"] = on

    def forget(self) -> None:
        """Begin all histories anew, with another kind of filter, say."""
        for p in all_params(self.optimizer):
            drop_history(self.state, p)

    def observe(self, train_loss: float | Tensor, test_loss: float | Tensor) -> None:
        """Tell the transforms the losses that an evaluation has found, by which some go, as GrokAdamW does: numbers, or
        0-dim tensors, which are not waited for."""
        self._filtering.observe(self.optimizer, self._settings(), train_loss, test_loss)

    def zero_grad(self, *args: Any, **options: Any) -> None:
        """The inner optimizer's."""
        self.optimizer.zero_grad(*args, **options)

    @torch._disable_dynamo  # as torch.optim; under torch.compile the step is taken between two compiled graphs
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *args: Any, **options: Any) -> Any:
        """Filter the gradients and take one step of the inner optimizer, which gets all further arguments.

        Returns the closure's loss, if given, else what the inner step does.
        """
        if closure is None and not (args or options) and is_to_make_state(self.optimizer):
            self._make_state()
            return None
        if self._is_blank:
            self.forget()
            self._is_blank = False
        has_begun = self._start.has_come(self.param_groups)
        moving = [(p, sam.rho) for p, sam in self._sharpened().items()] if has_begun else []
        if moving:
            if closure is None:
                raise ValueError("SAM takes the gradient of a step twice: call step(closure), which evaluates it")
            closure = sharpened(closure, moving)
        if not has_begun:
            result = take_step(self.optimizer, closure, *args, **options)
        elif closure is not None and type(self.optimizer) not in RULES and takes_closure(self.optimizer):
            result = self._step_with_closure(closure, *args, **options)
        else:
            loss = evaluate(closure)
            settings, passes = self._settings(), self._filtering.passes
            result = None
            if (
                args or options or self.write_grad
                or not fused.step(self.optimizer, settings, passes, capturable=self.capturable)
            ):  # fmt: skip
                with self._filtered_grads():
                    result = take_step(self.optimizer, None, *args, **options)
                self._filtering.after(self.optimizer, settings)
            result = result if closure is None else loss
        self._start.count(self.param_groups)
        return result

    def _step_with_closure(self, closure: Callable[[], Any], *args: Any, **options: Any) -> Any:
        """The step of an inner optimizer that evaluates the closure itself, and sees filtered gradients each time."""
        aside = Aside(self.optimizer)
        swapped: list[tuple[Tensor, Tensor, Tensor]] = []

        def evaluated() -> Any:
            aside.give_back()
            try:
                loss = evaluate(closure)
                swapped[:] = self._swap_grads()
                return loss
            finally:
                aside.take()

        aside.take()
        try:
            result = take_step(self.optimizer, evaluated, *args, **options)
        finally:
            aside.give_back()
            self._swap_back(swapped)
        self._filtering.after(self.optimizer, self._settings())
        return result

    @contextmanager
    def _filtered_grads(self) -> Iterator[None]:
        """For the inner step: filtered gradients, and a state without their histories."""
        aside = Aside(self.optimizer)
        swapped = self._swap_grads()
        aside.take()
        try:
            yield
        except RuntimeError as error:
            if any(raw.requires_grad and not grad.requires_grad for _, raw, grad in swapped):
                raise RuntimeError(
                    f"{type(self.optimizer).__name__}.step() failed with filtered gradients: {error}. If it needs "
                    "second derivatives, only raw gradients have them: set grokfast_lamb to 0 or grokfast_enabled to "
                    "False in these param groups"
                ) from error
            raise
        finally:
            aside.give_back()
            self._swap_back(swapped)

    def _swap_grads(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Put filtered gradients in the place of the raw ones: (parameter, raw, filtered) of all that have changed."""
        filtered = self._filtering.before(self.optimizer, self._settings(), capturable=self.capturable)
        swapped = [(p, p.grad, grad) for p, grad in filtered if p.grad is not None]
        for p, _, grad in swapped:
            p.grad = grad
        return swapped

    def _swap_back(self, swapped: list[tuple[Tensor, Tensor, Tensor]]) -> None:
        for p, raw, grad in swapped if not self.write_grad else ():
            if p.grad is grad:
                p.grad = raw

    def _settings(self) -> list[Setting]:
        own = theirs(self.optimizer)
        return [setting_of(group, self.filter, own) for group in self.param_groups]

    def _sharpened(self) -> dict[Tensor, SAM]:
        """The parameters whose gradients are taken anew."""
        found: dict[Tensor, SAM] = {}
        for group, setting in zip(self.param_groups, self._settings()):
            first = next(iter(elements(setting.filter)), None)
            if isinstance(first, SAM) and 0 not in setting.off:
                found |= dict.fromkeys(group["params"], first)
        return found

    def _filters(self) -> dict[Tensor, Transform]:
        """Every parameter's filter, whether it is on or not."""
        own = theirs(self.optimizer)
        return {p: transform_of(group, self.filter, own) for group in self.param_groups for p in group["params"]}

    def _adopt(self) -> None:
        """Check and settle the histories that are in `state` already."""
        filters = self._filters()
        settle([(filter, p) for p, filter in filters.items()], self.state, capturable=self.capturable)
        histories = [history_of(self.state.get(p)) for p in filters]
        self._is_blank = _are_blank(histories)

    def _make_state(self) -> None:
        work = fused.work_of(self.optimizer, self._settings())
        if not any(history_of(self.state.get(p)) for p in all_params(self.optimizer)):
            for w in work:
                assert w.param.grad is not None
                count_on = w.param.device if self.capturable else None
                self.state.setdefault(w.param, {}).update(init_state(w.filter, w.param.grad, count_on=count_on))
            self._is_blank = True
        aside = Aside(self.optimizer)
        aside.take()
        try:
            take_step(self.optimizer, None)
        finally:
            aside.give_back()

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's state dict, with the filter's tensors."""
        for pre_hook in self._optimizer_state_dict_pre_hooks.values():
            pre_hook(self)
        aside = Aside(self.optimizer)
        histories = aside.take()
        try:
            inner = self.optimizer.state_dict()
        finally:
            aside.give_back()
        state_dict = with_histories(inner, all_params(self.optimizer), histories)
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            state_dict = post_hook(self, state_dict) or state_dict
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, or a plain state dict of the inner optimizer (the filter starts anew).

        Raises ValueError, nothing changed, where the filter's part belongs to another kind of filter, window or shape.
        """
        state_dict = dict(state_dict)
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = pre_hook(self, state_dict) or state_dict
        inner, histories = split(state_dict, all_params(self.optimizer))
        filters = self._filters()
        for i, (p, history) in enumerate(histories.items()):
            require_state(f"state_dict['state'][{i}]", history, filters[p], p.shape)
        for group in inner.get("param_groups", ()):
            check_counts(group, theirs(self.optimizer))
        aside = Aside(self.optimizer)
        aside.take()
        try:
            self.optimizer.load_state_dict(inner)
        except BaseException:
            aside.give_back()
            raise
        for p, history in histories.items():
            self.state.setdefault(p, {}).update(placed(history, filters[p], p, capturable=self.capturable))
        self._start.note(self.param_groups)
        self._is_blank = _are_blank(histories.values())
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def __getstate__(self) -> dict[str, Any]:
        names = ("optimizer", "filter", "start_step", "start_when", "write_grad", "_is_capturable", "_is_blank")
        return {name: vars(self)[name] for name in names}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.filter!r}, {self.optimizer!r})"


# A group may hold one, and a state dict has the groups.
torch.serialization.add_safe_globals([*kinds("transform").values()])


def _are_blank(histories: Iterable[dict[str, Any]]) -> bool:
    """Whether there are histories, and no gradient was seen in any."""
    tensors = [t for history in histories for t in history.values()]
    return bool(tensors) and not any(t.any() for t in tensors)
