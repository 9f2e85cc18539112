"""Random parameters, groups, dtypes, missing gradients and orders of calls, against the filter by hand in fp64."""

import copy

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grokfast import EMA, MA, GrokFast

LAMB = st.floats(0, 5)  # near λ = -1 the filtered gradient is a rounding error, of which Adam would make a whole step
FILTERS = st.one_of(
    st.builds(EMA, st.floats(0, 1), LAMB),
    st.builds(MA, st.integers(1, 4), LAMB, st.sampled_from(["mean", "sum"]), st.booleans()),
)
INNER = {
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.1),
    "adam": lambda groups: torch.optim.Adam(groups, lr=1e-2, weight_decay=0.1, betas=(0.5, 0.7)),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.9, weight_decay=0.1, nesterov=True),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, lr=1e-2),
}
STEP = st.tuples(st.just("step"), st.sets(st.integers(0, 3), max_size=2))  # the parameters without a gradient
EVENTS = st.one_of(
    *[STEP] * 4,
    st.tuples(st.just("toggle"), st.tuples(st.integers(0, 1), st.none())),
    st.tuples(st.just("lamb"), st.tuples(st.integers(0, 1), LAMB)),
    st.tuples(st.just("reload"), st.none()),
    st.tuples(st.just("copy"), st.none()),
)


class ByHand:
    """An inner optimizer whose gradients somebody has filtered, keeping every past gradient."""

    def __init__(self, inner, groups, filter):
        self.inner, self.filter, self.past = inner(groups), filter, {}

    def step(self):
        raw = {}
        for group in self.inner.param_groups:
            lamb = group.get("grokfast_lamb", self.filter.lamb)
            for p in group["params"]:
                if not group.get("grokfast_enabled", True):
                    self.past.pop(p, None)
                elif p.grad is not None:
                    raw[p] = p.grad
                    self.past.setdefault(p, []).append(p.grad.clone())
                    p.grad = p.grad + lamb * self.slow(self.past[p])
        self.inner.step()
        for p, grad in raw.items():
            p.grad = grad

    def slow(self, past):
        if isinstance(self.filter, EMA):
            ema = past[0]
            for grad in past:
                ema = self.filter.alpha * ema + (1 - self.filter.alpha) * grad
            return ema
        window = past[-self.filter.window_size :]
        if self.filter.warmup and len(window) < self.filter.window_size:
            return torch.zeros_like(window[0])
        return sum(window) / len(window) if self.filter.filter_type == "mean" else sum(window)


def groups_of(params):
    return [{"params": params[:2]}, {"params": params[2:]}]


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    filter=FILTERS,
    inner=st.sampled_from(sorted(INNER)),
    events=st.lists(EVENTS, min_size=6, max_size=16),
    shapes=st.lists(st.sampled_from([(), (1,), (3, 5), (17,), (2, 1, 4)]), min_size=4, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**31),
)
def test_wrapper_is_the_filter_by_hand(filter, inner, events, shapes, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    start = [torch.randn(shape, generator=generator) for shape in shapes]
    ours, torchs, exact = ([torch.nn.Parameter(t.to(d)) for t in start] for d in (dtype, dtype, torch.float64))
    optimizer = GrokFast(INNER[inner](groups_of(ours)), filter)
    hands = [ByHand(INNER[inner], groups_of(params), filter) for params in (torchs, exact)]
    for event, what in events:
        if event == "step":
            grads = [torch.randn(shape, generator=generator) for shape in shapes]
            for params in (ours, torchs, exact):
                for i, (p, grad) in enumerate(zip(params, grads)):
                    p.grad = None if i in what else grad.to(p.dtype)
            optimizer.step()
            for hand in hands:
                hand.step()
            for p, grad in zip(ours, grads):
                assert p.grad is None or torch.equal(p.grad, grad.to(dtype))
        elif event in ("toggle", "lamb"):
            number, lamb = what
            for groups in (optimizer.param_groups, *(hand.inner.param_groups for hand in hands)):
                if event == "lamb":
                    groups[number]["grokfast_lamb"] = lamb
                else:
                    groups[number]["grokfast_enabled"] = not groups[number].get("grokfast_enabled", True)
        elif event == "reload":
            fresh = GrokFast(INNER[inner](groups_of(ours)), filter)
            fresh.load_state_dict(optimizer.state_dict())
            optimizer = fresh
        else:
            grads = [p.grad for p in ours]
            optimizer = copy.deepcopy(optimizer)
            ours = [p for group in optimizer.param_groups for p in group["params"]]
            for p, grad in zip(ours, grads):
                p.grad = grad
    for p, q, r in zip(ours, torchs, exact):
        # In fp64 both are torch's own arithmetic in another order. In fp32 torch's error is the measure; the floor is a
        # rounding a step of the largest value, for when torch happens to round exactly.
        floor = 1e-9 if dtype is torch.float64 else torch.finfo(dtype).eps * len(events) * (1 + r.abs().max())
        assert (p - r).abs().max() <= 2 * (q - r).abs().max() + floor
