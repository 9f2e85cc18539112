"""Filter and optimizer for E models at once, over flat [E, P] parameters, each model with its own hyper-parameters."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from grokfast import backend
from grokfast.optim.capturable import filtered
from grokfast.optim.device import Launch, Uploads, dtypes
from grokfast.optim.history import COUNT_KEY, EMA_KEY, RING_KEY, SUM_KEY
from grokfast.optim.slots import ADAM, FILTERS, LION, SGD
from grokfast.training.clock import Clock, model_row, sum_partials
from grokfast.transforms.base import Transform
from grokfast.transforms.filters import EMA, MA
from grokfast.transforms.optimizers import Optimizer

RULES = {"adamw": ADAM, "adam": ADAM, "sgd": SGD, "lion": LION}


class FlatOptimizer:
    """AdamW, Adam, SGD or Lion, with or without a filter; algorithm, filter kind, window and ring are common to all.

    `state` maps a name to a tensor whose first axis is the model: exp_avg and exp_avg_sq or momentum_buffer [E, P],
    ema [E, P], or ring [E, window, P] and sum [E, P]. `steps` counts the steps of all models.
    A step is one pass over memory on CPU fp32 with the extension; otherwise the clock's tick and then one launch on a
    GPU, or plain PyTorch on any device and in any precision: these two read nothing from the host.

    Raises ValueError unless there is a configuration and a filter for each of the E models of flat [E, P].
    """

    def __init__(self, flat: Tensor, configs: Sequence[Optimizer], filters: Sequence[Any]) -> None:
        for name, given in (("configs", configs), ("filters", filters)):
            if len(given) != len(flat):
                raise ValueError(f"{name} must be one per model, {len(flat)}, got {len(given)}")
        self.configs, self.filters = list(configs), list(filters)
        self.steps = 0
        self.state: dict[str, Tensor] = {}
        config, filter = self.configs[0], self.filters[0]
        names = state_names(config, filter)
        if isinstance(filter, MA):
            self.state["ring"] = _new_ring(flat, filter)
        self.state |= {name: torch.zeros_like(flat) for name in names if name != "ring"}
        self._rates: list[float] = []
        self._hyper = array("d")
        self._is_warm = False  # rates and rows are those of every further step
        self.is_torn = False  # an update was begun, and not ended
        self.clock = Clock(self.configs, self.filters, flat.device)
        self._launches: dict[object, Launch] = {}
        self._uploads = Uploads()
        self._overrides = torch.zeros(len(flat), 4, dtype=torch.int64, device=flat.device)
        self._unwatched = flat.new_zeros(len(flat)), torch.zeros_like(self.clock.steps)

    def keep(self, models: Tensor) -> None:
        """Go on with these models only."""
        state = {}
        for name, tensor in self.state.items():
            kept = tensor[models.to(tensor.device)]
            state[name] = kept.pin_memory() if tensor.is_pinned() else kept
        self.state = state
        self.configs = [self.configs[i] for i in models.tolist()]
        self.filters = [self.filters[i] for i in models.tolist()]
        self._is_warm = False
        self.clock = Clock(self.configs, self.filters, models.device)
        self._launches.clear()
        self._overrides = self._overrides[: len(models)].clone()
        self._unwatched = self._unwatched[0][: len(models)], torch.zeros_like(self.clock.steps)

    def step(self, flat: Tensor, grad: Tensor, loss: Tensor | None = None, diverged_at: Tensor | None = None) -> None:
        """One step of every model: flat and grad [E, P], or grad [S, E, P], partial gradients, of which the first is
        overwritten by their sum.

        diverged_at, int64 [E] with -1 for "not yet", is given the number of the step (from 0) of each model whose loss
        [E] or gradient is not finite.
        """
        is_launched = flat.dtype in dtypes(flat.device)
        if not is_launched and backend.extension() is not None and flat.is_cpu and flat.dtype is torch.float32:
            grad = sum_partials(grad)
            if loss is not None and diverged_at is not None:
                finite = torch.isfinite(loss + grad.sum(1))
                diverged_at.copy_(torch.where((diverged_at < 0) & ~finite, self.steps, diverged_at))
            self._one_pass(flat, grad)
            return
        if self.clock.at != self.steps:
            self.clock.seek(self.steps)
        if loss is None or diverged_at is None:
            loss, diverged_at = self._unwatched
        grad = self.clock.tick(grad, loss, diverged_at)
        self.is_torn = True
        if is_launched:
            self._launch(flat, grad)
        else:
            self._reference(flat, grad)
        self.is_torn = False
        self.steps += 1

    def set_host(self, steps: int) -> None:
        """So many steps have been taken on the device, whatever was counted here while a graph was made of them."""
        self.steps = self.clock.at = steps
        self.is_torn = False

    def _set_rates(self) -> None:
        """The learning rates of this step, and the models' rows of csrc/update_rules.h's `Hyper`."""
        t = self.steps - 1
        self._rates = [c.lr * (min(1.0, t / c.warmup) if c.warmup else 1.0) for c in self.configs]
        self._hyper = array("d")
        for config, own, rate in zip(self.configs, self.filters, self._rates):
            self._hyper.extend(model_row(config, own, rate))

    def _one_pass(self, flat: Tensor, grad: Tensor) -> None:
        self.steps += 1
        if self.steps == 1 and "ema" in self.state:
            self.state["ema"].copy_(grad)
        is_warm = self.steps > max(c.warmup for c in self.configs)
        if not (is_warm and self._is_warm):
            self._set_rates()
        self._is_warm = is_warm
        is_first = self.steps == 1 and "momentum_buffer" in self.state
        entries = self._entries(flat, grad, [0] * len(flat), [0] * len(flat), is_first)
        module, threads, kind = backend.load_extension(), torch.get_num_threads(), self._kind()
        ring = int(kind == 2 and self.state["ring"].dtype is torch.bfloat16)
        rule = RULES[self.configs[0].rule]
        module.update(rule, kind, entries, self._hyper, self.steps, threads, ring_type=ring)

    def _launch(self, flat: Tensor, grad: Tensor) -> None:
        clock = self.clock
        key = tuple(t.data_ptr() for t in (flat, grad, *self.state.values())), backend.current()
        launch = self._launches.get(key)
        if launch is None:
            steps, counts = ([t.data_ptr() for t in counter] for counter in (clock.adam_steps, clock.counts))
            entries = self._entries(flat, grad, steps, counts, is_first=False)
            filter, ring = self.filters[0], self.state.get("ring", flat).dtype
            window = filter.window_size if isinstance(filter, MA) else 1
            launch = Launch(
                RULES[self.configs[0].rule], self._kind(), entries, window,
                torch.bfloat16 if ring is torch.bfloat16 else torch.float32, flat.dtype, flat.device, self._uploads,
            )  # fmt: skip
            if len(self._launches) >= 4:  # gradients alternate between a few places
                self._launches.pop(next(iter(self._launches)))
            self._launches[key] = launch
        launch(clock.hyper, self._overrides)

    def _kind(self) -> int:
        return 0 if self.filters[0] is None else FILTERS[type(self.filters[0])]

    def _entries(
        self, flat: Tensor, grad: Tensor, steps: Sequence[int], counts: Sequence[int], is_first: bool
    ) -> array[int]:
        """A row of csrc/grokfast.h's UpdateEntry for every model; `steps` and `counts` are addresses or 0."""
        state, entries = self.state, array("q")
        slots = [state.get("momentum_buffer", state.get("exp_avg")), state.get("exp_avg_sq")]
        slots += [state.get("ring", state.get("ema")), state.get("sum")]
        for e in range(len(flat)):
            one, two, past, total = (0 if t is None else t[e].data_ptr() for t in slots)
            entries.extend(
                (flat.shape[1], flat[e].data_ptr(), grad[e].data_ptr(), one, two, steps[e], past, total, counts[e],
                 is_first, e)
            )  # fmt: skip
        return entries

    def _reference(self, flat: Tensor, grad: Tensor) -> None:
        """The same in plain PyTorch, as torch.optim and Lee et al. (2024) write it."""
        name, clock = self.configs[0].rule, self.clock
        lr, beta1, beta2, eps, decay, _, momentum = (clock.column(i) for i in range(7))  # fp64 [E, 1] each
        grad = self._filtered(grad)
        if name in ("adamw", "lion"):
            flat.mul_((1 - lr * decay).to(flat))
        else:
            grad = grad + decay.to(flat) * flat
        if name == "sgd":
            if "momentum_buffer" in self.state:
                momentum = momentum.to(flat)
                buffer = self.state["momentum_buffer"].mul_(momentum).add_(grad)
                grad = grad + momentum * buffer if self.configs[0].hyper["nesterov"] else buffer
            flat.sub_(lr.to(flat) * grad)
            return
        exp_avg, weights = self.state["exp_avg"], [(1 - beta).to(flat).expand_as(grad) for beta in (beta1, beta2)]
        if name == "lion":
            flat.sub_(lr.to(flat) * exp_avg.lerp(grad, weights[0]).sign())
            exp_avg.lerp_(grad, weights[1])
            return
        exp_avg_sq, t = self.state["exp_avg_sq"], clock.steps[:, None]  # the tick has counted this step
        exp_avg.lerp_(grad, weights[0])
        exp_avg_sq.mul_(beta2.to(flat)).add_(grad.square() * weights[1])
        root = exp_avg_sq.sqrt() / (1 - beta2**t).sqrt().to(flat)
        flat.sub_((lr / (1 - beta1**t)).to(flat) * exp_avg / (root + eps.to(flat)))

    def _filtered(self, grad: Tensor) -> Tensor:
        filter, clock = self.filters[0], self.clock
        if filter is None:
            return grad
        keys = {EMA_KEY: "ema", RING_KEY: "ring", SUM_KEY: "sum"}
        state = {key: self.state[name] for key, name in keys.items() if name in self.state}
        tensors = {"alpha": clock.column(10), "lamb": clock.column(11)}
        return filtered(filter, grad, {**state, COUNT_KEY: clock.counts[:, None]}, tensors)


def state_names(config: Optimizer, filter: Transform | None) -> list[str]:
    """What the optimizer and the filter keep of a model; all are as large as the parameters but for "ring"."""
    names = config.moments
    if isinstance(filter, EMA):
        return [*names, "ema"]
    return [*names, "ring", "sum"] if isinstance(filter, MA) else names


def _new_ring(flat: Tensor, filter: MA) -> Tensor:
    """Zeros [E, window, P], as `filter.ring` says."""
    shape, on_host = (len(flat), filter.window_size, flat.shape[1]), filter.ring == "host" and flat.is_cuda
    place = {"device": "cpu", "pin_memory": True} if on_host else {"device": flat.device}
    return torch.zeros(shape, dtype=torch.bfloat16 if filter.ring == "bfloat16" else flat.dtype, **place)
