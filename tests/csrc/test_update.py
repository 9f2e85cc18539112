"""The one-pass update on raw pointers, on every engine: each rule after each filter, for any number of tensors."""

import math
from array import array

import pytest
import torch

from tests.csrc.updates import (
    ADAM,
    CASES,
    FILTERS,
    LION,
    RULES,
    SGD,
    SIZES,
    STEPS,
    VARIED,
    WINDOW,
    Tensors,
    hyper_row,
    judge_all,
    problem,
    references,
    run,
)


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
