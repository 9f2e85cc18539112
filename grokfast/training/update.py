"""Filter and optimizer for E models at once, over flat [E, P] parameters, each model with its own hyper-parameters."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from grokfast import backend
from grokfast.filters import EMA, MA, Filter
from grokfast.optim.fused import FILTERS, hyper_row
from grokfast.optim.reference import RESUM_WINDOWS
from grokfast.training.experiment import OptimizerConfig


class FlatOptimizer:
    """AdamW, Adam or SGD, with or without a filter; algorithm, filter kind and window are common to all models.

    `state` maps a name to a tensor whose first axis is the model: exp_avg and exp_avg_sq or momentum_buffer [E, P],
    ema [E, P], or ring [E, window, P] and sum [E, P]. `steps` counts the steps of all models.
    On CPU fp32 with the extension a step is one pass over memory, otherwise plain PyTorch, any device and precision.
    """

    def __init__(self, flat: Tensor, configs: Sequence[OptimizerConfig], filters: Sequence[Filter | None]) -> None:
        self.configs, self.filters = list(configs), list(filters)
        self.steps = 0
        self.state: dict[str, Tensor] = {}
        config, filter = self.configs[0], self.filters[0]
        names = ["exp_avg", "exp_avg_sq"] if config.name != "sgd" else []
        if config.name == "sgd" and config.momentum:
            names.append("momentum_buffer")
        if isinstance(filter, EMA):
            names.append("ema")
        elif isinstance(filter, MA):
            self.state["ring"] = flat.new_zeros(len(flat), filter.window_size, flat.shape[1])
            names.append("sum")
        self.state |= {name: torch.zeros_like(flat) for name in names}

    def keep(self, models: Tensor) -> None:
        """Go on with these models only."""
        self.state = {name: tensor[models] for name, tensor in self.state.items()}
        self.configs = [self.configs[i] for i in models.tolist()]
        self.filters = [self.filters[i] for i in models.tolist()]

    def step(self, flat: Tensor, grad: Tensor) -> None:
        """One step of every model: flat and grad [E, P]."""
        self.steps += 1
        if self.steps == 1 and "ema" in self.state:
            self.state["ema"].copy_(grad)
        rates = [c.lr * (min(1.0, (self.steps - 1) / c.warmup) if c.warmup else 1.0) for c in self.configs]
        if backend.extension() is not None and flat.is_cpu and flat.dtype is torch.float32:
            self._one_pass(flat, grad, rates)
        else:
            self._reference(flat, grad, rates)

    def _one_pass(self, flat: Tensor, grad: Tensor, rates: Sequence[float]) -> None:
        state, filter = self.state, self.filters[0]
        hyper = array("d")
        for config, own, rate in zip(self.configs, self.filters, rates):
            hyper.extend(
                hyper_row(
                    own, lr=rate, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay,
                    decoupled=config.name == "adamw", momentum=config.momentum, nesterov=config.nesterov,
                )
            )  # fmt: skip
        is_sgd = self.configs[0].name == "sgd"
        first = int(is_sgd and self.steps == 1 and "momentum_buffer" in state)
        slots = [state.get("momentum_buffer" if is_sgd else "exp_avg"), state.get("exp_avg_sq")]
        slots += [state.get("ring", state.get("ema")), state.get("sum")]
        entries = array("q")
        for e in range(len(flat)):
            one, two, past, total = (0 if t is None else t[e].data_ptr() for t in slots)
            entries.extend(
                (flat.shape[1], flat[e].data_ptr(), grad[e].data_ptr(), one, two, 0, past, total, 0, first, e)
            )
        kind = 0 if filter is None else FILTERS[type(filter)]
        backend.load_extension().update(int(is_sgd), kind, entries, hyper, self.steps, torch.get_num_threads())

    def _reference(self, flat: Tensor, grad: Tensor, rates: Sequence[float]) -> None:
        """The same in plain PyTorch, as torch.optim and Lee et al. (2024) write it."""
        configs, t = self.configs, self.steps

        def column(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64).to(flat)[:, None]

        grad = self._filtered(grad, column)
        decay = column([c.weight_decay for c in configs])
        if configs[0].name == "adamw":
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
        total.sub_(oldest).add_(grad)
        oldest.copy_(grad)
        size = -(-total.shape[1] // (RESUM_WINDOWS * window))
        turn = slice(pushed % (RESUM_WINDOWS * window) * size, (pushed % (RESUM_WINDOWS * window) + 1) * size)
        total[:, turn] = ring[:, :, turn].sum(1)
        seen = min(self.steps, window)
        if filter.warmup and seen < window:
            return grad
        return grad + column([v / seen for v in lamb] if filter.filter_type == "mean" else lamb) * total
