"""Around optimizers that are not torch's: what they keep, take, return and save stays theirs."""

import copy
import pickle
from collections import defaultdict

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adafactor, AdamW, Optimizer

from grokfast import EMA, MA, GrokFast, GrokFastAdamW
from grokfast.optim import Lion
from tests.optim.by_hand import histories


class Custom(Optimizer):
    """SGD, to be changed below."""

    def __init__(self, params, lr=1.0):
        super().__init__(params, {"lr": lr})

    def each(self):
        return [p for group in self.param_groups for p in group["params"] if p.grad is not None]

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for p in self.each():
            p -= self.param_groups[0]["lr"] * p.grad
        return loss


class KeepsGradients(Custom):
    def __init__(self, params, how=lambda grad: grad):
        super().__init__(params)
        self.how = how

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.each():
            last = self.state[p].get("last", torch.zeros_like(p))
            p -= 0.1 * (p.grad + 0.5 * (p.grad - last.view_as(p)))
            self.state[p]["last"] = self.how(p.grad)


def parameter(values=(0.0, 0.0, 0.0)):
    return nn.Parameter(torch.tensor(values))


def take_steps(opt, p, grads):
    for grad in grads:
        p.grad = grad.clone()
        opt.step()


# What the inner optimizer is given.


@pytest.mark.parametrize(
    "how",
    [lambda grad: grad, lambda grad: grad.detach(), lambda grad: grad.view(-1), lambda grad: grad.clone()],
    ids=["itself", "detached", "a view", "a copy"],
)
def test_gradients_that_the_inner_optimizer_keeps_stay_as_they_were(how, each_backend):
    p = parameter()
    opt = GrokFast(KeepsGradients([p], how), EMA(0.9, 2.0))
    take_steps(opt, p, [torch.arange(3.0) + i for i in range(4)])
    torch.testing.assert_close(p.detach(), torch.tensor([-0.9963, -2.3463, -3.6963]), rtol=0, atol=1e-4)


def test_memory_for_filtered_gradients_is_used_again_unless_kept(compiled):
    p = parameter()
    opt = GrokFast(Custom([p]), EMA())
    take_steps(opt, p, [torch.ones(3)])
    (out,) = next(iter(opt._filtering.passes.made.values())).outs
    address = out.data_ptr()
    del out
    take_steps(opt, p, [torch.ones(3)])
    (out,) = next(iter(opt._filtering.passes.made.values())).outs
    assert out.data_ptr() == address


def test_an_optimizer_without_lr_betas_and_eps(each_backend):
    p = parameter()
    opt = GrokFast(Adafactor([p]), EMA())
    q = parameter()
    other = Adafactor([q])
    past = None
    for i in range(3):
        grad = torch.arange(3.0) + i
        p.grad = grad.clone()
        opt.step()
        past = grad if past is None else 0.98 * past + 0.02 * grad
        q.grad = grad + 2 * past
        other.step()
    torch.testing.assert_close(p, q)


def test_the_inner_optimizer_sees_a_state_of_its_own(each_backend):
    class Counts(Custom):
        @torch.no_grad()
        def step(self, closure=None):
            for p in self.each():
                state = self.state[p]
                if not state:
                    state["steps"] = 0
                state["steps"] += 1
                assert list(state) == ["steps"]
            super().step()

    p = parameter()
    opt = GrokFast(Counts([p]), MA(2))
    take_steps(opt, p, [torch.ones(3)] * 3)
    assert opt.state[p]["steps"] == 3
    assert int(opt.state[p]["grokfast_count"]) == 3


# Closures and further arguments.


class Sharp(Custom):
    """SAM-like: two gradients a step, the second by the closure, whose default is None."""

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is not None
        with torch.enable_grad():
            first = closure()
        for p in self.each():
            self.state[p]["old"] = p.clone()
            p += 0.1 * p.grad
        with torch.enable_grad():
            closure()
        for p in self.each():
            p.copy_(self.state[p]["old"] - 0.1 * p.grad)
        return first


def test_a_closure_goes_to_the_inner_optimizer_and_every_evaluation_is_filtered(each_backend):
    p = parameter((1.0, 2.0, 3.0))
    opt = GrokFast(Sharp([p]), EMA(0.5, 1.0))
    raw = []

    def closure():
        opt.zero_grad()
        loss = 0.5 * p.square().sum()
        loss.backward()
        raw.append(p.grad)
        return loss

    w, past, expected = torch.tensor([1.0, 2.0, 3.0]), None, None
    for _ in range(3):
        losses = 0.5 * w.square().sum()
        past = w if past is None else 0.5 * past + 0.5 * w
        up = w + 0.1 * (w + past)
        past = 0.5 * past + 0.5 * up
        expected = w - 0.1 * (up + past)
        assert torch.allclose(opt.step(closure), losses)
        torch.testing.assert_close(p.detach(), expected)
        assert p.grad is raw[-1]
        w = expected
    assert len(raw) == 6


def test_a_closure_that_only_returns_the_loss(each_backend):
    class Polyak(Custom):  # AliG-like
        @torch.no_grad()
        def step(self, closure):
            self.seen = closure()
            for p in self.each():
                p -= self.seen * p.grad

    p = parameter()
    opt = GrokFast(Polyak([p]), EMA(0.5, 1.0))
    p.grad = torch.ones(3)
    opt.step(lambda: 0.5)
    assert opt.optimizer.seen == 0.5
    assert torch.equal(p.detach(), torch.full((3,), -1.0))


def test_a_step_that_takes_no_closure_gets_none(each_backend):
    class Bare(Custom):
        @torch.no_grad()
        def step(self):
            super().step()

    for start in (0, 5):
        p = parameter()
        opt = GrokFast(Bare([p]), EMA(), start_step=start)

        def closure(p=p):
            p.grad = torch.ones(3)
            return 7.0

        assert opt.step(closure) == 7.0
        assert torch.equal(p.detach(), torch.full((3,), -1.0 if start else -3.0))


def test_further_arguments_and_the_result_are_the_inner_steps(each_backend):
    class Batch(Custom):
        def step(self, closure=None, scale=1, *, bs=1):
            self.seen = scale, bs
            super().step(closure)
            return "said"

    p = parameter()
    opt = GrokFast(Batch([p]), EMA())
    p.grad = torch.ones(3)
    assert opt.step(bs=4) == "said"
    assert opt.optimizer.seen == (1, 4)
    opt.step(None, 2)
    assert opt.optimizer.seen == (2, 1)
    p = parameter()
    with pytest.raises(TypeError, match="bs"):
        GrokFastAdamW([p]).step(bs=4)


# Its interface.


def test_public_attributes_are_the_inner_optimizers():
    class Free(Custom):
        mode = "train"

        def train(self):
            self.mode = "train"

        def eval(self):
            self.mode = "eval"

        def _private(self):
            """Not part of the interface."""

    opt = GrokFast(Free([parameter()]))
    opt.eval()
    assert opt.mode == opt.optimizer.mode == "eval"
    opt.mode = "other"
    assert opt.optimizer.mode == "other"
    assert hasattr(opt, "train")
    assert not hasattr(opt, "_private")
    assert not hasattr(opt, "nothing")
    with pytest.raises(AttributeError, match="nothing"):
        opt.nothing  # noqa: B018
    opt.new = 3  # as on any object
    assert not hasattr(opt.optimizer, "new")
    assert not hasattr(GrokFastAdamW([parameter()], fused=True), "_step_supports_amp_scaling")


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["copy", "pickle"])
def test_copies_of_an_optimizer_with_methods_of_its_own(duplicate):
    p = parameter()
    opt = GrokFast(KeepsLast([p]), EMA())
    take_steps(opt, p, [torch.ones(3)])
    other = duplicate(opt)
    assert type(other) is GrokFast
    assert other.optimizer is not opt.optimizer
    assert len(histories(other)) == 1


class KeepsLast(Custom):
    """At module level, to be pickled; a copy of it is one of another kind."""

    def __deepcopy__(self, memo):
        other = KeepsLast([nn.Parameter(p.detach().clone()) for p in self.each()])
        for (_, state), p in zip(self.state.items(), other.param_groups[0]["params"]):
            other.state[p] = copy.deepcopy(state)
        return other


# Its state dict.


class Lookahead(Custom):
    """Has a state dict of its own form."""

    def __init__(self, params):
        super().__init__(params)
        self.base = SGD(self.param_groups, lr=1.0, momentum=0.5)
        self.param_groups = self.base.param_groups
        self.slow = [p.detach().clone() for p in self.each_param()]

    def each_param(self):
        return [p for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure=None):
        self.base.step()
        for p, slow in zip(self.each_param(), self.slow):
            slow.lerp_(p, 0.5)
            p.copy_(slow)

    def state_dict(self):
        return {"slow": [slow.clone() for slow in self.slow], "base": self.base.state_dict()}

    def load_state_dict(self, state_dict):
        assert set(state_dict) == {"slow", "base"}
        for slow, loaded in zip(self.slow, state_dict["slow"]):
            slow.copy_(loaded)
        self.base.load_state_dict(state_dict["base"])
        self.param_groups = self.base.param_groups


@pytest.mark.parametrize("filter", [EMA(0.5, 1.0), MA(2, 1.0)], ids=["ema", "ma"])
@pytest.mark.parametrize("inner", [Lookahead, KeepsGradients, AdamW, Lion, lambda p: torch.optim.LBFGS(p, max_iter=2)])
def test_any_form_of_state_dict_resumes_to_the_same_bits(inner, filter, each_backend):
    grads = [torch.randn(3, generator=torch.Generator().manual_seed(i)) for i in range(6)]

    def train(opt, p, grads):
        for grad in grads:

            def closure(grad=grad):
                p.grad = grad.clone()
                return grad.sum()

            opt.step(closure)

    p, q = parameter(), parameter()
    whole, first = GrokFast(inner([p]), filter), GrokFast(inner([q]), filter)
    train(whole, p, grads)
    train(first, q, grads[:3])
    saved = copy.deepcopy(first.state_dict())
    r = nn.Parameter(q.detach().clone())
    second = GrokFast(inner([r]), filter)
    second.load_state_dict(saved)
    train(second, r, grads[3:])
    assert torch.equal(p, r)


def test_entries_of_others_stay_in_the_state(each_backend):
    p = parameter()
    opt = GrokFastAdamW([p])
    opt.state["k"] = 1
    opt.state["table"] = {"a": 2}
    take_steps(opt, p, [torch.ones(3)] * 2)
    saved = opt.state_dict()
    assert saved["state"]["k"] == 1
    assert saved["state"]["table"] == {"a": 2}
    q = parameter()
    other = GrokFastAdamW([q])
    other.load_state_dict(saved)
    assert other.state["k"] == 1
    assert list(other.state[q]) == list(opt.state[p])


def test_group_keys_of_the_inner_optimizer_are_its_own(each_backend):
    class Theirs(Custom):
        def __init__(self, params):
            Optimizer.__init__(self, params, {"lr": 1.0, "grokfast_lamb": "theirs", "grokfast_after": 3})

    p = parameter()
    opt = GrokFast(Theirs([p]), EMA(0.5, 1.0))
    opt.add_param_group({"params": [parameter()]})
    take_steps(opt, p, [torch.ones(3)])
    assert torch.equal(p.detach(), torch.full((3,), -2.0))
    with pytest.raises(ValueError, match="grokfast_lamp"):
        opt.add_param_group({"params": [parameter()], "grokfast_lamp": 2.0})


# Where clients look for the history.


def test_a_new_state_begins_anew(each_backend):
    p = parameter((1.0, 1.0, 1.0))
    opt = GrokFast(SGD([p], lr=1.0), EMA(0.5, 1.0))
    take_steps(opt, p, [torch.ones(3)] * 3)
    opt.state = defaultdict(dict)
    before = p.detach().clone()
    take_steps(opt, p, [torch.full((3,), -2.0)])
    assert torch.equal(p.detach() - before, torch.full((3,), 4.0))


def test_wrapped_after_the_inner_optimizer_loaded(each_backend):
    for filter, dtype in ((EMA(0.5, 1.0), torch.float32), (EMA(0.5, 1.0), torch.bfloat16), (MA(2, 1.0), torch.float32)):
        p = nn.Parameter(torch.zeros(3, dtype=dtype))
        opt = GrokFast(SGD([p], lr=1.0), filter)
        take_steps(opt, p, [torch.ones(3, dtype=dtype)])
        q = nn.Parameter(p.detach().clone())
        inner = SGD([q], lr=1.0)
        inner.load_state_dict(copy.deepcopy(opt.state_dict()))
        late = GrokFast(inner, filter)
        take_steps(opt, p, [torch.zeros(3, dtype=dtype)])
        take_steps(late, q, [torch.zeros(3, dtype=dtype)])
        assert torch.equal(p, q)
        assert p[0] == (-2.5 if isinstance(filter, EMA) else -1.5)
        assert [t.dtype for t in late.state[q].values()] == [t.dtype for t in opt.state[p].values()]


def test_a_count_rounded_by_the_inner_optimizer_is_no_count():
    p = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    opt = GrokFast(SGD([p], lr=1.0), MA(2))
    take_steps(opt, p, [torch.ones(3, dtype=torch.bfloat16)])
    inner = SGD([nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))], lr=1.0)
    inner.load_state_dict(opt.state_dict())
    with pytest.raises(ValueError, match=r"must be a torch\.int64 count"):
        GrokFast(inner, MA(2))


@pytest.mark.parametrize("flatten", [False, True])
def test_an_optimizer_state_dict_of_torch_distributed(flatten, each_backend):
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    options = StateDictOptions(flatten_optimizer_state_dict=flatten)

    def fresh():
        model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(model.weight)
        return model, GrokFast(SGD(model.parameters(), lr=1.0), EMA(0.5, 1.0))

    model, opt = fresh()
    take_steps(opt, model.weight, [torch.ones(1, 1)])
    saved = copy.deepcopy(get_optimizer_state_dict(model, opt, options=options))
    other, resumed = fresh()
    other.load_state_dict(model.state_dict())
    set_optimizer_state_dict(other, resumed, saved, options=options)
    take_steps(resumed, other.weight, [torch.zeros(1, 1)])
    assert other.weight.item() == -2.5


def test_a_pickle_made_before_histories_lay_in_the_state():
    p = parameter()
    opt = GrokFast(SGD([p], lr=1.0), EMA(0.5, 1.0))
    old = {**opt.__getstate__(), "filter_state": {p: {"grokfast_ema": torch.ones(3)}}}
    again = GrokFast.__new__(GrokFast)
    again.__setstate__(old)
    take_steps(again, p, [torch.zeros(3)])
    assert torch.equal(p.detach(), torch.full((3,), -0.5))


# Derivatives of a step, and gradients of other kinds.


@pytest.mark.parametrize("filter", [EMA(0.5, 2.0), MA(2, 2.0, warmup=False)], ids=["ema", "ma"])
def test_a_differentiable_step_is_differentiated_through_the_filter(filter, each_backend):
    a = torch.tensor(2.0, requires_grad=True)
    w = torch.zeros(3, requires_grad=True).clone()
    opt = GrokFast(SGD([w], lr=0.1, differentiable=True), filter)
    for _ in range(2):
        w.grad = a * torch.ones(3)
        opt.step()
    # Both filters of a constant gradient are (1 + 2) a: w = -0.1 · 2 steps · 3 a.
    torch.testing.assert_close(w.detach(), torch.full((3,), -1.2))
    (slope,) = torch.autograd.grad(w.sum(), a)
    torch.testing.assert_close(slope, torch.tensor(-1.8))


class Hessian(Custom):
    @torch.no_grad()
    def step(self, closure=None):
        for p in self.each():
            with torch.enable_grad():
                (h,) = torch.autograd.grad(p.grad.sum(), p, retain_graph=True)
            p -= p.grad / h


def test_an_optimizer_that_needs_second_derivatives(each_backend):
    def run(opt, p):
        p.grad = None
        p.pow(4).sum().backward(create_graph=True)
        opt.step()

    p, q = parameter((1.0, 2.0, 3.0)), parameter((1.0, 2.0, 3.0))
    opt = GrokFast(Hessian([p]), EMA(lamb=0.0))
    inner = Hessian([q])
    for _ in range(2):
        run(opt, p)
        run(inner, q)
        assert torch.equal(p, q)
    opt.disable()
    run(opt, p)
    run(inner, q)
    assert torch.equal(p, q)
    opt.enable()
    opt.param_groups[0]["grokfast_lamb"] = 1.0
    with pytest.raises(RuntimeError, match=r"second derivatives.*grokfast_lamb to 0"):
        run(opt, p)
    assert torch.equal(p, q)


def test_sparse_gradients_where_nothing_is_filtered(each_backend):
    def run(wrap, **group):
        torch.manual_seed(0)
        table, dense = nn.Embedding(5, 2, sparse=True), parameter((1.0, 2.0, 3.0))
        opt = wrap(SGD([{"params": table.parameters(), **group}, {"params": [dense]}], lr=0.5))
        for _ in range(3):
            opt.zero_grad()
            (table(torch.tensor([1, 3])).sum() + dense.square().sum()).backward()
            opt.step()
        return [table.weight.detach(), dense.detach()]

    plain = run(lambda opt: opt)
    for a, b in zip(plain, run(lambda opt: GrokFast(opt, EMA(lamb=0.0)))):
        assert torch.equal(a, b)
    for option in ({"grokfast_enabled": False}, {"grokfast_lamb": 0.0}):
        off = run(lambda opt: GrokFast(opt, EMA()), **option)
        assert torch.equal(off[0], plain[0])
        assert not torch.equal(off[1], plain[1])
    with pytest.raises(TypeError, match="dense"):
        run(lambda opt: GrokFast(opt, EMA()))


def test_positional_arguments_are_those_of_torch():
    p = parameter()
    opt = GrokFastAdamW([p], 1e-2, (0.8, 0.9), 1e-7, 0.3, True)
    assert isinstance(opt, GrokFast)
    expected = AdamW([p], 1e-2, (0.8, 0.9), 1e-7, 0.3, True)
    assert {k: v for k, v in opt.param_groups[0].items() if k != "params"} == {
        k: v for k, v in expected.param_groups[0].items() if k != "params"
    }


def test_lion_takes_complex_parameters_as_pairs_of_real_ones():
    z = nn.Parameter(torch.tensor([1 + 2j, -0.5 + 0.1j]))
    x = nn.Parameter(torch.view_as_real(z.detach()).clone())
    ours, real = Lion([z], lr=0.1, weight_decay=0.3), Lion([x], lr=0.1, weight_decay=0.3)
    for i in range(3):
        z.grad = torch.tensor([0.3 - 1j, 2.0 + 0.5j]) * (i - 1.5)
        x.grad = torch.view_as_real(z.grad).clone()
        ours.step()
        real.step()
    assert torch.equal(torch.view_as_real(z.detach()), x.detach())


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_lion_takes_a_learning_rate_in_a_tensor_of_one_element(shape):
    p, q = parameter((1.0, 2.0, 3.0)), parameter((1.0, 2.0, 3.0))
    a, b = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(1.0))
    ours, plain = Lion([p, a], lr=torch.full(shape, 0.25), weight_decay=0.5), Lion([q, b], lr=0.25, weight_decay=0.5)
    for t in (p, q, a, b):
        t.grad = torch.ones_like(t)
    ours.step()
    plain.step()
    assert torch.equal(p, q)
    assert torch.equal(a, b)
