"""`GrokFast`: a gradient filter around any torch optimizer, itself a `torch.optim.Optimizer`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

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

    A step with zero gradients at lr 0, by which torch.distributed.checkpoint lets an optimizer make its state, makes
    the filter's, too, but is no part of any history.

    Where the inner optimizer is torch's AdamW, Adam or SGD on CPU fp32 tensors, filter and update are one pass.

    Raises TypeError for an `optimizer` or `filter` of another type, and for sparse gradients.
    """

    optimizer: torch.optim.Optimizer
    filter: Filter
    filter_state: dict[Tensor, dict[str, Any]]
    _is_blank: bool  # filter_state was made for a checkpoint to fill; no gradient has been seen

    def __init__(self, optimizer: torch.optim.Optimizer, filter: Filter = EMA()) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if isinstance(optimizer, GrokFast):
            raise TypeError("optimizer is a GrokFast already; wrap the inner optimizer once")
        if not isinstance(filter, (EMA, MA)):
            raise TypeError(f"filter must be grokfast.EMA(...) or grokfast.MA(...), got {filter!r}")
        # Not Optimizer.__init__: it would make groups and state of its own. __setstate__ makes the hooks.
        super().__setstate__({"optimizer": optimizer, "filter": filter, "filter_state": {}, "_is_blank": False})

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
        self.optimizer.add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none=set_to_none)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Filter the gradients and take one step of the inner optimizer; returns the closure's loss, if given."""
        if closure is None and _is_to_make_state(self.optimizer):
            self._make_state()
            return None
        if self._is_blank:
            self.filter_state, self._is_blank = {}, False
        if closure is not None and _evaluates_closure_itself(self.optimizer):
            return self.optimizer.step(lambda: self._evaluate_filtered(closure))
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not fused.step(self.optimizer, self.filter, self.filter_state):
            self._filter_then_step()
        return loss

    def _make_state(self) -> None:
        params = self._params_with_grad()
        if not self.filter_state:
            self.filter_state = {p: init_state(self.filter, p.grad) for p in params if p.grad is not None}
            self._is_blank = True
        self.optimizer.step()

    def _params_with_grad(self) -> list[Tensor]:
        params = [p for p in _all_params(self.optimizer) if p.grad is not None]
        for p in params:
            assert p.grad is not None
            require_dense(p.grad)
            if self.filter_state.get(p):
                require_state("filter_state[p]", self.filter_state[p], self.filter, p.grad.shape)
        return params

    def _filtered(self, p: Tensor) -> Tensor:
        assert p.grad is not None
        return filter_gradient(self.filter, p.grad, self.filter_state.setdefault(p, {}))

    def _filter_then_step(self) -> None:
        params = self._params_with_grad()
        raw: list[Tensor | None] = [p.grad for p in params]
        filtered = [self._filtered(p) for p in params]
        try:
            for p, grad in zip(params, filtered):
                p.grad = grad
            self.optimizer.step()
        finally:
            for p, own in zip(params, raw):
                p.grad = own

    def _evaluate_filtered(self, closure: Callable[[], Any]) -> Any:
        with torch.enable_grad():
            loss = closure()
        for p in self._params_with_grad():
            p.grad = self._filtered(p)
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
        self._is_blank = not any(t.any() for history in filter_state.values() for t in history.values())
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def __getstate__(self) -> dict[str, Any]:
        return {name: vars(self)[name] for name in ("optimizer", "filter", "filter_state", "_is_blank")}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.filter!r}, {self.optimizer!r})"


class GrokFastAdamW(GrokFast):
    """AdamW with a gradient filter, as one class for frameworks that build the optimizer themselves.

    Arguments are `torch.optim.AdamW`'s; `filter` is `grokfast.EMA(...)` or `grokfast.MA(...)`.
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
        **options: Any,
    ) -> None:
        super().__init__(torch.optim.AdamW(params, lr, betas, eps, weight_decay, **options), filter)


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
