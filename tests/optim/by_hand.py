"""The filter written out by hand around torch's optimizers, and what the tests of the wrapper share."""

import functools
from collections import deque

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW

from grokfast import EMA, MA, GrokFast
from grokfast.optim.history import history_of, is_key

SIZES = {1: 300, 63: 10, 1000: 1, 16385: 1, 300001: 1}  # how many of each: on one number torch may be exact by luck
ODD_SHAPES = [(size,) for size, count in SIZES.items() for _ in range(count)]
PRECISIONS = (torch.float32, torch.float32, torch.float64)  # ours, torch's own, the exact one
FILTERS = [EMA(), EMA(0.5, -0.3), MA(3), MA(2, 0.5, "sum", warmup=False)]
BIG_AND_SMALL = [(7, 3), (33,), (), (0, 4), (1, 1)]


def gradient(shape, step, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(step)).to(dtype)


def start(shapes, dtype=torch.float32):
    g = torch.Generator().manual_seed(1234)
    return [nn.Parameter(torch.randn(shape, generator=g).to(dtype)) for shape in shapes]


def steps(opt, params, n=6, first=0, grad=gradient):
    for step in range(first, first + n):
        for i, p in enumerate(params):
            p.grad = grad(p.shape, 1000 * i + step).to(p.dtype)
        opt.step()


class ByHand:
    """The filter written out, then the inner optimizer's own step: what GrokFast has to equal."""

    def __init__(self, optimizer, filter):
        self.optimizer, self.filter, self.past = optimizer, filter, {}

    def filtered(self, p):
        f, g = self.filter, p.grad
        if isinstance(f, EMA):
            ema = self.past[p] = f.alpha * self.past.get(p, g) + (1 - f.alpha) * g
            return g + f.lamb * ema
        window = self.past.setdefault(p, deque(maxlen=f.window_size))
        window.append(g.clone())
        if f.warmup and len(window) < f.window_size:
            return g
        return g + f.lamb * sum(window) / (len(window) if f.filter_type == "mean" else 1)

    def step(self):
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad = self.filtered(p)
        self.optimizer.step()


def tensors(opt, p):
    own = {name: t for name, t in sorted(opt.state[p].items()) if not is_key(name)}
    return {name: t for name, t in own.items() if isinstance(t, torch.Tensor)}


def histories(opt):
    """The filter's part of `opt.state`, by parameter."""
    found = {p: history_of(opt.state.get(p)) for group in opt.param_groups for p in group["params"]}
    return {p: history for p, history in found.items() if history}


def everything(opt, p):
    """Parameter, optimizer state and history by name; a ring's rows sorted, their order is nobody's business."""
    found = {"param": p.detach(), **tensors(opt.optimizer, p)}
    if isinstance(opt, GrokFast):
        found |= {name: t for name, t in history_of(opt.state.get(p)).items() if name != "grokfast_count"}
    elif isinstance(opt.filter, EMA):
        found["grokfast_ema"] = opt.past[p]
    else:
        found |= {"grokfast_ring": torch.stack([*opt.past[p]]), "grokfast_sum": sum(opt.past[p])}
    return found | {name: t.sort(0).values for name, t in found.items() if name == "grokfast_ring"}


def bits(opt):
    """Everything that a step may change."""
    params = [p for group in opt.param_groups for p in group["params"]]
    state = opt.state_dict()["state"]
    return [p.detach().clone() for p in params] + [
        value.clone() for index in sorted(state) for _, value in sorted(state[index].items()) if value is not None
    ]


def same(first, second):
    return len(first) == len(second) and all(map(torch.equal, first, second))


INNER = {
    "AdamW": functools.partial(AdamW, lr=1e-2, weight_decay=0.5),
    "AdamW, maximize": functools.partial(AdamW, lr=1e-2, weight_decay=0.5, maximize=True),
    "AdamW, betas and eps": functools.partial(AdamW, lr=1e-2, betas=(0.5, 0.98), eps=1e-3),
    "AdamW, fused": functools.partial(AdamW, lr=1e-2, fused=True),
    "AdamW, foreach": functools.partial(AdamW, lr=1e-2, foreach=True),
    "AdamW, lr as tensor": functools.partial(AdamW, lr=torch.tensor(1e-2), weight_decay=0.5, foreach=False),
    "Adam": functools.partial(Adam, lr=1e-2),
    "Adam, weight decay": functools.partial(Adam, lr=1e-2, weight_decay=0.5, maximize=True),
    "Adam, decoupled weight decay": functools.partial(Adam, lr=1e-2, weight_decay=0.5, decoupled_weight_decay=True),
    "SGD": functools.partial(SGD, lr=0.1),
    "SGD, weight decay, maximize": functools.partial(SGD, lr=0.1, weight_decay=0.5, maximize=True),
    "SGD, momentum": functools.partial(SGD, lr=0.1, momentum=0.9, weight_decay=0.5),
    "SGD, dampening": functools.partial(SGD, lr=0.1, momentum=0.9, dampening=0.3, maximize=True),
    "SGD, nesterov": functools.partial(SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.5),
}
