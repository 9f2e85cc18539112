"""Clients move, replace, shrink and free memory between two steps: a step never works on memory that is not there."""

import copy
import weakref

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from grokfast import EMA, MA, GrokFast
from grokfast.optim import Lion
from grokfast.optim.history import COUNT_KEY, EMA_KEY, RING_KEY, SUM_KEY
from grokfast.optim.slots import Work, fits
from grokfast.transforms.rows import ADAM

SIZE = 50


def offload(t):
    kept = t.detach().clone()
    storage = t.untyped_storage()
    size = storage.nbytes()
    storage.resize_(0)
    storage.resize_(size)
    t.data.copy_(kept)


def replace_data(t):
    t.data = t.data.clone()


def set_memory(t):
    with torch.no_grad():
        t.set_(t.detach().clone())


def swap(t):
    torch.utils.swap_tensors(t, type(t)(t.detach().clone()) if isinstance(t, nn.Parameter) else t.detach().clone())


MOVES = {"share_memory_": torch.Tensor.share_memory_, "offload": offload, "data": replace_data, "set_": set_memory}
MOVES["swap_tensors"] = swap
INNER = {
    "adamw": lambda p: AdamW([p], lr=0.1),
    "sgd": lambda p: SGD([p], lr=0.1, momentum=0.9),
    "lion": lambda p: Lion([p], lr=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop([p], lr=0.1),  # the filter alone
}


def run(opt, p, n, first=0):
    for step in range(first, first + n):
        grad = torch.randn(SIZE, generator=torch.Generator().manual_seed(step))
        p.grad = grad
        opt.step()


def made(inner, filter):
    p = nn.Parameter(torch.linspace(-1, 1, SIZE))
    return GrokFast(INNER[inner](p), filter), p


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("filter", [EMA(), MA(3, warmup=False)], ids=["ema", "ma"])
@pytest.mark.parametrize("inner", INNER)
def test_moved_memory_is_found_where_it_is_now(inner, filter, move, each_backend):
    (opt, p), (other, q) = made(inner, filter), made(inner, filter)
    run(opt, p, 3)
    run(other, q, 3)
    for t in (p, *opt.state[p].values()):
        MOVES[move](t)
    run(opt, p, 3, 3)
    run(other, q, 3, 3)
    assert torch.equal(p, q)
    saved, expected = opt.state_dict()["state"][0], other.state_dict()["state"][0]
    assert list(saved) == list(expected)
    assert all(torch.equal(saved[name], expected[name]) for name in saved)


@pytest.mark.parametrize("name", [EMA_KEY, "exp_avg", "exp_avg_sq", "step"])
def test_device_tables_follow_moved_memory(name, engine):
    (opt, p), (other, q) = made("adamw", EMA()), made("adamw", EMA())
    run(opt, p, 2)
    run(other, q, 2)
    replace_data(opt.state[p][name])
    run(opt, p, 2, 2)
    run(other, q, 2, 2)
    assert torch.equal(p, q)
    assert torch.equal(opt.state[p][name], other.state[q][name])


@pytest.mark.parametrize("whose", ["parameter", "gradient", "exp_avg", EMA_KEY])
def test_memory_that_became_shorter_is_refused_as_by_torch(whose, compiled):
    buffer, around = torch.full((SIZE,), 7.0), torch.full((SIZE,), 7.0)
    opt, p = made("adamw", EMA())
    p.data = buffer
    run(opt, p, 3)
    after = buffer.clone()
    shortened = {"parameter": p, "exp_avg": opt.state[p]["exp_avg"], EMA_KEY: opt.state[p][EMA_KEY]}
    if whose == "gradient":
        p.grad.data = around[:10]
    else:
        t = shortened[whose]
        t.data = t.data[:10]
    before = {name: t.clone() for name, t in opt.state[p].items()}
    with pytest.raises((ValueError, RuntimeError)):
        opt.step()
    if whose != "exp_avg":  # then torch raises, in the middle of its own step
        assert torch.equal(buffer, after)
        assert all(torch.equal(t, before[name]) for name, t in opt.state[p].items())


def test_a_storage_too_small_for_its_tensor_fits_no_kernel():
    opt, p = made("adamw", EMA())
    run(opt, p, 3)
    work = Work(0, opt.param_groups[0], p, EMA())
    assert fits(ADAM, work, opt.state[p], (torch.float32,))
    opt.state[p]["exp_avg"].untyped_storage().resize_(8)
    assert not fits(ADAM, work, opt.state[p], (torch.float32,))


@pytest.mark.parametrize("inner", INNER)
def test_nothing_that_clients_let_go_is_kept(inner, each_backend):
    opt, p = made(inner, MA(3))
    run(opt, p, 3)
    refs = [weakref.ref(t) for t in opt.state[p].values()]
    opt.state.clear()
    assert [ref() for ref in refs] == [None] * len(refs)


@pytest.mark.parametrize("count", [2**63 - 1, 2**53 + 1, -1])
def test_a_count_beyond_its_bounds_is_refused_with_nothing_changed(count, each_backend):
    opt, p = made("adamw", MA(3))
    run(opt, p, 3)
    bad = copy.deepcopy(opt.state_dict())
    bad["state"][0][COUNT_KEY].fill_(count)
    before = copy.deepcopy(opt.state_dict())
    with pytest.raises(ValueError, match=r"count between 0 and 2\*\*53"):
        opt.load_state_dict(bad)
    after = opt.state_dict()["state"][0]
    assert all(torch.equal(after[name], before["state"][0][name]) for name in before["state"][0])

    opt.state[p][COUNT_KEY].fill_(count)  # or by a client, in place
    weights = p.detach().clone()
    with pytest.raises(ValueError, match="count"):
        opt.step()
    assert torch.equal(p, weights)


@pytest.mark.parametrize("key", [RING_KEY, SUM_KEY])
def test_a_history_that_lost_a_part_is_refused(key, each_backend):
    opt, p = made("adamw", MA(3))
    run(opt, p, 3)
    del opt.state[p][key]
    with pytest.raises(ValueError, match=r"state\[p\] holds"):
        run(opt, p, 1)
