"""The one-pass update on raw pointers, on the CPU, on a GPU, and the GPU's blocks emulated on the CPU: each against
torch.optim (Lion: Chen et al. 2023) after the filters as Lee et al. (2024) define them."""

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


@pytest.fixture(params=[name for name in ENGINES if name != "emulated-large"])
def engine(request, compiled):
    return engine_or_skip(request.param, compiled)


@pytest.fixture(params=["emulated", "emulated-large", "gpu"])
def like_cuda(request, compiled):
    return engine_or_skip(request.param, compiled)


@pytest.fixture
def on_gpu(compiled):
    return engine_or_skip("gpu", compiled)


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


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize(("rule", "filter"), CASES)
def test_every_rule_and_filter_is_as_good_as_torch(engine, judge, rule, filter, offset):
    rule, own = RULES[rule]
    filter, ring_type, more = FILTERS[filter]
    rows = [hyper_row(**own, **{**more, **v}) for v in VARIED]
    t = run(engine, rule, filter, ring_type, rows, offset=offset)
    key = tuple(tuple(row.items()) for row in rows)
    by_torch, exact = references(rule, filter, ring_type, key, SIZES, STEPS)
    judge_all(judge, t, by_torch, exact)
    assert not t.tickets.any()
    for state, reference in zip(t.state, exact):
        assert state["step"] == STEPS
        assert state["count"] == STEPS
        if filter == 2:
            ring = state["filter1"].view(WINDOW, -1).cpu()
            newest = (STEPS - 1) % WINDOW
            for age, kept in enumerate(reversed(reference.window)):
                assert torch.equal(ring[(newest - age) % WINDOW].double(), kept)


@pytest.mark.parametrize("filter", ["ema", "ma", "bf16"])
def test_large_totals_have_larger_blocks(engine, judge, filter):
    sizes = (2_100_000, 4096, 8191)
    filter, ring_type, more = FILTERS[filter]
    rows = [hyper_row(**more)]
    t = run(engine, ADAM, filter, ring_type, rows, sizes, 4)
    judge_all(judge, t, *references(ADAM, filter, ring_type, (tuple(rows[0].items()),), sizes, 4))
    assert [int(s["step"]) for s in t.state] == [4, 4, 4]


@pytest.mark.parametrize("count", [1, 42, 43, 150, 341, 1000])
def test_any_number_of_tensors(like_cuda, count):
    """Also empty ones; all the same, bit for bit, as one at a time."""
    sizes = tuple(i * 7 % 11 if i % 50 else 2500 for i in range(count))
    rows = [hyper_row(alpha=0.9, lr=0.1 / (k + 1)) for k in range(3)]
    t = run(like_cuda, ADAM, 1, 0, rows, sizes, 3)
    params, grads = problem(sizes, 3)
    for i, (p, state) in enumerate(zip(t.params, t.state)):
        alone = Tensors(ADAM, 1, 0, [rows[i % 3]], [params[i]], device=like_cuda.device)
        for now in grads:
            alone.give([now[i]])
            like_cuda(alone)
        assert torch.equal(p, alone.params[0])
        assert torch.equal(state["filter1"], alone.state[0]["filter1"])
        assert (state["step"], state["count"]) == (3, 3)
    assert not t.tickets.any()


def test_sign_of_zero_is_zero(engine):
    t = Tensors(LION, 0, 0, [hyper_row(lr=0.1, weight_decay=1.0)], [torch.ones(5)], device=engine.device)
    t.give([torch.tensor([0.0, -0.0, 1e-30, -1e-30, math.nan])])
    engine(t)
    assert t.params[0].cpu() == pytest.approx([0.9, 0.9, 0.8, 1.0, 0.9])  # of NaN, too, as torch.sign


def test_a_filter_alone_works_in_place(engine):
    t = Tensors(NONE, 1, 0, [hyper_row(alpha=0.5, lamb=1.0)], [torch.zeros(5000)], device=engine.device)
    t.params = t.grads
    for _ in range(2):
        t.give([torch.ones(5000)])
        engine(t)
        assert torch.equal(t.params[0].cpu(), torch.full((5000,), 2.0))


def test_a_bf16_ring_rounds_as_torch_does(engine):
    bits = torch.arange(0, 2**32, 4099, dtype=torch.int64)
    ties = torch.arange(0, 2**16, 7, dtype=torch.int64) * 65536 + 32768
    values = torch.cat([bits, ties, ties - 1, ties + 1]).clamp(max=2**32 - 1).to(torch.uint32).view(torch.float32)
    t = Tensors(NONE, 2, 1, [hyper_row(window_size=2)], [torch.zeros_like(values)], device=engine.device)
    t.give([values])
    engine(t)
    ring, by_torch = t.state[0]["filter1"].view(2, -1)[0].cpu(), values.bfloat16()
    assert torch.equal(ring.isnan(), values.isnan())
    assert torch.equal(ring[~ring.isnan()].view(torch.int16), by_torch[~by_torch.isnan()].view(torch.int16))
    assert t.state[0]["filter1"].view(2, -1)[1].isnan().all()


@pytest.mark.parametrize("filter", ["ema", "ma", "bf16", "sum"])
def test_a_filter_that_was_off_begins_anew(engine, judge, filter):
    filter, ring_type, more = FILTERS[filter]
    sizes, steps = (63, 4097), 25
    off = {0, 1, 8, 9, 15}
    params, grads = problem(sizes, steps)
    row = hyper_row(**more)
    t = Tensors(ADAM, filter, ring_type, [row], params, device=engine.device)
    both = [[Reference(ADAM, filter, ring_type, row, p, d) for p in params] for d in (torch.float32, torch.float64)]
    for step, now in enumerate(grads):
        row["enabled"] = int(step not in off)
        before = [(s["filter1"].clone(), s["filter2"] is not None and s["filter2"].clone()) for s in t.state]
        t.give(now)
        engine(t)
        for own in both:
            for reference, g in zip(own, now):
                reference.step(g)
        judge(*(torch.cat(x).detach().cpu() for x in (t.params, *([r.p for r in own] for own in both))))
        for state, (one, two) in zip(t.state, before):
            assert (state["count"] == 0) == (step in off)
            if step in off:
                assert torch.equal(state["filter1"].nan_to_num(7), one.nan_to_num(7))
                assert two is False or torch.equal(state["filter2"].nan_to_num(7), two.nan_to_num(7))


def test_an_ema_without_a_count_goes_on(engine):
    t = Tensors(NONE, 1, 0, [hyper_row(alpha=0.75, lamb=1.0)], [torch.zeros(9)], device=engine.device)
    t.state[0]["filter1"].fill_(4.0)
    t.state[0]["count"] = None
    t.give([torch.full((9,), 8.0)])
    engine(t)
    assert torch.equal(t.state[0]["filter1"].cpu(), torch.full((9,), 5.0))
    assert torch.equal(t.params[0].cpu(), torch.full((9,), 13.0))


@pytest.mark.parametrize(("size", "window"), [(1, 1), (1000, 1), (3000, 3), (1025, 100), (2_097_153, 1)])
@pytest.mark.parametrize("ring_type", [0, 1])
def test_every_element_is_summed_anew_within_four_windows(engine, size, window, ring_type):
    """Gradients that shrink by 10⁸: what a plain running sum has lost stays lost."""
    generator = torch.Generator().manual_seed(0)
    start = [torch.zeros(size)]
    t = Tensors(NONE, 2, ring_type, [hyper_row(window_size=window, lamb=1.0)], start, device=engine.device)
    recent, naive = deque(maxlen=window), torch.zeros(size)
    for step in range(10 * window):
        grad = torch.randn(size, generator=generator) * (1 if step < 5 * window else 1e-8)
        kept = grad.bfloat16().float() if ring_type else grad
        naive.add_(kept).sub_(recent[0] if len(recent) == window else 0)
        recent.append(kept)
        t.give([grad])
        engine(t)
    exact = torch.stack([*recent]).double().sum(0)
    allowed = 5 * 2 * window * window * max(g.abs().max().item() for g in recent) * torch.finfo(torch.float32).eps / 2
    assert (t.state[0]["filter2"].cpu() - exact).abs().max() <= allowed
    if window > 1:
        assert (naive - exact).abs().max() > 10 * allowed


@pytest.mark.parametrize(("window", "slice"), [(1, 256), (3, 128), (100, 64)])
def test_only_the_slice_whose_turn_it_is_is_summed_anew(like_cuda, window, slice):
    """Blocks of 1,024 elements in 4 * window slices, of which the first cover it."""
    size = 2500
    t = Tensors(NONE, 2, 0, [hyper_row(window_size=window, lamb=1.0)], [torch.zeros(size)], device=like_cuda.device)
    place = torch.arange(size) % 1024
    for turn in range(min(4 * window, 20) + 1):
        t.state[0]["filter1"].fill_(1.0)
        t.state[0]["filter2"].fill_(-1.0)  # not their sum
        t.state[0]["count"].fill_(4 * window + turn)
        t.give([torch.ones(size)])
        like_cuda(t)
        low = turn % (4 * window) * slice
        anew = (place >= low) & (place < low + slice)
        assert torch.equal(t.state[0]["filter2"].cpu(), torch.where(anew, float(window), -1.0))


@pytest.mark.parametrize("name", ["lr", "alpha", "lamb", "enabled"])
def test_a_device_scalar_replaces_a_hyper_parameter(like_cuda, name):
    values, device = {"lr": 0.25, "alpha": 0.5, "lamb": 4.0, "enabled": 0.0}, like_cuda.device
    rows = [hyper_row(alpha=0.98, lr=0.1 / (k + 1)) for k in range(3)]
    params, grads = problem((300, 200, 100), 3)
    scalar = torch.zeros((), device=device)
    overrides = torch.zeros(3, 4, dtype=torch.int64)
    overrides[1, list(values).index(name)] = scalar.data_ptr()
    overrides = overrides.to(device)
    wanted = [dict(row) for row in rows]
    own, other = (Tensors(SGD, 1, 0, r, params, device=device) for r in (rows, wanted))
    for step, now in enumerate(grads):
        wanted[1][name] = values[name] if step != 1 else 1.0
        scalar.fill_(wanted[1][name])
        own.give(now)
        other.give(now)
        like_cuda(own, overrides)
        like_cuda(other)
    for a, b in zip(own.params, other.params):
        assert torch.equal(a, b)


def test_wrong_tables_are_refused(compiled):
    t = Tensors(ADAM, 2, 0, [hyper_row()], [torch.ones(3)])
    good, hyper = t.entries(), torch.zeros(16, dtype=torch.float64).data_ptr()
    tickets = t.tickets.data_ptr()

    def refused(match, entries=good, hyper=hyper, tickets=tickets, error=ValueError):
        with pytest.raises(error, match=match):
            compiled.update_like_cuda(ADAM, 2, 0, entries, hyper, 0, tickets, False)
        if compiled.with_cuda:
            with pytest.raises(error, match=match):
                compiled.cuda_update(ADAM, 2, 0, entries, hyper, 0, tickets, 0, 0)

    def changed(column, value):
        return array("q", [*good[:column], value, *good[column + 1 :]])

    refused("rows of 11", entries=good[:10])
    refused("rows of 11", entries=array("i", good[:0]) + array("i", [0] * 11))
    refused("hyper_row", entries=changed(10, -1), error=IndexError)
    refused("no memory", entries=changed(1, 0))
    refused("no memory", hyper=0)
    refused("no memory", tickets=0)
    refused("Adam needs a step", entries=changed(5, 0))
    refused("moving average needs a count", entries=changed(8, 0))
    with pytest.raises(ValueError, match="wrong length"):
        compiled.update(ADAM, 2, good, array("d", [0.0] * 15), 1, 1)
    with pytest.raises(IndexError, match="hyper_row"):
        compiled.update(ADAM, 2, changed(10, 1), t.hyper(), 1, 1)


def test_without_a_gpu_a_cuda_kernel_says_so(compiled):
    if not compiled.with_cuda:
        pytest.skip("grokfast._C was built without CUDA")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert compiled.cuda_device_count() == 0
    t = Tensors(SGD, 0, 0, [hyper_row()], [torch.ones(3)])
    with pytest.raises(RuntimeError, match="cuda_update: cudaGetDevice: "):
        compiled.cuda_update(SGD, 0, 0, t.entries(), t.params[0].data_ptr(), 0, t.tickets.data_ptr(), 0, 0)
    compiled.cuda_update(SGD, 0, 0, array("q"), 0, 0, 0, 0, 0)  # nothing to do
    assert torch.equal(t.params[0], torch.ones(3))


@pytest.mark.parametrize("filter", ["plain", "ema", "ma", "bf16"])
@pytest.mark.parametrize("count", [3, 150])
def test_a_step_can_be_captured_and_replayed(on_gpu, judge, filter, count):
    """Rates, switches and counters are read on the device at every replay."""
    filter, ring_type, more = FILTERS[filter]
    sizes, steps = tuple(1000 + 7 * i for i in range(count)), 20
    params, grads = problem(sizes, steps)
    rows = [hyper_row(**{**more, **v}) for v in VARIED]
    t = Tensors(ADAM, filter, ring_type, rows, params, device="cuda")
    rate = torch.full((), 1e-2, device="cuda")
    overrides = torch.zeros(3, 4, dtype=torch.int64)
    overrides[:, 0] = rate.data_ptr()
    overrides = overrides.cuda()
    gpu(
        on_gpu.extension, t, overrides
    )  # makes the table of hyper-parameters; gradients are zero, and then all of it is
    for tensor, p in zip(t.params, params):
        tensor.copy_(p)
    for state in t.state:
        for name in ("state1", "state2", "step", "count"):
            state[name].zero_()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gpu(on_gpu.extension, t, overrides)
    both = [
        [Reference(ADAM, filter, ring_type, dict(rows[i % 3], lr=1e-2), p, d) for i, p in enumerate(params)]
        for d in (torch.float32, torch.float64)
    ]
    for step, now in enumerate(grads):
        value = 1e-2 / (step + 1)
        rate.fill_(value)
        t.give(now)
        graph.replay()
        for own in both:
            for reference, g in zip(own, now):
                reference.optimizer.param_groups[0]["lr"] = torch.tensor(value).item()
                reference.step(g)
    judge_all(judge, t, *both)
    assert all(state["step"] == steps and state["count"] == steps for state in t.state)
    assert not t.tickets.any()


def test_a_side_stream_is_kept(on_gpu, judge):
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    rows = [hyper_row(alpha=0.98)]
    with torch.cuda.stream(side):
        t = run(on_gpu, ADAM, 1, 0, rows, (300_000,), 8)
    side.synchronize()
    judge_all(judge, t, *references(ADAM, 1, 0, (tuple(rows[0].items()),), (300_000,), 8))
