"""GrokFast around torch's optimizers: what it computes, and which path it takes."""

import copy
import functools
from collections import deque

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW
from torch.optim.optimizer import register_optimizer_step_post_hook

import grokfast
from grokfast import EMA, MA, GrokFast, GrokFastAdamW, backend
from grokfast.optim.slots import FILTER_ONLY

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
    return {name: t for name, t in sorted(opt.state[p].items()) if isinstance(t, torch.Tensor)}


def everything(opt, p):
    """Parameter, optimizer state and history by name; a ring's rows sorted, their order is nobody's business."""
    found = {"param": p.detach(), **tensors(opt.optimizer, p)}
    if isinstance(opt, GrokFast):
        found |= {name: t for name, t in opt.filter_state[p].items() if name != "grokfast_count"}
    elif isinstance(opt.filter, EMA):
        found["grokfast_ema"] = opt.past[p]
    else:
        found |= {"grokfast_ring": torch.stack([*opt.past[p]]), "grokfast_sum": sum(opt.past[p])}
    return found | {name: t.sort(0).values for name, t in found.items() if name == "grokfast_ring"}


@pytest.fixture
def one_pass(compiled, monkeypatch):
    """Counts the calls of the one-pass kernel."""
    calls, update = [], compiled.update

    def counted(rule, *arguments, **options):
        if rule != FILTER_ONLY:
            calls.append(1)
        update(rule, *arguments, **options)

    monkeypatch.setattr(compiled, "update", counted)
    return calls


@pytest.fixture
def took(one_pass):
    """took("one pass" | "generic") asserts which path every step since the last question went."""

    def check(path, steps=None):
        assert bool(one_pass) == (path == "one pass")
        assert steps is None or len(one_pass) == steps
        one_pass.clear()

    return check


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


@pytest.mark.parametrize("filter", FILTERS, ids=repr)
@pytest.mark.parametrize("inner", INNER)
def test_one_pass_is_as_good_as_torch(inner, filter, took, judge):
    make = INNER[inner]
    if inner == "AdamW, lr as tensor":  # fp64 has to use the same, rounded, rate
        exact_make = functools.partial(make, lr=make.keywords["lr"].double())
    else:
        exact_make = functools.partial(make, foreach=False, fused=False)
    rows = []
    for kind, make_inner, dtype in zip((GrokFast, ByHand, ByHand), (make, make, exact_make), PRECISIONS):
        params = start(ODD_SHAPES, dtype)
        opt = kind(make_inner(params), filter)
        steps(opt, params, n=7)
        rows.append([everything(opt, p) for p in params])
    took("one pass", steps=7)
    for size in SIZES:
        groups = [[found for found in row if found["param"].numel() == size] for row in rows]
        for name in groups[2][0]:
            fast, slow, true = (torch.cat([found[name].flatten() for found in group]) for group in groups)
            judge(fast, slow, true.double())
        assert all(found.keys() == groups[2][0].keys() for group in groups for found in group)


@pytest.mark.parametrize("filter", FILTERS, ids=repr)
@pytest.mark.parametrize("inner", ["AdamW", "Adam, weight decay", "SGD", "SGD, nesterov"])
def test_the_number_of_threads_changes_no_bit(inner, filter, set_threads, took):
    results = []
    for threads in (1, 2, 5):
        set_threads(threads)
        params = start([*((size,) for size in SIZES), (7, 3), (0,)])
        opt = GrokFast(INNER[inner](params), filter)
        steps(opt, params)
        took("one pass")
        results.append(bits(opt))
    assert same(results[0], results[1])
    assert same(results[0], results[2])


OTHERS = sorted(
    name
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
)


@pytest.mark.parametrize("filter", FILTERS, ids=repr)
@pytest.mark.parametrize(
    "name", [name for name in OTHERS if name not in ("SparseAdam", "LBFGS", "Adam", "AdamW", "SGD")]
)
def test_any_other_optimizer_equals_filtering_by_hand_bit_for_bit(name, filter):
    with backend.using("reference"):
        filtered_by_hand(name, filter)


def filtered_by_hand(name, filter):
    kind, shapes = getattr(torch.optim, name), [(5, 4), (3, 3)] if name in ("Muon", "Adafactor") else BIG_AND_SMALL
    params, own = start(shapes), start(shapes)
    opt, plain = GrokFast(kind(params), filter), kind(own)
    states = [{} for _ in own]
    for step in range(8):
        for i, (p, q) in enumerate(zip(params, own)):
            p.grad = gradient(p.shape, 1000 * i + step)
            q.grad = grokfast.optim.reference.filter_gradient(filter, p.grad, states[i])
        opt.step()
        plain.step()
    assert same([*params], [*own])
    for p, q in zip(params, own):
        assert same([*tensors(opt, p).values()], [*tensors(plain, q).values()])


class Witness(torch.optim.SGD):
    """Keeps the gradients that it is given."""

    def step(self, closure=None):
        self.seen = [p.grad.clone() for group in self.param_groups for p in group["params"]]


@pytest.mark.parametrize("filter", [*FILTERS, MA(3, ring="bfloat16")], ids=repr)
def test_any_other_optimizer_is_given_filtered_gradients_from_one_pass(filter, compiled, judge):
    params, states, exact_states = start(BIG_AND_SMALL), *([{} for _ in BIG_AND_SMALL] for _ in range(2))
    opt = GrokFast(Witness(params), filter)
    for step in range(8):
        for i, p in enumerate(params):
            p.grad = gradient(p.shape, 1000 * i + step)
        opt.step()
        for i, (p, seen) in enumerate(zip(params, opt.optimizer.seen)):
            by_torch = grokfast.optim.reference.filter_gradient(filter, p.grad, states[i])
            exact = grokfast.optim.reference.filter_gradient(filter, p.grad.double(), exact_states[i])
            judge(seen, by_torch, exact)


class Subclass(torch.Tensor):
    pass


class Renamed(AdamW):
    """A user's own optimizer."""


def patched(params):
    opt = AdamW(params)
    opt.step = functools.partial(type(opt).step, opt)
    return opt


def hooked(params):
    opt = AdamW(params)
    opt.register_step_post_hook(lambda *_: None)
    return opt


def one_group_of_two(params):
    return AdamW([{"params": params[:1]}, {"params": params[1:], "amsgrad": True}])


GENERIC = {
    "amsgrad": functools.partial(AdamW, amsgrad=True),
    "amsgrad in one group": one_group_of_two,
    "an optimizer derived from AdamW": Renamed,
    "step patched": patched,
    "step hooked": hooked,
}


@pytest.mark.parametrize("filter", FILTERS, ids=repr)
@pytest.mark.parametrize("inner", GENERIC)
def test_what_the_one_pass_cannot_do_is_left_to_the_inner_step(inner, filter, took, judge):
    check_generic(GENERIC[inner], filter, took, judge, *(start(BIG_AND_SMALL, dtype) for dtype in PRECISIONS))


def check_generic(make, filter, took, judge, params, plain, exact, grad=gradient):
    opts = GrokFast(make(params), filter), ByHand(make(plain), filter), ByHand(make(exact), filter)
    with torch.no_grad():
        for opt, ps in zip(opts, (params, plain, exact)):
            steps(opt, ps, grad=grad)
    took("generic")
    for fast, slow, true in zip(params, plain, exact):
        judge(fast.detach(), slow.detach(), true.detach())


def test_differentiable_is_left_to_the_inner_step(took):
    p = torch.ones(3)
    opt = GrokFast(SGD([p], lr=0.5, differentiable=True), EMA(lamb=1.0))
    p.grad = torch.ones(3)
    opt.step()
    took("generic")
    assert torch.equal(p, torch.zeros(3))


def test_capturable_is_left_to_the_inner_step(took):
    (p,) = start([3])
    opt = GrokFast(AdamW([p], capturable=True))
    p.grad = raw = torch.ones(3)
    with pytest.raises(AssertionError, match="capturable=True"):  # torch's own answer on a CPU
        opt.step()
    took("generic")
    assert p.grad is raw


@pytest.mark.parametrize("filter", FILTERS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_parameters_are_filtered_in_fp32(dtype, filter, took, judge):
    def rounded(shape, step):
        return gradient(shape, step, dtype)

    params, plain = start(BIG_AND_SMALL, dtype), start(BIG_AND_SMALL, dtype)
    exact = [nn.Parameter(p.detach().double()) for p in params]
    make = functools.partial(SGD, lr=0.1, momentum=0.9)
    check_generic(make, filter, took, judge, params, plain, exact, grad=rounded)


@pytest.mark.parametrize("filter", FILTERS, ids=repr)
def test_double_precision_is_kept(filter, took):
    params, own = start(BIG_AND_SMALL, torch.float64), start(BIG_AND_SMALL, torch.float64)
    steps(GrokFast(AdamW(params), filter), params)
    steps(ByHand(AdamW(own), filter), own)
    took("generic")
    for p, q in zip(params, own):
        torch.testing.assert_close(p, q, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("filter", FILTERS, ids=repr)
def test_complex_parameters(filter, took):
    def grad(shape, step):
        return torch.complex(gradient(shape, step), gradient(shape, 77 + step))

    results = []
    for make in (GrokFast, ByHand):
        params = start([(3, 2), ()], torch.complex64)
        steps(make(AdamW(params), filter), params, grad=grad)
        results.append(params)
    took("generic")
    for p, q in zip(*results):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def views(kind, t):
    """The values of `t` in other clothes."""
    if kind == "transposed":
        return t.T.contiguous().T
    if kind == "subclass":
        return t.as_subclass(Subclass)
    if kind == "negated":
        return torch._neg_view(-t)
    return t


@pytest.mark.parametrize("filter", FILTERS, ids=repr)
@pytest.mark.parametrize("kind", ["transposed", "subclass", "negated"])
@pytest.mark.parametrize("whose", ["parameter", "gradient"])
def test_other_memory_gives_the_same_result(kind, whose, filter, took):
    results = []
    for dressed in (False, True):
        (plain,) = start([(4, 6)])
        p = nn.Parameter(views(kind if dressed and whose == "parameter" else "", plain.detach()))
        opt = GrokFast(AdamW([p], lr=0.1, foreach=False), filter)
        for step in range(5):
            p.grad = views(kind if dressed and whose == "gradient" else "", gradient((4, 6), step))
            opt.step()
        took("generic" if dressed else "one pass")
        results.append(p.detach().as_subclass(torch.Tensor))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)


def test_channels_last_weights(took):
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        model = nn.Conv2d(3, 5, 2).to(memory_format=memory_format)
        opt = GrokFast(AdamW(model.parameters(), lr=0.1), MA(3, warmup=False))
        for step in range(5):
            opt.zero_grad()
            model(gradient((2, 3, 4, 4), step)).square().sum().backward()
            opt.step()
        results.append(model.weight.detach())
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_a_scalar_parameter_in_a_complex_expression(took):
    """Its gradient is contiguous but lazily negated."""
    p = nn.Parameter(torch.tensor(2.0))
    opt = GrokFast(SGD([p], lr=1.0), EMA(0.0, 1.0))
    p.grad = torch.complex(torch.zeros(1), torch.ones(1)).conj().imag[0]
    assert p.grad.is_neg()
    opt.step()
    assert p == 4.0


def test_several_groups_each_with_its_options(took, judge):
    def make(kind, params):
        return kind([
            {"params": params[:2], "lr": 0.1, "weight_decay": 0.3, "filter": "not for hyper_row"},
            {"params": params[2:3], "betas": (0.3, 0.5), "eps": 0.1, "decoupled": "nor this"},
            {"params": params[3:], "lr": 0.5, "maximize": True},
        ])  # fmt: skip

    sets = [start([(63,), (1000,), (16385,), (300,)], dtype) for dtype in PRECISIONS]
    steps(GrokFast(make(AdamW, sets[0]), EMA()), sets[0])
    took("one pass", steps=6)
    for params in sets[1:]:
        steps(ByHand(make(AdamW, params), EMA()), params)
    for fast, slow, true in zip(*sets):
        judge(fast.detach(), slow.detach(), true.detach())


def test_momentum_switched_on_later_starts_like_torchs(took, judge):
    sets = [start([100], dtype) for dtype in PRECISIONS]
    for kind, params in zip((GrokFast, ByHand, ByHand), sets):
        inner = SGD(params, lr=0.1, dampening=0.5)
        opt = kind(inner, EMA())
        for first, momentum in enumerate((0.0, 0.9, 0.0, 0.9)):
            inner.param_groups[0]["momentum"] = momentum
            steps(opt, params, n=3, first=3 * first)
    took("one pass", steps=12)
    judge(*(params[0].detach() for params in sets))


def wild(shape, step):
    """Gradients from 1e-3 to 1e3, after a first one of zero."""
    return gradient(shape, step) * 10 ** (3 * gradient(shape, step + 77).clamp(-1, 1)) * (step % 1000 > 0)


@pytest.mark.parametrize(("alpha", "kept"), [(0.0, 5), (1.0, 0)])
def test_the_limits_of_alpha_are_exact(alpha, kept, each_backend):
    (p,) = start([500])
    opt = GrokFast(SGD([p], lr=0.1), EMA(alpha))
    steps(opt, [p], grad=wild)
    assert torch.equal(opt.filter_state[p]["grokfast_ema"], wild(p.shape, kept))


@pytest.mark.parametrize("alpha", [0.98, 0.9999])
def test_a_slow_average_is_accurate_from_zero(alpha, each_backend, judge):
    sets = [start([500], dtype) for dtype in PRECISIONS]
    opt, *others = (kind(SGD(params, lr=0.1), EMA(alpha)) for kind, params in zip((GrokFast, ByHand, ByHand), sets))
    for o, params in zip((opt, *others), sets):
        steps(o, params, grad=wild)
    judge(opt.filter_state[sets[0][0]]["grokfast_ema"], *(o.past[params[0]] for o, params in zip(others, sets[1:])))


@pytest.mark.parametrize("make", [AdamW, SGD, torch.optim.RMSprop])
@pytest.mark.parametrize("filter", [EMA(lamb=0.0), MA(2, lamb=0.0), MA(2, 0.0, "sum", warmup=False)], ids=repr)
def test_without_amplification_the_step_is_the_inner_optimizers_bit_for_bit(make, filter, each_backend):
    def grad(shape, step):
        g = gradient(shape, step)
        return torch.where(g < 0, -0.0, torch.where(g > 1, torch.inf, g))

    params, own = start(BIG_AND_SMALL), start(BIG_AND_SMALL)
    opt, plain = GrokFast(make(params, lr=0.1), filter), make(own, lr=0.1)
    steps(opt, params, grad=grad)
    steps(plain, own, grad=grad)
    for p, q in zip(params, own):
        pairs = [(p, q), *zip(tensors(opt, p).values(), tensors(plain, q).values())]
        assert all(torch.equal(a.detach().view(torch.int32), b.detach().view(torch.int32)) for a, b in pairs)


def test_a_warming_up_average_leaves_gradients_alone_even_if_its_sum_overflows(each_backend):
    (p,) = start([5])
    opt, before = GrokFast(SGD([p], lr=1e-38), MA(5)), p.detach().clone()
    for _ in range(3):
        p.grad = torch.full((5,), 3e38)
        opt.step()
    torch.testing.assert_close(p.detach(), before - 9.0)


def test_closure(each_backend):
    (p,) = start([3])
    opt = GrokFast(SGD([p], lr=0.5), EMA(lamb=1.0))
    seen = []

    def closure():
        assert torch.is_grad_enabled()
        opt.zero_grad()
        loss = p.square().sum()
        loss.backward()
        seen.append(p.grad.clone())
        return loss

    start_value = p.detach().clone()
    assert opt.step(closure) == start_value.square().sum()
    assert len(seen) == 1
    torch.testing.assert_close(p.detach(), start_value - 0.5 * 2 * seen[0])
    assert torch.equal(p.grad, seen[0])


@pytest.mark.parametrize("filter", [EMA(0.5, 0.5), MA(2, 0.5, warmup=False)], ids=repr)
def test_lbfgs_filters_every_evaluation(filter):
    def run(make_closure, step):
        (p,) = start([4])
        opt = torch.optim.LBFGS([p], lr=0.1, max_iter=5)

        def closure():
            opt.zero_grad()
            loss = (p - torch.arange(4.0)).pow(4).sum()
            loss.backward()
            return make_closure(p, loss)

        with torch.enable_grad():
            for _ in range(3):
                step(opt, closure)
        return p.detach()

    state = {}

    def filter_too(p, loss):
        p.grad = grokfast.optim.reference.filter_gradient(filter, p.grad, state)
        return loss

    wrappers = {}
    by_wrapper = run(lambda p, loss: loss, lambda opt, c: wrappers.setdefault(opt, GrokFast(opt, filter)).step(c))
    assert torch.equal(by_wrapper, run(filter_too, lambda opt, c: opt.step(c)))
    assert len(wrappers) == 1


def test_the_raw_gradient_stays_in_place(each_backend):
    params = start(BIG_AND_SMALL)
    opt = GrokFast(AdamW(params), MA(2))
    for step in range(4):
        raw = [gradient(p.shape, step) for p in params]
        for p, g in zip(params, raw):
            p.grad = g
        expected = [g.clone() for g in raw]
        opt.step()
        assert all(p.grad is g for p, g in zip(params, raw))
        assert same(raw, expected)


def test_the_raw_gradient_is_back_when_the_inner_step_raises():
    class Failing(SGD):
        def step(self, closure=None):
            raise ArithmeticError

    (p,) = start([3])
    opt = GrokFast(Failing([p]), EMA())
    p.grad = raw = torch.ones(3)
    with pytest.raises(ArithmeticError):
        opt.step()
    assert p.grad is raw


def test_missing_and_late_gradients_start_their_history_when_they_come(each_backend, judge):
    shapes = [(50,), (60,), (70,)]
    present = [[1, 0, 0], [1, 1, 0], [0, 1, 0], [1, 1, 0], [1, 1, 0]]
    sets = [start(shapes, dtype) for dtype in PRECISIONS]
    opts = [kind(AdamW(params), MA(2)) for kind, params in zip((GrokFast, ByHand, ByHand), sets)]
    for step, row in enumerate(present):
        for opt, params in zip(opts, sets):
            for p, there in zip(params, row):
                p.grad = gradient(p.shape, step).to(p.dtype) if there else None
            opt.step()
    for fast, slow, true in zip(*sets):
        judge(fast.detach(), slow.detach(), true.detach())
    counts = [int(opts[0].filter_state[p]["grokfast_count"]) for p in sets[0][:2]]
    assert counts == [4, 4]
    assert sets[0][2] not in opts[0].filter_state
    assert sets[0][2] not in opts[0].state


def test_nothing_to_do_is_no_error(each_backend):
    params = start([(3,), (0, 2)])
    opt = GrokFast(AdamW(params), EMA())
    opt.step()
    assert not opt.filter_state
    params[1].grad = torch.zeros(0, 2)
    opt.step()
    assert opt.state[params[1]]["step"] == 1


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("make", [AdamW, SGD, torch.optim.RMSprop])
def test_a_sparse_gradient_is_refused_before_anything_changes(make, which, each_backend):
    params = start([(3, 2), (3, 2)])
    opt, before = GrokFast(make(params, lr=0.1), EMA()), [p.detach().clone() for p in params]
    for i, p in enumerate(params):
        p.grad = torch.ones(3, 2).to_sparse() if i == which else torch.ones(3, 2)
    with pytest.raises(TypeError, match="grad must be a dense tensor, got layout"):
        opt.step()
    assert same([*params], before)
    assert not opt.filter_state
    assert not opt.state


def test_sparse_adam_is_refused_at_its_first_gradient():
    table = nn.Embedding(5, 2, sparse=True)
    opt = GrokFast(torch.optim.SparseAdam(table.parameters()), EMA())
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match="sparse=False"):
        opt.step()


@pytest.mark.parametrize("filter", FILTERS, ids=repr)
def test_autograd_sees_that_parameters_changed(filter, each_backend):
    (p,) = start([4])
    opt = GrokFast(AdamW([p]), filter)
    loss = p.square().sum()
    p.grad = torch.ones(4)
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_default_device_or_dtype_does_not_mislead(each_backend):
    results = []
    for device, dtype in (("cpu", torch.float32), ("meta", torch.float64)):
        params = start(BIG_AND_SMALL)
        grads = [gradient(p.shape, 5) for p in params]
        inner = [SGD(params, lr=0.1, momentum=0.9), AdamW(params[:2], foreach=False)]
        opts = [GrokFast(optimizer, filter) for optimizer, filter in zip(inner, (MA(2), EMA()))]
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                for opt in opts * 3:
                    for p, g in zip(params, grads):
                        p.grad = g
                    opt.step()
        finally:
            torch.set_default_dtype(torch.float32)
        results.append([t for opt in opts for t in bits(opt)])
    assert same(*results)


def test_state_of_another_size_never_reaches_the_kernel(took):
    """Loaded into a grown layer, say: torch's own error, where raw pointers would read out of bounds."""
    small, large = start([10])[0], start([100_000])[0]
    opt = AdamW([small])
    steps(opt, [small], 1)
    other = GrokFast(AdamW([large]), EMA())
    other.load_state_dict(opt.state_dict())
    with pytest.raises(RuntimeError, match="size"):
        steps(other, [large], 1)
    took("generic")


@pytest.mark.parametrize("make", [AdamW, torch.optim.RMSprop])
def test_a_parameter_that_changed_its_shape_is_refused(make, took):
    (p,) = start([10])
    opt = GrokFast(make([p]), EMA())
    steps(opt, [p], 1)
    took("one pass" if make is AdamW else "generic")
    p.data = torch.zeros(100_000)
    with pytest.raises(ValueError, match=r"\(10,\), accepted is \(100000,\)"):
        steps(opt, [p], 1)
    took("generic")


@pytest.mark.parametrize("later", [MA(200_000), EMA()], ids=repr)
def test_another_filter_on_an_old_history_is_refused_with_nothing_changed(later, took):
    (p,) = start([100])
    opt = GrokFast(AdamW([p]), MA(2))
    steps(opt, [p], 3)
    took("one pass")
    opt.filter, before = later, bits(opt)
    with pytest.raises(ValueError, match=r"filter_state\[p\]"):
        steps(opt, [p], 1)
    took("generic")
    assert same(bits(opt), before)
    opt.filter_state.clear()
    steps(opt, [p], 1)


def test_lamb_and_alpha_may_change_between_steps(took):
    (p,) = start([4])
    opt = GrokFast(SGD([p], lr=1.0), EMA(0.5, 0.0))
    before = p.detach().clone()
    p.grad = torch.ones(4)
    opt.step()  # off, but the history grows
    opt.filter = EMA(1.0, 3.0)
    p.grad = torch.zeros(4)
    opt.step()
    torch.testing.assert_close(p.detach(), before - 1 - 3)


class TestPlainParts:
    def test_it_is_an_optimizer_with_the_inner_ones_own_parts(self):
        inner = AdamW(start([3]), lr=0.25)
        opt = GrokFast(inner)
        assert isinstance(opt, torch.optim.Optimizer)
        assert opt.filter == EMA()
        assert opt.param_groups is inner.param_groups
        assert opt.state is inner.state
        assert opt.defaults is inner.defaults
        assert "EMA(alpha=0.98, lamb=2.0)" in repr(opt)
        assert "lr: 0.25" in repr(opt)

    @pytest.mark.parametrize("given", [None, [nn.Parameter(torch.zeros(1))], AdamW, nn.Linear(1, 1)])
    def test_only_an_optimizer_can_be_wrapped(self, given):
        with pytest.raises(TypeError, match=r"^optimizer must be a torch.optim.Optimizer, got "):
            GrokFast(given)

    def test_wrapping_twice_is_refused(self):
        with pytest.raises(TypeError, match="wrap the inner optimizer once"):
            GrokFast(GrokFast(AdamW(start([3]))))

    @pytest.mark.parametrize("filter", [None, EMA, "ema", 0.98])
    def test_only_a_filter_is_accepted(self, filter):
        with pytest.raises(TypeError, match=r"^filter must be grokfast\.EMA"):
            GrokFast(AdamW(start([3])), filter)

    def test_one_class_for_frameworks(self, took):
        params, own = start([100, 3]), start([100, 3])
        opt = GrokFastAdamW(params, 0.1, (0.8, 0.9), 1e-6, 0.3, filter=MA(2), maximize=True)
        plain = GrokFast(AdamW(own, 0.1, (0.8, 0.9), 1e-6, 0.3, maximize=True), MA(2))
        steps(opt, params)
        took("one pass", steps=6)
        steps(plain, own)
        assert same(bits(opt), bits(plain))
        assert GrokFastAdamW(start([1])).defaults == AdamW(start([1])).defaults
        with pytest.raises(ValueError, match="Invalid learning rate"):
            GrokFastAdamW(start([1]), lr=-1.0)

    def test_zero_grad_of_both_kinds(self):
        (p,) = start([3])
        opt = GrokFast(AdamW([p]))
        p.grad = torch.ones(3)
        opt.zero_grad(set_to_none=False)
        assert torch.equal(p.grad, torch.zeros(3))
        opt.zero_grad()
        assert p.grad is None

    def test_zeroing_in_place_leaves_the_history_alone(self, each_backend):
        results = []
        for set_to_none in (True, False):
            (p,) = start([20])
            opt = GrokFast(SGD([p], lr=0.1, momentum=0.9), MA(2))
            for step in range(5):
                opt.zero_grad(set_to_none=set_to_none)
                (p * gradient((20,), step)).sum().backward()
                opt.step()
            results.append(bits(opt))
        assert same(*results)

    def test_step_hooks_fire_once_each(self, each_backend):
        (p,) = start([3])
        opt, fired = GrokFast(AdamW([p])), []
        opt.register_step_pre_hook(lambda o, args, kwargs: fired.append(("pre", o)))
        opt.register_step_post_hook(lambda o, args, kwargs: fired.append(("post", o)))
        steps(opt, [p], 1)
        assert fired == [("pre", opt), ("post", opt)]

    def test_step_hooks_fire_once_whichever_class_came_first(self):
        for make in (GrokFastAdamW, lambda p: GrokFast(AdamW(p)), GrokFastAdamW):
            (p,) = start([3])
            opt, fired = make([p]), []
            opt.register_step_post_hook(lambda *_, fired=fired: fired.append(1))
            steps(opt, [p], 1)
            assert fired == [1]

    def test_hooks_on_every_optimizer_see_the_wrapper_once(self, each_backend):
        (p,) = start([3])
        opt, fired = GrokFast(AdamW([p])), []
        handle = register_optimizer_step_post_hook(lambda o, *_: fired.append(o))
        try:
            steps(opt, [p], 1)
        finally:
            handle.remove()
        assert fired == [opt]

    def test_hooks_on_the_inner_step_still_fire(self, each_backend):
        (p,) = start([3])
        inner, fired = AdamW([p]), []
        inner.register_step_pre_hook(lambda o, *_: fired.append(p.grad.clone()))
        opt = GrokFast(inner, EMA(lamb=2.0))
        p.grad = torch.ones(3)
        opt.step()
        assert torch.equal(*fired, torch.full((3,), 3.0))  # and see the filtered gradient

    def test_added_parameters_join(self, each_backend):
        first, second = start([4, 5])
        opt = GrokFast(AdamW([first], lr=0.1), MA(2))
        steps(opt, [first], 3)
        opt.add_param_group({"params": [second], "lr": 0.01})
        steps(opt, [first, second], 2, first=3)
        assert [g["lr"] for g in opt.optimizer.param_groups] == [0.1, 0.01]
        assert [int(opt.filter_state[p]["grokfast_count"]) for p in (first, second)] == [5, 2]


SCHEDULERS = {
    "StepLR": lambda opt: torch.optim.lr_scheduler.StepLR(opt, 2, 0.1),
    "LambdaLR": lambda opt: torch.optim.lr_scheduler.LambdaLR(opt, lambda t: min(1, t / 3)),
    "OneCycleLR": lambda opt: torch.optim.lr_scheduler.OneCycleLR(opt, 0.1, total_steps=8),
    "ReduceLROnPlateau": lambda opt: torch.optim.lr_scheduler.ReduceLROnPlateau(opt, patience=0),
    "SequentialLR": lambda opt: torch.optim.lr_scheduler.SequentialLR(
        opt, [torch.optim.lr_scheduler.ConstantLR(opt), torch.optim.lr_scheduler.ExponentialLR(opt, 0.5)], [3]
    ),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("made_from", ["wrapper", "inner"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers(name, made_from, took, judge):
    sets = [start([100], dtype) for dtype in PRECISIONS]
    for kind, params in zip((GrokFast, ByHand, ByHand), sets):
        inner = AdamW(params, lr=0.1)
        opt = kind(inner, EMA())
        scheduler = SCHEDULERS[name](opt if kind is GrokFast and made_from == "wrapper" else inner)
        for step in range(6):
            steps(opt, params, 1, first=step)
            scheduler.step(*[1.0] * (name == "ReduceLROnPlateau"))
        if kind is GrokFast:
            rates = inner.param_groups[0]["lr"], inner.param_groups[0]["betas"]
    assert rates == (inner.param_groups[0]["lr"], inner.param_groups[0]["betas"])
    # Every scheduler but ReduceLROnPlateau watches the step of what it was made from.
    took("generic" if made_from == "inner" and name != "ReduceLROnPlateau" else "one pass")
    judge(*(params[0].detach() for params in sets))


def test_a_gradient_scaler_filters_unscaled_gradients_and_skips_bad_steps(each_backend):
    params, own = start([(30,)]), start([(30,)])
    opt, plain = GrokFast(AdamW(params, fused=True), EMA()), GrokFast(AdamW(own, fused=True), EMA())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(5):
        (p,), (q,) = params, own
        p.grad, q.grad = None, gradient((30,), step)
        scaler.scale((p * q.grad).sum()).backward()
        if step == 2:
            p.grad[3] = torch.inf
        before = bits(opt)
        scaler.step(opt)
        scaler.update()
        if step == 2:
            assert same(bits(opt), before)
        else:
            plain.step()
            assert same(bits(opt), bits(plain))
    assert scaler.get_scale() == 512.0


def test_copies_go_their_own_way(each_backend):
    (p,) = start([20])
    opt = GrokFast(AdamW([p]), MA(3))
    steps(opt, [p], 2)
    twin = copy.deepcopy(opt)
    (q,) = twin.param_groups[0]["params"]
    steps(twin, [q], 5, first=2)
    assert not torch.equal(p, q)
    steps(opt, [p], 5, first=2)
    assert same(bits(opt), bits(twin))


def test_the_reference_backend_is_obeyed(took):
    (p,) = start([20])
    opt = GrokFast(AdamW([p]), EMA())
    with backend.using("reference"):
        steps(opt, [p], 2)
    took("generic")
    steps(opt, [p], 2)  # and what was begun there goes on here
    took("one pass", steps=2)
