"""`GrokFast`: a gradient filter around any torch optimizer, itself a `torch.optim.Optimizer`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from grokfast import checks
from grokfast.filters import EMA, MA, Filter
from grokfast.optim import fused
from grokfast.optim.device import is_capturing
from grokfast.optim.history import ALL_KEYS, COUNT_KEY, RING_KEY, init_state, new_ring, require_dense, require_state
from grokfast.optim.passes import Passes
from grokfast.optim.reference import filter_gradient
from grokfast.optim.settings import Setting, check_group, setting_of
from grokfast.optim.sharding import is_sharded


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
        capturable: the step may be captured in a CUDA graph: nothing in it waits for the device, and a group's
            `grokfast_alpha`, `grokfast_lamb` and `grokfast_enabled` may be 0-dim fp32 tensors there, read at every
            replay (0 is off). True, too, if the inner optimizer was made so. Excludes start_step and start_when: begin
            with grokfast_enabled = torch.zeros((), device="cuda") and fill it with 1 later.

    A step with zero gradients at lr 0, by which torch.distributed.checkpoint lets an optimizer make its state, makes
    the filter's, too, but is no part of any history.

    Where the inner optimizer is torch's AdamW, Adam or SGD, or grokfast.optim.Lion, filter and update are one pass: on
    CPU fp32 tensors, and on NVIDIA GPUs, fp32, bf16 or fp16, one launch for all tensors of a dtype. Around any other
    optimizer the filter is.

    Raises TypeError for an `optimizer` or `filter` of another type, and for sparse gradients; ValueError for options
    that exclude each other.
    """

    optimizer: torch.optim.Optimizer
    filter: Filter
    filter_state: dict[Tensor, dict[str, Any]]
    start_step: int
    start_when: Callable[[int], bool] | None
    write_grad: bool
    _is_capturable: bool
    _is_blank: bool  # filter_state was made for a checkpoint to fill; no gradient has been seen
    _passes: Passes

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        filter: Filter = EMA(),
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
        if not isinstance(filter, (EMA, MA)):
            raise TypeError(f"filter must be grokfast.EMA(...) or grokfast.MA(...), got {filter!r}")
        if start_when is not None and not callable(start_when):
            raise TypeError(f"start_when must be callable or None, got {start_when!r}")
        checks.boolean("capturable", capturable)
        for group in optimizer.param_groups:
            if capturable and group.get("capturable") is False:
                raise ValueError(f"capturable=True needs {type(optimizer).__name__}(..., capturable=True), too")
            check_group(group, capturable=capturable or bool(group.get("capturable")))
            if (capturable or group.get("capturable")) and (start_step or start_when is not None):
                raise ValueError(
                    f"start_step={start_step!r} and start_when={start_when!r} count steps on the host, which a "
                    "captured step does without: make grokfast_enabled a 0-dim tensor on the device"
                )
        # Not Optimizer.__init__: it would make groups and state of its own. __setstate__ makes the hooks.
        self.__setstate__(
            {
                "optimizer": optimizer,
                "filter": filter,
                "filter_state": {},
                "start_step": checks.integer("start_step", start_step, minimum=0),
                "start_when": start_when,
                "write_grad": checks.boolean("write_grad", write_grad),
                "_is_capturable": capturable,
                "_is_blank": False,
            }
        )
        self._note_start()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "_passes": Passes()})

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
        check_group(param_group, capturable=self.capturable)
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
            if self.write_grad or not fused.step(
                self.optimizer, self._settings(), self.filter_state, self._passes, capturable=self.capturable
            ):
                self._filter_then_step()
        self._count_step()
        return loss

    def _inner_step(self, *closure: Callable[[], Any]) -> Any:
        """The inner step, without the hooks on every optimizer's step, which see the wrapper's."""
        inner, step = self.optimizer, type(self.optimizer).step
        if fused.inner_step_is_watched(inner) or not getattr(step, "hooked", False):
            return inner.step(*closure)
        return step.__wrapped__(inner, *closure)  # type: ignore[attr-defined]

    def _settings(self) -> list[Setting]:
        return [setting_of(group, self.filter) for group in self.param_groups]

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
            for p in params:
                assert p.grad is not None
                count_on = p.device if self.capturable else None
                self.filter_state[p] = init_state(self.filter, p.grad, count_on=count_on)
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

    def _filtered(self, *, to_keep: bool) -> list[tuple[Tensor, Tensor]]:
        """Parameters and their filtered gradients, the histories advanced; everything is checked first.

        Unless `to_keep`, they are good until the next step only.
        """
        self._params_with_grad()
        settings, capturable = self._settings(), self.capturable
        for group, setting in zip(self.param_groups, settings):
            for p in group["params"] if setting.filter is None else ():
                self.filter_state.pop(p, None)
        work = fused.work_of(self.optimizer, settings)
        grads = None
        if not to_keep:
            grads = fused.filtered(self.optimizer, settings, self.filter_state, self._passes, capturable=capturable)
        if grads is None:
            grads = []
            for w in work:
                assert w.param.grad is not None
                if isinstance(w.filter, MA) and w.filter.ring == "host" and is_capturing(w.param.device):
                    raise RuntimeError('ring="host" can be captured only where kernels run: see `grokfast doctor`')
                history, tensors = self.filter_state.setdefault(w.param, {}), settings[w.row].tensors
                grads.append(filter_gradient(w.filter, w.param.grad, history, tensors=tensors, capturable=capturable))
        return [(w.param, grad) for w, grad in zip(work, grads)]

    def _filter_then_step(self) -> None:
        filtered = self._filtered(to_keep=self.write_grad)
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
        for p, grad in self._filtered(to_keep=True):
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
            ours = {key: value for key, value in entry.items() if key in ALL_KEYS}
            rest = {key: value for key, value in entry.items() if key not in ALL_KEYS}
            if rest:
                inner[index] = rest
            if ours and index in param_of:
                p = param_of[index]
                require_state(f"state_dict['state'][{index}]", ours, self.filter, p.shape)
                filter_state[p] = ours
        self.optimizer.load_state_dict({**state_dict, "state": inner})
        self.filter_state = {p: _placed(ours, self.filter, p, self.capturable) for p, ours in filter_state.items()}
        self._note_start()
        self._is_blank = not any(t.any() for history in filter_state.values() for t in history.values())
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def __getstate__(self) -> dict[str, Any]:
        names = ("optimizer", "filter", "filter_state", "start_step", "start_when", "write_grad")
        return {name: vars(self)[name] for name in (*names, "_is_capturable", "_is_blank")}

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


def _all_params(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _is_to_make_state(optimizer: torch.optim.Optimizer) -> bool:
    """Whether every lr and every gradient is zero."""
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return False
    for group in optimizer.param_groups:
        lr = group.get("lr", 0)
        if (isinstance(lr, Tensor) and not lr.is_cpu) or lr != 0:
            return False
    grads = [p.grad for p in _all_params(optimizer) if p.grad is not None]
    return not any(grad.layout is not torch.strided or grad.count_nonzero() for grad in grads)


def _placed(history: dict[str, Tensor], filter: Filter, p: Tensor, capturable: bool) -> dict[str, Tensor]:
    """A copy of a loaded history as the filter keeps it: in at least fp32, in the order of `p`'s memory."""
    placed, dtype = {}, torch.promote_types(p.dtype, torch.float32)
    for key, value in history.items():
        if key == COUNT_KEY:
            if capturable or isinstance(filter, MA):
                placed[key] = value.detach().to(p.device if capturable else "cpu", copy=True)
        elif is_sharded(p) or is_sharded(value):
            placed[key] = value.detach().to(p.device, dtype, copy=True)
        elif key == RING_KEY and isinstance(filter, MA):
            placed[key] = new_ring(filter, p.detach(), dtype).copy_(value)
        else:
            placed[key] = torch.empty_like(p.detach(), dtype=dtype).copy_(value)
    return placed


def _evaluates_closure_itself(optimizer: torch.optim.Optimizer) -> bool:
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty
