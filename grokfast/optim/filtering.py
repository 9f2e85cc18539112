"""The gradients of an optimizer's parameters as its filters change them: in one pass, or tensor after tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from grokfast.optim import fused
from grokfast.optim.history import is_dense, require_dense, settle
from grokfast.optim.inner import theirs
from grokfast.optim.passes import Passes
from grokfast.optim.reference import filter_gradient
from grokfast.optim.saved import drop_history
from grokfast.optim.settings import Setting
from grokfast.optim.slots import Work
from grokfast.optim.tensors import Tensors
from grokfast.transforms.base import Transform
from grokfast.transforms.launch import is_capturing


class Filtering:
    """One for each optimizer; not copied or saved with it."""

    def __init__(self) -> None:
        self.passes, self.tensors = Passes(), Tensors()

    def before(
        self, optimizer: torch.optim.Optimizer, settings: Sequence[Setting], *, capturable: bool
    ) -> list[tuple[Tensor, Tensor]]:
        """Parameters and their filtered gradients, the histories advanced; everything is checked first."""
        states = optimizer.state
        for group, setting in zip(optimizer.param_groups, settings):
            for p in group["params"]:
                if setting.filter is None or (setting.is_idle and p.grad is not None and not is_dense(p.grad)):
                    drop_history(states, p)
        work = [w for w in fused.work_of(optimizer, settings) if not settings[w.row].is_idle or is_dense(w.param.grad)]
        for w in work:
            require_dense(w.param.grad)
        grads = None
        if not theirs(optimizer).get("differentiable"):
            grads = fused.filtered(optimizer, settings, self.passes, capturable=capturable)
        if grads is None:
            settle(((w.filter, w.param) for w in work), states, capturable=capturable)
            names = fused.all_names(optimizer)
            grads = [self._before(optimizer, w, settings[w.row], names, capturable=capturable) for w in work]
        return [(w.param, grad) for w, grad in zip(work, grads) if not settings[w.row].is_idle]

    def _before(
        self, optimizer: torch.optim.Optimizer, w: Work, setting: Setting, names: tuple[str, ...], *, capturable: bool
    ) -> Tensor:
        assert w.param.grad is not None
        state: dict[str, Any] = optimizer.state.setdefault(w.param, {})
        own = w.filter.as_filter
        if own is None:
            return self.tensors.before(w, state, names, setting.off)
        if own.on_host and is_capturing(w.param.device):
            raise RuntimeError('ring="host" can be captured only where kernels run: see `grokfast doctor`')
        return filter_gradient(
            own, w.param.grad, state, tensors=setting.tensors, capturable=capturable,
            differentiable=bool(theirs(optimizer).get("differentiable")),
        )  # fmt: skip

    def after(self, optimizer: torch.optim.Optimizer, settings: Sequence[Setting]) -> None:
        """What transforms do to the weights, once the inner step is taken."""
        if all(setting.filter is None or setting.filter.as_filter for setting in settings):
            return
        work: dict[tuple[Transform, frozenset[int]], list[Work]] = {}
        for w in fused.work_of(optimizer, settings):
            if w.filter.as_filter is None:
                work.setdefault((w.filter, settings[w.row].off), []).append(w)
        for (_, off), own in work.items():
            self.tensors.after(own, optimizer.state, fused.all_names(optimizer), off)

    def observe(
        self,
        optimizer: torch.optim.Optimizer,
        settings: Sequence[Setting],
        train_loss: float | Tensor,
        test_loss: float | Tensor,
    ) -> None:
        """What transforms keep of an evaluation's losses, beside each of their parameters."""
        names = fused.all_names(optimizer)
        for row, (group, setting) in enumerate(zip(optimizer.param_groups, settings)):
            if setting.filter is None or setting.filter.as_filter:
                continue
            for p, name in zip(group["params"], fused.names_of(group)):
                work = Work(row, group, p, setting.filter, name)
                self.tensors.observe(work, optimizer.state.setdefault(p, {}), names, train_loss, test_loss)
