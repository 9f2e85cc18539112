"""Transforms that start later, or stop, in the wrapper: by its steps, or by moments that the script says have come."""

import copy
import io

import pytest
import torch

from grokfast import EMA, MA, GrokFast, GrokFastAdamW, NormClip, OrthoGrad
from grokfast.optim import Lion
from grokfast.transforms import Chain
from grokfast.transforms.chain import elements
from tests.transforms.own import Clamp, Orthogonal

SHAPES, STEPS, MEMORIZED = ((7, 5), (7,)), 50, 20
FILTERS = {
    "ema": EMA(0.9, 2.0, start=3, stop=30),
    "ma": MA(4, 2.0, start="memorizing", stop=41),
    "before": Orthogonal(0.7, start=7, stop="memorizing"),
    "after": Clamp(1.2, start="memorizing"),
    "chain": Chain(Orthogonal(0.7, start=9, stop=33), EMA(0.8, 1.0), Clamp(1.2, start="memorizing")),
    "chain-of-two": Chain(MA(3, 1.0, start=5), EMA(0.8, 1.0, start="memorizing", stop=45)),
}


def parameters(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in SHAPES]


def gradients(step, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1 + step)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in SHAPES]


def train(optimizer, params, steps=range(STEPS)):
    for step in steps:
        if step == MEMORIZED:
            optimizer.reach("memorizing")
        for p, grad in zip(params, gradients(step, params[0].dtype)):
            p.grad = grad
        optimizer.step()


class ByHand:
    """One transform of one tensor, from its equation; on from `start` on and before `stop`."""

    def __init__(self, transform):
        edges = (0 if transform.start is None else transform.start, transform.stop)
        self.start, self.stop = (MEMORIZED if e == "memorizing" else STEPS if e is None else e for e in edges)
        self.transform, self.slow, self.window = transform, None, []

    def __call__(self, grad, w, step):
        t = self.transform
        if not self.start <= step < self.stop:
            return
        if isinstance(t, EMA):
            self.slow = grad.clone() if self.slow is None else t.alpha * self.slow + (1 - t.alpha) * grad
            grad += t.lamb * self.slow
        elif isinstance(t, MA):
            self.window = [*self.window, grad.clone()][-t.window_size :]
            if len(self.window) == t.window_size:
                grad += t.lamb * sum(self.window) / t.window_size
        elif isinstance(t, Orthogonal):
            grad -= t.share * (w * grad).sum() / ((w * w).sum() + 1e-30) * w
        elif w.ndim == 2:
            w *= (t.most / w.norm(dim=1, keepdim=True)).clamp(max=1)


def by_hand(filter, inner):
    params = parameters()
    optimizer, own = inner(params, lr=1e-2), [[ByHand(one) for one in elements(filter)] for _ in params]
    for step in range(STEPS):
        for p, grad in zip(params, gradients(step)):
            p.grad = grad
        for when in ("before", "after"):
            for p, its in zip(params, own):
                for one in its:
                    if one.transform.when == when:
                        one(p.grad, p.detach(), step)
            if when == "before":
                optimizer.step()
    return params


def resumed(params, optimizer, inner, filter):
    """The same in another process."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    params = [torch.nn.Parameter(p.detach().clone()) for p in params]
    further = GrokFast(inner(params, lr=1e-2), filter)
    further.load_state_dict(torch.load(file))
    return params, further


@pytest.mark.parametrize("inner", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop, Lion])
@pytest.mark.parametrize("filter", FILTERS)
def test_they_are_on_from_start_to_stop_and_go_on_from_a_state_dict(filter, inner):
    params = parameters()
    optimizer = GrokFast(inner(params, lr=1e-2), FILTERS[filter])
    train(optimizer, params, range(25))
    params, optimizer = resumed(params, optimizer, inner, FILTERS[filter])
    train(optimizer, params, range(25, STEPS))
    for p, expected in zip(params, by_hand(FILTERS[filter], inner)):
        torch.testing.assert_close(p, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("filter", FILTERS)
def test_in_the_one_pass_and_beside_it_they_resume_to_the_same_bits(filter):
    through = []
    for at in (2, 15, 35, STEPS):
        params = parameters(torch.float32)
        optimizer = GrokFastAdamW(params, lr=1e-2, filter=FILTERS[filter])
        train(optimizer, params, range(at))
        params, optimizer = copy.deepcopy((params, optimizer))
        train(optimizer, params, range(at, STEPS))
        through.append(params)
    for params in through[:-1]:
        assert all(map(torch.equal, params, through[-1]))


def test_what_is_off_alone_has_no_history_and_changes_nothing():
    params, expected = parameters(torch.float32), parameters(torch.float32)
    optimizer = GrokFast(torch.optim.AdamW(params, lr=1e-2), EMA(start="generalizing"))
    inner = torch.optim.AdamW(expected, lr=1e-2)
    for step in range(5):
        for p, q, grad in zip(params, expected, gradients(step, torch.float32)):
            p.grad = q.grad = grad
        optimizer.step()
        inner.step()
    assert all(map(torch.equal, params, expected))
    assert not any(key.startswith("grokfast") for p in params for key in optimizer.state[p])


def test_a_state_dict_with_any_transform_in_a_group_is_loaded_as_plain_weights_are():
    params = parameters()
    own = Chain(OrthoGrad(0.5, start=2), EMA(stop="memorizing"), NormClip())
    optimizer = GrokFast(torch.optim.SGD([{"params": params, "filter": own}], lr=0.1))
    train(optimizer, params, range(3))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    assert torch.load(file, weights_only=True)["param_groups"][0]["filter"] == own


def test_groups_start_at_their_own_time():
    params = parameters()
    groups = [{"params": params[:1], "filter": EMA(start=2)}, {"params": params[1:]}]
    optimizer = GrokFast(torch.optim.SGD(groups, lr=0.1), EMA(start=4))
    had = []
    for step in range(6):
        train(optimizer, params, [step])
        had.append(["grokfast_ema" in optimizer.state.get(p, {}) for p in params])
    assert had == [[False, False]] * 2 + [[True, False]] * 2 + [[True, True]] * 2


def test_what_cannot_be_is_refused():
    params = parameters()
    with pytest.raises(ValueError, match=r"EMA\(.*start=3\) counts steps on the host, which a captured step does with"):
        GrokFast(torch.optim.AdamW(params, capturable=True), EMA(start=3))
    optimizer = GrokFast(torch.optim.AdamW(params), EMA(start="memorizing"))
    with pytest.raises(ValueError, match="moment must be one of 'memorizing', 'generalizing', got 'memorised'"):
        optimizer.reach("memorised")
    assert not any("grokfast_memorizing" in group for group in optimizer.param_groups)
