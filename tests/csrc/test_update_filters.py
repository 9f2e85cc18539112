"""The filters of the one-pass update: in place, off and on again, in bf16, summed anew."""

from collections import deque

import pytest
import torch

from tests.csrc.updates import ADAM, FILTERS, NONE, Reference, Tensors, hyper_row, problem


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
