"""The one-pass update on raw pointers as tests call it: its tables, its engines, and torch.optim as the reference
(Lion: Chen et al. 2023) after the filters as Lee et al. (2024) define them."""

import math
from array import array
from collections import deque
from functools import cache

import pytest
import torch

STATE = ("state1", "state2", "step", "filter1", "filter2", "count")
COLUMNS = {
    "lr": 1e-2, "beta1": 0.9, "beta2": 0.98, "eps": 1e-8, "weight_decay": 0.1, "decoupled": 1, "momentum": 0,
    "dampening": 0, "nesterov": 0, "maximize": 0, "alpha": 0.0, "lamb": 2.0, "window_size": 1, "window_mean": 0,
    "warmup": 0, "enabled": 1,
}  # fmt: skip
ADAM, SGD, LION, NONE = range(4)
RULES = {
    "adamw": (ADAM, {}),
    "adam": (ADAM, {"decoupled": 0, "maximize": 1}),
    "sgd": (SGD, {"decoupled": 0}),
    "momentum": (SGD, {"decoupled": 0, "momentum": 0.9, "nesterov": 1, "maximize": 1}),
    "lion": (LION, {}),
    "lion-up": (LION, {"decoupled": 0, "maximize": 1}),
    "none": (NONE, {}),
}
FILTERS = {
    "plain": (0, 0, {}),
    "ema": (1, 0, {"alpha": 0.98}),
    "ma": (2, 0, {"window_size": 3, "window_mean": 1, "warmup": 1}),
    "sum": (2, 0, {"window_size": 3, "lamb": 0.5}),
    "bf16": (2, 1, {"window_size": 3, "window_mean": 1}),
}
CASES = [(rule, "ema") for rule in RULES] + [
    (rule, filter) for rule in ("adamw", "lion", "none") for filter in FILTERS if filter != "ema"
]
SIZES, STEPS, WINDOW = (1, 63, 1000, 4097, 300_000), 16, 3
VARIED = ({}, {"lr": 3e-3, "weight_decay": 0.0, "beta1": 0.5, "lamb": 0.7}, {"lr": 0.1, "beta2": 0.9, "eps": 1e-3})


def hyper_row(**changed):
    return {**COLUMNS, **changed}


class Tensors:
    """Tensors of one update, poisoned where nothing may be read; `offset` elements off alignment."""

    def __init__(self, rule, filter, ring_type, rows, params, *, offset=0, device="cpu"):
        self.kinds, self.rows, self.device = (rule, filter, ring_type), rows, device
        self.offset, self.first = offset, True
        self.params = [self.place(p) for p in params]
        self.state = []
        for i, p in enumerate(params):
            n, row, momentum = p.numel(), self.row_of(i), self.rows[self.row_of(i)]["momentum"]
            window = int(self.rows[row]["window_size"])
            nan = torch.full((n,), math.nan)
            ring = torch.full((window * n,), math.nan, dtype=torch.bfloat16 if ring_type else torch.float32)
            self.state.append({
                "state1": self.place(torch.zeros(n)) if rule in (ADAM, LION) or momentum else None,
                "state2": self.place(torch.zeros(n)) if rule == ADAM else None,
                "step": torch.zeros((), device=device),
                "filter1": self.place(ring if filter == 2 else nan) if filter else None,
                "filter2": self.place(nan) if filter == 2 else None,
                "count": torch.zeros((), dtype=torch.int64, device=device),
            })  # fmt: skip
        self.tickets = torch.zeros(len(params), dtype=torch.int32, device=device)
        self.grads = [self.place(torch.zeros_like(p)) for p in params]

    def row_of(self, i):
        return i % len(self.rows)

    def place(self, t):
        whole = torch.full((t.numel() + self.offset,), math.nan, dtype=t.dtype, device=self.device)
        whole[self.offset :] = t.to(self.device)
        return whole[self.offset :]

    def entries(self):
        table = array("q")
        for i, (p, g, state) in enumerate(zip(self.params, self.grads, self.state)):
            past = [0 if state[k] is None else state[k].data_ptr() for k in STATE]
            first = int(self.first and self.device == "cpu" and self.kinds[0] == SGD and state["state1"] is not None)
            table.extend([p.numel(), p.data_ptr(), g.data_ptr(), *past, first, self.row_of(i)])
        return table

    def hyper(self):
        return array("d", [float(v) for row in self.rows for v in row.values()])

    def give(self, grads):
        for own, g in zip(self.grads, grads):
            own.copy_(g)


def cpu(threads):
    def step(extension, t):
        rule, filter, ring_type = t.kinds
        extension.update(rule, filter, t.entries(), t.hyper(), 1, threads, ring_type)
        t.first = False

    return step


def emulated(large_tables):
    def step(extension, t, overrides=None):
        hyper = torch.tensor([list(row.values()) for row in t.rows], dtype=torch.float64)
        at = 0 if overrides is None else overrides.data_ptr()
        extension.update_like_cuda(*t.kinds, t.entries(), hyper.data_ptr(), at, t.tickets.data_ptr(), large_tables)

    return step


def gpu(extension, t, overrides=None):
    if not hasattr(t, "hyper_on_device"):  # kept, for a captured step goes on reading it
        t.hyper_on_device = torch.empty(len(t.rows), len(COLUMNS), dtype=torch.float64, device=t.device)
    if not torch.cuda.is_current_stream_capturing():
        t.hyper_on_device.copy_(torch.tensor([list(row.values()) for row in t.rows], dtype=torch.float64))
    extension.cuda_update(
        *t.kinds, t.entries(), t.hyper_on_device.data_ptr(), 0 if overrides is None else overrides.data_ptr(),
        t.tickets.data_ptr(), torch.cuda.current_device(), torch.cuda.current_stream().cuda_stream,
    )  # fmt: skip


ENGINES = {"cpu-1": cpu(1), "cpu-2": cpu(2), "emulated": emulated(False), "emulated-large": emulated(True), "gpu": gpu}


class Engine:
    def __init__(self, name, extension):
        self.name, self.extension = name, extension
        self.device = "cuda" if name == "gpu" else "cpu"

    def __call__(self, t, *args):
        ENGINES[self.name](self.extension, t, *args)


def engine_or_skip(name, extension):
    if name == "gpu" and not (extension.with_cuda and torch.cuda.is_available()):
        pytest.skip("needs a GPU, a CUDA build of torch and grokfast._C built with CUDA")
    return Engine(name, extension)


class Reference:
    """One tensor in plain PyTorch at any precision; the running sum is never summed anew."""

    def __init__(self, rule, filter, ring_type, row, param, dtype):
        self.rule, self.filter, self.ring_type, self.row = rule, filter, ring_type, row
        self.p = torch.nn.Parameter(param.to(dtype, copy=True))
        self.ema, self.window, self.sum = None, deque(), torch.zeros_like(self.p.detach())
        self.m = torch.zeros_like(self.sum)
        self.undecided = torch.zeros_like(self.sum, dtype=torch.bool)
        common = {"lr": row["lr"], "weight_decay": row["weight_decay"], "maximize": bool(row["maximize"])}
        if rule == ADAM:
            kind = torch.optim.AdamW if row["decoupled"] else torch.optim.Adam
            betas = (row["beta1"], row["beta2"])
            self.optimizer = kind([self.p], **common, betas=betas, eps=row["eps"], foreach=False)
        elif rule == SGD:
            momentum = {"momentum": row["momentum"], "nesterov": bool(row["nesterov"]), "dampening": row["dampening"]}
            self.optimizer = torch.optim.SGD([self.p], **common, **momentum, foreach=False)

    def filtered(self, g):
        row = self.row
        if self.filter == 0 or not row["enabled"]:
            self.ema, self.window, self.sum = None, deque(), torch.zeros_like(self.sum)
            return g
        if self.filter == 1:
            self.ema = g.clone() if self.ema is None else self.ema.lerp(g, 1 - row["alpha"])
            return g + row["lamb"] * self.ema
        kept = g.bfloat16().to(g.dtype) if self.ring_type else g
        full = len(self.window) == row["window_size"]
        self.sum = self.sum - (self.window.popleft() if full else 0) + kept
        self.window.append(kept)
        if row["warmup"] and len(self.window) < row["window_size"]:
            return g
        return g + row["lamb"] / (len(self.window) if row["window_mean"] else 1) * self.sum

    @torch.no_grad()
    def step(self, grad):
        row, g = self.row, self.filtered(grad.to(self.p.dtype))
        if self.rule == NONE:
            self.p.copy_(g)
        elif self.rule == LION:
            g = -g if row["maximize"] else g
            u = row["beta1"] * self.m + (1 - row["beta1"]) * g
            self.undecided |= u.abs() < 1e-5  # rounding may turn these either way
            self.p.mul_(1 - row["lr"] * row["weight_decay"]).sub_(row["lr"] * u.sign())
            self.m.lerp_(g, 1 - row["beta2"])
        else:
            self.p.grad = g
            self.optimizer.step()

    def results(self):
        out = {"param": self.p.detach(), "filter1": self.ema, "filter2": self.sum}
        if self.rule == LION:
            out["state1"] = self.m
        elif self.rule != NONE:
            own = self.optimizer.state[self.p]
            out |= {"state1": own.get("exp_avg", own.get("momentum_buffer")), "state2": own.get("exp_avg_sq")}
        return out


@cache
def problem(sizes=SIZES, steps=STEPS):
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(n, generator=generator) for n in sizes]
    return params, [[torch.randn(n, generator=generator) for n in sizes] for _ in range(steps)]


@cache
def references(rule, filter, ring_type, rows, sizes, steps):
    """By torch in fp32 and exactly, for every tensor; `rows` as tuples, so that they may be a key."""
    params, grads = problem(sizes, steps)
    both = []
    for dtype in (torch.float32, torch.float64):
        own = [Reference(rule, filter, ring_type, dict(rows[i % len(rows)]), p, dtype) for i, p in enumerate(params)]
        for now in grads:
            for reference, g in zip(own, now):
                reference.step(g)
        both.append(own)
    return both


def judge_all(judge, t, by_torch, exact):
    """Parameters and state of all tensors together: at one element torch may be exact by luck."""
    undecided = torch.cat([r.undecided for r in exact])
    assert undecided.float().mean() < 1e-3
    for name in ("param", "state1", "state2", *(["filter1"] if t.kinds[1] == 1 else []), "filter2"):
        got = t.params if name == "param" else [state[name] for state in t.state]
        if got[0] is None:
            continue
        got, yardstick, truth = (
            torch.cat(list(x)) for x in (got, *([r.results()[name] for r in own] for own in (by_torch, exact)))
        )
        got = got.cpu()
        if name == "param":
            got, yardstick = (torch.where(undecided, truth, x).to(x.dtype) for x in (got, yardstick))
        judge(got, yardstick, truth)


def run(engine, rule, filter, ring_type, rows, sizes=SIZES, steps=STEPS, **placing):
    params, grads = problem(sizes, steps)
    t = Tensors(rule, filter, ring_type, rows, params, device=engine.device, **placing)
    for now in grads:
        t.give(now)
        engine(t)
    return t
