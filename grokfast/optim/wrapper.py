"""`GrokFast`: a gradient filter around any torch optimizer, itself a `torch.optim.Optimizer`."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from grokfast import checks
from grokfast.filters import EMA, MA, Filter
from grokfast.optim import fused
from grokfast.optim.reference import COUNT_KEY, KEYS, filter_gradient, init_state, require_dense, require_state

_ALL_KEYS = frozenset(key for keys in KEYS.values() for key in keys)


class GrokFast(torch.optim.Optimizer):
    """Filter every gradient, then let `optimizer` take its step: ĝ = filter(g) (Lee et al. 2024, arXiv 2405.20233).

        opt = grokfast.GrokFast(torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1.0), grokfast.EMA())

    `param_groups`, `state` and `defaults` are the inner optimizer's own, live. `state_dict` is the inner one's plus,
    per parameter, the filter's tensors under `grokfast_*` keys; a plain state dict of the inner optimizer loads, too,
    and starts the filter anew. `p.grad` holds the raw gradient before and after the step. A parameter without a
    gradient is passed over; its history starts with its first gradient. With λ = 0 the step is the inner
    optimizer's own, bit for bit. A closure is evaluated before the filter; for an optimizer that evaluates it
    itself (LBFGS), every evaluation is filtered, and leaves the filtered gradient in `p.grad`.

    The filter sees what is in `p.grad` when `step` is called: accumulated over micro-batches, unscaled by a GradScaler,
    clipped, if that is done before. It adds up to λ times the gradient's size, which clipping does not see.

    A param group may have values of its own, read at every step: `grokfast_alpha` (EMA), `grokfast_lamb`, and
    `grokfast_enabled`; `enable()` and `disable()` set the last for all. A group that is off has no filter, no history
    and no cost; switched on again, its history starts anew.

        GrokFast(AdamW([{"params": body}, {"params": head, "grokfast_lamb": 0.5}, {"params": norms,
                 "grokfast_enabled": False}]))

    Args:
        optimizer: the inner optimizer.
        filter: `grokfast.EMA(...)` or `grokfast.MA(...)`; the attribute may be replaced by one with other values.
        start_step: steps of the inner optimizer alone before the filter begins.
        start_when: called with the number of steps taken, before each step, until it returns True; the filter begins
            then (after start_step). `lambda step: train_accuracy() > 0.99` starts it after memorisation.
        write_grad: leave the filtered gradient in `p.grad` after a step, instead of the raw one.

    A step with zero gradients at lr 0, by which torch.distributed.checkpoint lets an optimizer make its state, makes
    the filter's, too, but is no part of any history.

    Where the inner optimizer is torch's AdamW, Adam or SGD on CPU fp32 tensors, filter and update are one pass.

    Raises TypeError for an `optimizer` or `filter` of another type, and for sparse gradients.
    """

    optimizer: torch.optim.Optimizer
    filter: Filter
    filter_state: dict[Tensor, dict[str, Any]]
    start_step: int
    start_when: Callable[[int], bool] | None
    write_grad: bool
    _is_blank: bool  # filter_state was made for a checkpoint to fill; no gradient has been seen

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        filter: Filter = EMA(),
        *,
        start_step: int = 0,
        start_when: Callable[[int], bool] | None = None,
        write_grad: bool = False,
    ) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if isinstance(optimizer, GrokFast):
            raise TypeError("optimizer is a GrokFast already; wrap the inner optimizer once")
        if not isinstance(filter, (EMA, MA)):
            raise TypeError(f"filter must be grokfast.EMA(...) or grokfast.MA(...), got {filter!r}")
        if start_when is not None and not callable(start_when):
            raise TypeError(f"start_when must be callable or None, got {start_when!r}")
        for group in optimizer.param_groups:
            _check_group(group)
        # Not Optimizer.__init__: it would make groups and state of its own. __setstate__ makes the hooks.
        super().__setstate__(
            {
                "optimizer": optimizer,
                "filter": filter,
                "filter_state": {},
                "start_step": checks.integer("start_step", start_step, minimum=0),
                "start_when": start_when,
                "write_grad": checks.boolean("write_grad", write_grad),
                "_is_blank": False,
            }
        )
        self._note_start()

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
        _check_group(param_group)
        self.optimizer.add_param_group(param_group)
        self._note_start()

    def enable(self) -> None:
        """Filter the gradients of all groups."""
        self._switch(True)

    def disable(self) -> None:
        """Filter no gradients, and forget the past ones."""
        self._switch(False)

    def _switch(self, on: bool) -> None:
        for group in self.param_groups:
            group["grokfast_enabled"] = on

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none=set_to_none)

    @torch._disable_dynamo  # as torch.optim; under torch.compile the step is taken between two compiled graphs
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Filter the gradients and take one step of the inner optimizer; returns the closure's loss, if given."""
        if closure is None and _is_to_make_state(self.optimizer):
            self._make_state()
            return None
        if self._is_blank:
            self.filter_state, self._is_blank = {}, False
        if not self._has_started():
            loss = self._inner_step(*(() if closure is None else (closure,)))
        elif closure is not None and _evaluates_closure_itself(self.optimizer):
            loss = self._inner_step(lambda: self._evaluate_filtered(closure))
        else:
            loss = None
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            filters = self._filters()
            if self.write_grad or not fused.step(self.optimizer, filters, self.filter_state):
                self._filter_then_step()
        self._count_step()
        return loss

    def _inner_step(self, *closure: Callable[[], Any]) -> Any:
        """The inner step, without the hooks on every optimizer's step, which see the wrapper's."""
        inner, step = self.optimizer, type(self.optimizer).step
        if fused.inner_step_is_watched(inner) or not getattr(step, "hooked", False):
            return inner.step(*closure)
        return step.__wrapped__(inner, *closure)  # type: ignore[attr-defined]

    def _filters(self) -> list[Filter | None]:
        """Every group's filter now, None where it is off."""
        return [_filter_of(group, self.filter) for group in self.param_groups]

    def _note_start(self) -> None:
        """Where the filter begins later, each group says how far that is, so that a state dict does."""
        if self.start_step or self.start_when is not None:
            first = self.param_groups[0]
            for group in self.param_groups:
                group.setdefault("grokfast_steps", first.get("grokfast_steps", 0))
                group.setdefault("grokfast_started", first.get("grokfast_started", False))

    def _has_started(self) -> bool:
        first = self.param_groups[0]
        if not (self.start_step or self.start_when is not None) or first["grokfast_started"]:
            return True
        steps = first["grokfast_steps"]
        if steps < self.start_step or not (self.start_when is None or self.start_when(steps)):
            return False
        for group in self.param_groups:
            group["grokfast_started"] = True
        return True

    def _count_step(self) -> None:
        for group in self.param_groups:
            if "grokfast_steps" in group:
                group["grokfast_steps"] += 1

    def _make_state(self) -> None:
        params = self._params_with_grad()
        if not self.filter_state:
            self.filter_state = {p: init_state(self.filter, p.grad) for p in params if p.grad is not None}
            self._is_blank = True
        self._inner_step()

    def _params_with_grad(self) -> list[Tensor]:
        params = [p for p in _all_params(self.optimizer) if p.grad is not None]
        for p in params:
            assert p.grad is not None
            require_dense(p.grad)
            if self.filter_state.get(p):
                require_state("filter_state[p]", self.filter_state[p], self.filter, p.grad.shape)
        return params

    def _filtered(self) -> list[tuple[Tensor, Tensor]]:
        """Parameters and their filtered gradients, the histories advanced; everything is checked first."""
        self._params_with_grad()
        pairs = []
        for group, filter in zip(self.param_groups, self._filters()):
            for p in group["params"]:
                if filter is None:
                    self.filter_state.pop(p, None)
                elif p.grad is not None:
                    pairs.append((p, filter_gradient(filter, p.grad, self.filter_state.setdefault(p, {}))))
        return pairs

    def _filter_then_step(self) -> None:
        filtered = self._filtered()
        raw: list[tuple[Tensor, Tensor | None]] = [(p, p.grad) for p, _ in filtered]
        try:
            for p, grad in filtered:
                p.grad = grad
            self._inner_step()
        finally:
            if not self.write_grad:
                for p, own in raw:
                    p.grad = own

    def _evaluate_filtered(self, closure: Callable[[], Any]) -> Any:
        with torch.enable_grad():
            loss = closure()
        for p, grad in self._filtered():
            p.grad = grad
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's state dict, each parameter's entry with the filter's tensors added."""
        for pre_hook in self._optimizer_state_dict_pre_hooks.values():
            pre_hook(self)
        state_dict = self.optimizer.state_dict()
        state = {index: dict(entry) for index, entry in state_dict["state"].items()}
        packed = [index for group in state_dict["param_groups"] for index in group["params"]]
        for index, p in zip(packed, _all_params(self.optimizer)):
            if p in self.filter_state:
                state.setdefault(index, {}).update(self.filter_state[p])
        state_dict = {**state_dict, "state": state}
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
        packed = [index for group in state_dict["param_groups"] for index in group["params"]]
        inner: dict[Any, Any] = {}
        filter_state: dict[Tensor, dict[str, Tensor]] = {}
        param_of = dict(zip(packed, _all_params(self.optimizer)))
        for index, entry in state_dict["state"].items():
            ours = {key: value for key, value in entry.items() if key in _ALL_KEYS}
            rest = {key: value for key, value in entry.items() if key not in _ALL_KEYS}
            if rest:
                inner[index] = rest
            if ours and index in param_of:
                p = param_of[index]
                require_state(f"state_dict['state'][{index}]", ours, self.filter, p.shape)
                filter_state[p] = {key: _loaded(key, value, p) for key, value in ours.items()}
        self.optimizer.load_state_dict({**state_dict, "state": inner})
        self.filter_state = filter_state
        self._note_start()
        self._is_blank = not any(t.any() for history in filter_state.values() for t in history.values())
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def __getstate__(self) -> dict[str, Any]:
        own = ("optimizer", "filter", "filter_state", "start_step", "start_when", "write_grad", "_is_blank")
        return {name: vars(self)[name] for name in own}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.filter!r}, {self.optimizer!r})"


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
        *,
        filter: Filter = EMA(),
        start_step: int = 0,
        start_when: Callable[[int], bool] | None = None,
        write_grad: bool = False,
        **options: Any,
    ) -> None:
        inner = torch.optim.AdamW(params, lr, betas, eps, weight_decay, **options)
        super().__init__(inner, filter, start_step=start_step, start_when=start_when, write_grad=write_grad)


_GROUP_KEYS = {"grokfast_alpha", "grokfast_lamb", "grokfast_enabled", "grokfast_steps", "grokfast_started"}


def _check_group(group: dict[str, Any]) -> None:
    """Raise ValueError for a misspelt key or a value that no filter takes."""
    for key in group:
        if key.startswith("grokfast_"):
            checks.choice("a param group's key", key, sorted(_GROUP_KEYS))
    _filter_of(group, EMA())


def _filter_of(group: dict[str, Any], base: Filter) -> Filter | None:
    """`base` with the group's own values; None where the group is off."""
    if not group.get("grokfast_enabled", True):
        return None
    own: dict[str, Any] = {}
    if "grokfast_lamb" in group:
        own["lamb"] = group["grokfast_lamb"]
    if "grokfast_alpha" in group and isinstance(base, EMA):
        own["alpha"] = group["grokfast_alpha"]
    return dataclasses.replace(base, **own) if own else base


def _all_params(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _is_to_make_state(optimizer: torch.optim.Optimizer) -> bool:
    """Whether every lr and every gradient is zero."""
    for group in optimizer.param_groups:
        lr = group.get("lr", 0)
        if (isinstance(lr, Tensor) and not lr.is_cpu) or lr != 0:
            return False
    grads = [p.grad for p in _all_params(optimizer) if p.grad is not None]
    return not any(grad.layout is not torch.strided or grad.count_nonzero() for grad in grads)


def _loaded(key: str, value: Tensor, p: Tensor) -> Tensor:
    """A copy where the filter works: the count on the CPU, the rest beside `p`, in at least fp32."""
    if key == COUNT_KEY:
        return value.detach().to("cpu", copy=True)
    return value.detach().to(p.device, torch.promote_types(p.dtype, torch.float32), copy=True)


def _evaluates_closure_itself(optimizer: torch.optim.Optimizer) -> bool:
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty
