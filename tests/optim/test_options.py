"""Values of a group's own, a later start, switching on and off, gradients written back."""

import copy
import pickle

import pytest
import torch

from grokfast import EMA, MA, GrokFast, GrokFastAdamW, backend
from tests.optim.by_hand import histories

SIZES = (7, 130)


def params():
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(n, generator=generator)) for n in SIZES]


def gradients(steps):
    generator = torch.Generator().manual_seed(1)
    return [[torch.randn(n, generator=generator) for n in SIZES] for _ in range(steps)]


def run(optimizer, params, grads, before_step=lambda step: None):
    for step, step_grads in enumerate(grads):
        before_step(step)
        for p, grad in zip(params, step_grads):
            p.grad = grad.clone()
        optimizer.step()
    return [p.detach().clone() for p in params]


def alone(filter, index, grads, skip=0):
    """Parameter `index` with an optimizer of its own: the filter begins after `skip` steps."""
    p = params()[index]
    inner = torch.optim.AdamW([p], lr=1e-2)
    optimizer = GrokFast(inner, filter)
    for step, step_grads in enumerate(grads):
        p.grad = step_grads[index].clone()
        (inner if step < skip else optimizer).step()
    return p.detach()


@pytest.fixture(params=["auto", "reference"])
def engine(request):
    with backend.using(request.param):
        yield request.param


def test_groups_have_values_of_their_own(engine):
    first, second = params()
    groups = [{"params": [first], "grokfast_alpha": 0.5, "grokfast_lamb": 0.3}, {"params": [second]}]
    run(GrokFast(torch.optim.AdamW(groups, lr=1e-2), EMA()), [first, second], gradients(9))
    assert torch.equal(first.detach(), alone(EMA(0.5, 0.3), 0, gradients(9)))
    assert torch.equal(second.detach(), alone(EMA(), 1, gradients(9)))


@pytest.mark.parametrize("off", [{"grokfast_enabled": False}, {"grokfast_lamb": 0.0}])
def test_a_group_that_is_off_is_the_inner_optimizer_bit_for_bit(engine, off):
    first, second = params()
    inner = torch.optim.AdamW([{"params": [first], **off}, {"params": [second]}], lr=1e-2)
    run(GrokFast(inner, EMA()), [first, second], gradients(9))
    plain = params()
    run(torch.optim.AdamW(plain, lr=1e-2), plain, gradients(9))
    assert torch.equal(first, plain[0])
    assert not torch.equal(second, plain[1])


def test_values_are_read_at_every_step():
    p, q = params(), params()
    changing = GrokFast(torch.optim.SGD(p, lr=0.1), EMA(0.9, 1.0))

    def change(step):
        changing.param_groups[0]["grokfast_lamb"] = float(step)

    run(changing, p, gradients(6), change)
    inner, emas = torch.optim.SGD(q, lr=0.1), [g.clone() for g in gradients(6)[0]]
    for step, grads in enumerate(gradients(6)):
        for x, grad, ema in zip(q, grads, emas):
            ema.lerp_(grad, 0.1)
            x.grad = grad + step * ema
        inner.step()
    torch.testing.assert_close(p, q)


@pytest.mark.parametrize("filter", [EMA(), MA(3, 1.0)])
def test_switched_off_and_on_again_the_history_starts_anew(engine, filter):
    p = params()
    optimizer = GrokFast(torch.optim.AdamW(p, lr=1e-2), filter)
    grads = gradients(20)
    run(optimizer, p, grads[:5])
    optimizer.disable()
    run(optimizer, p, grads[5:8])
    assert not histories(optimizer)
    optimizer.enable()
    run(optimizer, p, grads[8:])

    q = params()
    inner = torch.optim.AdamW(q, lr=1e-2)
    run(GrokFast(inner, filter), q, grads[:5])
    run(inner, q, grads[5:8])
    anew = GrokFast(inner, filter)
    anew.forget()
    run(anew, q, grads[8:])
    torch.testing.assert_close(p, q, rtol=0, atol=0)


@pytest.mark.parametrize("filter", [EMA(), MA(3, 1.0)])
@pytest.mark.parametrize(
    "start",
    [{"start_step": 4}, {"start_when": lambda step: step >= 4}, {"start_step": 2, "start_when": lambda s: s == 4}],
)
def test_a_later_start(engine, filter, start):
    p = params()
    optimizer = GrokFast(torch.optim.AdamW(p, lr=1e-2), filter, **start)
    run(optimizer, p, gradients(4))
    assert not histories(optimizer)
    run(optimizer, p, gradients(9)[4:])
    for index in range(2):
        assert torch.equal(p[index].detach(), alone(filter, index, gradients(9), skip=4))


def test_start_when_is_asked_no_more_once_it_was_true():
    asked, p = [], params()

    def when(step):
        asked.append(step)
        return step == 2

    run(GrokFastAdamW(p, start_when=when), p, gradients(6))
    assert asked == [0, 1, 2]


@pytest.mark.parametrize("steps", [2, 6])
def test_how_far_the_start_is_survives_a_state_dict(steps):
    whole, part = params(), params()
    run(GrokFast(torch.optim.AdamW(whole, lr=1e-2), EMA(), start_step=4), whole, gradients(9))
    before = GrokFast(torch.optim.AdamW(part, lr=1e-2), EMA(), start_step=4)
    run(before, part, gradients(9)[:steps])
    after = GrokFast(torch.optim.AdamW(part, lr=1e-2), EMA(), start_step=4)
    after.load_state_dict(before.state_dict())
    run(after, part, gradients(9)[steps:])
    torch.testing.assert_close(part, whole, rtol=0, atol=0)


def test_the_state_of_a_plain_optimizer_begins_the_wait():
    p = params()
    plain = torch.optim.AdamW(p, lr=1e-2)
    run(plain, p, gradients(3))
    optimizer = GrokFast(torch.optim.AdamW(p, lr=1e-2), EMA(), start_step=2)
    optimizer.load_state_dict(plain.state_dict())
    run(optimizer, p, gradients(2))
    assert not histories(optimizer)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_copies_keep_the_options(duplicate):
    p = params()
    optimizer = GrokFastAdamW(p, start_step=3, write_grad=True)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)  # patches step
    run(optimizer, p, gradients(2))
    other = duplicate(optimizer)
    own = [x for group in other.param_groups for x in group["params"]]
    torch.testing.assert_close(run(other, own, gradients(5)[2:]), run(optimizer, p, gradients(5)[2:]), rtol=0, atol=0)
    assert (other.start_step, other.write_grad) == (3, True)


def test_write_grad_leaves_the_filtered_gradient():
    p = params()
    (grads,) = gradients(1)
    run(GrokFastAdamW(p, filter=EMA(0.98, 2.0), write_grad=True), p, [grads])
    torch.testing.assert_close([x.grad for x in p], [3 * g for g in grads])


def test_clipping_before_the_step_is_what_the_filter_sees():
    p, q = params(), params()
    optimizer, inner = GrokFast(torch.optim.SGD(p, lr=1.0), EMA(0.9, 2.0)), torch.optim.SGD(q, lr=1.0)
    emas = [None, None]
    for grads in gradients(5):
        for holder in (p, q):
            for x, grad in zip(holder, grads):
                x.grad = grad.clone()
            torch.nn.utils.clip_grad_norm_(holder, 0.5)
        optimizer.step()
        for i, x in enumerate(q):
            emas[i] = x.grad.clone() if emas[i] is None else torch.lerp(emas[i], x.grad, 0.1)
            x.grad = x.grad + 2 * emas[i]
        inner.step()
    torch.testing.assert_close(p, q)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: GrokFastAdamW(p, start_step=-1), "start_step must be at least 0, got -1"),
        (lambda p: GrokFastAdamW(p, start_when=3), "start_when must be callable or None, got 3"),
        (lambda p: GrokFastAdamW(p, write_grad=1), "write_grad must be True or False, got 1"),
        (lambda p: GrokFastAdamW([{"params": p, "grokfast_alpha": 1.5}]), r"alpha must be in \[0.0, 1.0\], got 1.5"),
        (lambda p: GrokFastAdamW([{"params": p, "grokfast_lamp": 1.0}]), "did you mean 'grokfast_lamb'"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make(params())


def test_a_bad_group_is_refused_and_not_added():
    p, q = params()
    optimizer = GrokFastAdamW([p])
    with pytest.raises(ValueError, match="alpha"):
        optimizer.add_param_group({"params": [q], "grokfast_alpha": -1.0})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("filters", [(EMA(0.5, 1.0), None), (EMA(0.5, 1.0), MA(2, 1.0)), (MA(2, 1.0), MA(3, 1.0))])
def test_a_group_may_have_a_filter_of_its_own(engine, filters, tmp_path):
    """As skorch's set_params(optimizer__filter=...) sets it."""

    def made():
        p, q = params(), params()
        return p, q, GrokFast(torch.optim.AdamW([{"params": p}, {"params": q}], lr=1e-2), EMA())

    p, q, optimizer = made()
    for group, filter in zip(optimizer.param_groups, filters):
        if filter is not None:
            group["filter"] = filter
    grads = gradients(8)
    run(optimizer, [*p, *q], [[*g, *g] for g in grads[:4]])
    torch.save(optimizer.state_dict(), tmp_path / "saved.pt")
    r, s, resumed = made()
    for group, filter in zip(resumed.param_groups, filters):
        if filter is not None:
            group["filter"] = filter
    resumed.load_state_dict(torch.load(tmp_path / "saved.pt"))
    for loaded, own in zip([*r, *s], [*p, *q]):
        loaded.data.copy_(own)
    run(resumed, [*r, *s], [[*g, *g] for g in grads[4:]])

    for filter, of in zip(filters, (r, s)):
        alone = params()
        run(GrokFast(torch.optim.AdamW(alone, lr=1e-2), filter or EMA()), alone, grads)
        torch.testing.assert_close(of, alone)
