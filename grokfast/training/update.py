"""Filter and optimizer for E models at once, over flat [E, P] parameters, each model with its own hyper-parameters."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from grokfast import backend
from grokfast.filters import EMA, MA, Filter
from grokfast.optim.device import Launch, Rows, Uploads, dtypes
from grokfast.optim.history import RESUM_WINDOWS
from grokfast.optim.slots import ADAM, FILTERS, LION, SGD, hyper_row
from grokfast.training.experiment import OptimizerConfig

RULES = {"adamw": ADAM, "adam": ADAM, "sgd": SGD, "lion": LION}


class FlatOptimizer:
    """AdamW, Adam, SGD or Lion, with or without a filter; algorithm, filter kind, window and ring are common to all.

    `state` maps a name to a tensor whose first axis is the model: exp_avg and exp_avg_sq or momentum_buffer [E, P],
    ema [E, P], or ring [E, window, P] and sum [E, P]. `steps` counts the steps of all models.
    A step is one pass over memory on CPU fp32 with the extension, one launch on a GPU, and otherwise plain PyTorch, any
    device and precision.
    """

    def __init__(self, flat: Tensor, configs: Sequence[OptimizerConfig], filters: Sequence[Filter | None]) -> None:
        self.configs, self.filters = list(configs), list(filters)
        self.steps = 0
        self.state: dict[str, Tensor] = {}
        config, filter = self.configs[0], self.filters[0]
        names = {"adamw": ["exp_avg", "exp_avg_sq"], "adam": ["exp_avg", "exp_avg_sq"], "lion": ["exp_avg"]}.get(
            config.name, ["momentum_buffer"] if config.momentum else []
        )
        if isinstance(filter, EMA):
            names = [*names, "ema"]
        elif isinstance(filter, MA):
            self.state["ring"] = _new_ring(flat, filter)
            names = [*names, "sum"]
        self.state |= {name: torch.zeros_like(flat) for name in names}
        self._rates: list[float] = []
        self._hyper = array("d")
        self._is_warm = False  # rates and rows are those of every further step
        self._on_device = _OnDevice(flat.device)

    def keep(self, models: Tensor) -> None:
        """Go on with these models only."""
        for name, tensor in self.state.items():
            kept = tensor[models.to(tensor.device)]
            self.state[name] = kept.pin_memory() if tensor.is_pinned() else kept
        self._is_warm = False
        self.configs = [self.configs[i] for i in models.tolist()]
        self.filters = [self.filters[i] for i in models.tolist()]

    def step(self, flat: Tensor, grad: Tensor) -> None:
        """One step of every model: flat and grad [E, P]."""
        self.steps += 1
        if self.steps == 1 and "ema" in self.state:
            self.state["ema"].copy_(grad)
        is_warm = self.steps > max(c.warmup for c in self.configs)
        if not (is_warm and self._is_warm):
            self._set_rates()
        self._is_warm = is_warm
        if flat.dtype in dtypes(flat.device):
            self._launch(flat, grad)
        elif backend.extension() is not None and flat.is_cpu and flat.dtype is torch.float32:
            self._one_pass(flat, grad)
        else:
            self._reference(flat, grad, self._rates)

    def _set_rates(self) -> None:
        """The learning rates of this step, and the models' rows of csrc/update_rules.h's `Hyper`."""
        t = self.steps - 1
        self._rates = [c.lr * (min(1.0, t / c.warmup) if c.warmup else 1.0) for c in self.configs]
        self._hyper = array("d")
        for config, own, rate in zip(self.configs, self.filters, self._rates):
            self._hyper.extend(
                hyper_row(
                    own, lr=rate, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay,
                    decoupled=config.name == "adamw", momentum=config.momentum, nesterov=config.nesterov,
                )
            )  # fmt: skip

    def _one_pass(self, flat: Tensor, grad: Tensor) -> None:
        is_first = self.steps == 1 and "momentum_buffer" in self.state
        entries = self._entries(flat, grad, [0] * len(flat), [0] * len(flat), is_first)
        module, threads, kind = backend.load_extension(), torch.get_num_threads(), self._kind()
        ring = int(kind == 2 and self.state["ring"].dtype is torch.bfloat16)
        rule = RULES[self.configs[0].name]
        module.update(rule, kind, entries, self._hyper, self.steps, threads, ring_type=ring)

    def _launch(self, flat: Tensor, grad: Tensor) -> None:
        counted = self._on_device.counted(len(flat), self.steps - 1)
        key = tuple(t.data_ptr() for t in (flat, grad, *counted, *self.state.values())), backend.current()
        launch = self._on_device.launches.get(key)
        if launch is None:
            steps, counts = ([t.data_ptr() for t in counter] for counter in counted)
            entries = self._entries(flat, grad, steps, counts, is_first=False)
            filter, ring = self.filters[0], self.state.get("ring", flat).dtype
            window = filter.window_size if isinstance(filter, MA) else 1
            launch = Launch(
                RULES[self.configs[0].name], self._kind(), entries, window,
                torch.bfloat16 if ring is torch.bfloat16 else torch.float32, flat.dtype, flat.device,
                self._on_device.uploads,
            )  # fmt: skip
            self._on_device.remember(key, launch)
        launch(*self._on_device.rows.tables(self._hyper))
        self._on_device.steps = self.steps

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

    def _reference(self, flat: Tensor, grad: Tensor, rates: Sequence[float]) -> None:
        """The same in plain PyTorch, as torch.optim and Lee et al. (2024) write it."""
        configs, t = self.configs, self.steps

        def column(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64).to(flat)[:, None]

        grad = self._filtered(grad, column)
        decay = column([c.weight_decay for c in configs])
        if configs[0].name in ("adamw", "lion"):
            flat.mul_(column([1 - rate * c.weight_decay for rate, c in zip(rates, configs)]))
        else:
            grad = grad + decay * flat
        if configs[0].name == "sgd":
            if "momentum_buffer" in self.state:
                momentum, buffer = column([c.momentum for c in configs]), self.state["momentum_buffer"]
                buffer.copy_(grad if t == 1 else momentum * buffer + grad)
                grad = grad + momentum * buffer if configs[0].nesterov else buffer
            flat.sub_(column(rates) * grad)
            return
        if configs[0].name == "lion":
            exp_avg, weights = self.state["exp_avg"], [column([1 - c.betas[i] for c in configs]) for i in (0, 1)]
            flat.sub_(column(rates) * exp_avg.lerp(grad, weights[0].expand_as(grad)).sign())
            exp_avg.lerp_(grad, weights[1].expand_as(grad))
            return
        exp_avg, exp_avg_sq = self.state["exp_avg"], self.state["exp_avg_sq"]
        exp_avg.lerp_(grad, column([1 - c.betas[0] for c in configs]).expand_as(grad))
        exp_avg_sq.mul_(column([c.betas[1] for c in configs]))
        exp_avg_sq.add_(grad.square() * column([1 - c.betas[1] for c in configs]))
        root = exp_avg_sq.sqrt() / column([(1 - c.betas[1] ** t) ** 0.5 for c in configs])
        step_size = column([rate / (1 - c.betas[0] ** t) for rate, c in zip(rates, configs)])
        flat.sub_(step_size * exp_avg / (root + column([c.eps for c in configs])))

    def _filtered(self, grad: Tensor, column: Callable[[Sequence[float]], Tensor]) -> Tensor:
        filters, filter = self.filters, self.filters[0]
        if filter is None:
            return grad
        lamb = [f.lamb for f in filters if f is not None]
        if isinstance(filter, EMA):
            weight = column([1 - f.alpha for f in filters if isinstance(f, EMA)])
            return grad + column(lamb) * self.state["ema"].lerp_(grad, weight.expand_as(grad))
        ring, total, window = self.state["ring"], self.state["sum"], filter.window_size
        pushed = self.steps - 1
        oldest = ring[:, pushed % window]
        total.sub_(oldest.to(total.device))
        oldest.copy_(grad)
        total.add_(oldest.to(total))  # the sum is that of the ring
        size = -(-total.shape[1] // (RESUM_WINDOWS * window))
        turn = slice(pushed % (RESUM_WINDOWS * window) * size, (pushed % (RESUM_WINDOWS * window) + 1) * size)
        total[:, turn] = ring[:, :, turn].to(total).sum(1)
        seen = min(self.steps, window)
        if filter.warmup and seen < window:
            return grad
        return grad + column([v / seen for v in lamb] if filter.filter_type == "mean" else lamb) * total


class _OnDevice:
    """What a launch reads beside the models' tensors: counters, hyper-parameters, and the tables themselves."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.uploads = device, Uploads()
        self.rows = Rows(device, self.uploads)
        self.launches: dict[object, Launch] = {}
        self.steps, self._counters = -1, (torch.empty(0), torch.empty(0))

    def counted(self, models: int, steps: int) -> tuple[Tensor, Tensor]:
        """Adam's steps, fp32 [E], and the gradients in the windows, int64 [E], after `steps` steps."""
        if (self.steps, len(self._counters[0])) != (steps, models):
            dtypes = torch.float32, torch.int64
            self._counters = tuple(torch.full((models,), steps, dtype=d, device=self.device) for d in dtypes)  # type: ignore[assignment]
        return self._counters

    def remember(self, key: object, launch: Launch) -> None:
        if len(self.launches) >= 4:  # gradients alternate between a few places
            self.launches.pop(next(iter(self.launches)))
        self.launches[key] = launch


def _new_ring(flat: Tensor, filter: MA) -> Tensor:
    """Zeros [E, window, P], as `filter.ring` says."""
    shape, on_host = (len(flat), filter.window_size, flat.shape[1]), filter.ring == "host" and flat.is_cuda
    place = {"device": "cpu", "pin_memory": True} if on_host else {"device": flat.device}
    return torch.zeros(shape, dtype=torch.bfloat16 if filter.ring == "bfloat16" else flat.dtype, **place)
