"""GrokFast around torch's optimizers: gradients, closures, histories, copies."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.optimizer import register_optimizer_step_post_hook

import grokfast
from grokfast import EMA, MA, GrokFast, GrokFastAdamW, backend
from tests.optim.by_hand import (
    BIG_AND_SMALL,
    FILTERS,
    PRECISIONS,
    ByHand,
    bits,
    gradient,
    histories,
    same,
    start,
    steps,
    tensors,
)


def wild(shape, step):
    """Gradients from 1e-3 to 1e3, after a first one of zero."""
    return gradient(shape, step) * 10 ** (3 * gradient(shape, step + 77).clamp(-1, 1)) * (step % 1000 > 0)


@pytest.mark.parametrize(("alpha", "kept"), [(0.0, 5), (1.0, 0)])
def test_the_limits_of_alpha_are_exact(alpha, kept, each_backend):
    (p,) = start([500])
    opt = GrokFast(SGD([p], lr=0.1), EMA(alpha))
    steps(opt, [p], grad=wild)
    assert torch.equal(opt.state[p]["grokfast_ema"], wild(p.shape, kept))


@pytest.mark.parametrize("alpha", [0.98, 0.9999])
def test_a_slow_average_is_accurate_from_zero(alpha, each_backend, judge):
    sets = [start([500], dtype) for dtype in PRECISIONS]
    opt, *others = (kind(SGD(params, lr=0.1), EMA(alpha)) for kind, params in zip((GrokFast, ByHand, ByHand), sets))
    for o, params in zip((opt, *others), sets):
        steps(o, params, grad=wild)
    judge(opt.state[sets[0][0]]["grokfast_ema"], *(o.past[params[0]] for o, params in zip(others, sets[1:])))


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
def test_lbfgs_filters_every_evaluation(filter, each_backend, judge):
    def run(make_closure, step, dtype=torch.float32):
        (p,) = start([4], dtype)
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
    by_hand = run(filter_too, lambda opt, c: opt.step(c))
    state.clear()
    judge(by_wrapper, by_hand, run(filter_too, lambda opt, c: opt.step(c), torch.float64))
    assert each_backend != "reference" or torch.equal(by_wrapper, by_hand)
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
    counts = [int(opts[0].state[p]["grokfast_count"]) for p in sets[0][:2]]
    assert counts == [4, 4]
    assert sets[0][2] not in histories(opts[0])
    assert sets[0][2] not in opts[0].state


def test_nothing_to_do_is_no_error(each_backend):
    params = start([(3,), (0, 2)])
    opt = GrokFast(AdamW(params), EMA())
    opt.step()
    assert not histories(opt)
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
    assert not histories(opt)
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
        if each_backend == "reference":  # before torch 2.13 a new AdamW itself counts steps on the default device
            steps(inner[1], params[:2], 1)
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
    with pytest.raises(ValueError, match=r"state\[p\]"):
        steps(opt, [p], 1)
    took("generic")
    assert same(bits(opt), before)
    opt.forget()
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
        assert [int(opt.state[p]["grokfast_count"]) for p in (first, second)] == [5, 2]


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
