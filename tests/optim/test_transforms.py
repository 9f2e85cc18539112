"""Any transforms in the wrapper: a parameter at a time, with their state beside the optimizer's."""

import copy
import io
import pickle

import pytest
import torch

from grokfast import EMA, MA, GrokFast, GrokFastAdamW
from grokfast.optim import Lion
from grokfast.transforms import Chain
from tests.transforms.own import Clamp, Host, Orthogonal, Reshapes, Returns

CHAIN = Chain(Orthogonal(0.7), EMA(0.9, 2.0), Clamp(1.5))
SHAPES = ((7, 5), (7,), ())


def parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in SHAPES
    ]


def gradients(step, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1 + step)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]


def made(params, filter=CHAIN, inner=torch.optim.AdamW, **options):
    return GrokFast(inner(params, lr=1e-2), filter, **options)


def train(optimizer, params, steps, dtype=torch.float32):
    for step in steps:
        for p, grad in zip(params, gradients(step, dtype)):
            p.grad = grad
        optimizer.step()


def by_hand(filter, steps, inner):
    params = parameters(torch.float64)
    optimizer, slow = inner(params, lr=1e-2), {}
    before, ema, after = filter.transforms
    for step in range(steps):
        for i, (p, grad) in enumerate(zip(params, gradients(step, torch.float64))):
            w = p.detach()
            g = grad - before.share * (grad * w).sum() / ((w * w).sum() + 1e-30) * w
            slow[i] = ema.alpha * slow[i] + (1 - ema.alpha) * g if i in slow else g
            p.grad = g + ema.lamb * slow[i]
        optimizer.step()
        w = params[0].detach()
        w.mul_((after.most / w.norm(dim=1, keepdim=True)).clamp(max=1))
    return params


@pytest.mark.parametrize("inner", [torch.optim.AdamW, torch.optim.RMSprop, Lion])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_a_chain_is_its_elements_around_the_step(inner, dtype, close):
    params = parameters(dtype)
    optimizer = made(params, inner=inner)
    train(optimizer, params, range(5), dtype)
    for p, expected, grad in zip(params, by_hand(CHAIN, 5, inner), gradients(4, dtype)):
        torch.testing.assert_close(p.detach().double(), expected.detach(), rtol=close, atol=close)
        assert torch.equal(p.grad, grad)  # raw
    state = optimizer.state[params[0]]
    assert {key for key in state if key.startswith("grokfast_")} == {
        "grokfast_count", "grokfast_0.seen", "grokfast_0.last", "grokfast_1.ema",
    }  # fmt: skip
    assert int(state["grokfast_count"]) == int(state["grokfast_0.seen"]) == 5
    assert state["grokfast_1.ema"].dtype is torch.promote_types(dtype, torch.float32)


def through_pickle(params, optimizer):
    return pickle.loads(pickle.dumps((params, optimizer)))


def through_a_copy(params, optimizer):
    return copy.deepcopy((params, optimizer))


def through_a_state_dict(params, optimizer):
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    params = [torch.nn.Parameter(p.detach().clone()) for p in params]
    further = made(params)
    further.load_state_dict(torch.load(file))
    return params, further


@pytest.mark.parametrize("through", [through_pickle, through_a_copy, through_a_state_dict])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_goes_on_to_the_same_bits(through, dtype):
    expected, params = parameters(dtype), parameters(dtype)
    train(made(expected), expected, range(6), dtype)
    optimizer = made(params)
    train(optimizer, params, range(3), dtype)
    params, further = through(params, optimizer)
    train(further, params, range(3, 6), dtype)
    assert all(torch.equal(p, q) for p, q in zip(params, expected))


def test_a_chain_of_one_filter_is_the_filter():
    for filter in (EMA(), MA(3)):
        expected, params = parameters(), parameters()
        train(made(expected, filter), expected, range(4))
        optimizer = made(params, Chain(filter))
        train(optimizer, params, range(4))
        assert all(torch.equal(p, q) for p, q in zip(params, expected))
        assert "grokfast_0.ema" not in optimizer.state[params[0]]


def test_a_parameter_without_a_gradient_is_passed_over_and_joins_later():
    params = parameters()
    optimizer = made(params)
    for step in range(4):
        for i, (p, grad) in enumerate(zip(params, gradients(step))):
            p.grad = None if i == 0 and step < 2 else grad
        before = params[0].detach().clone()
        optimizer.step()
        if step < 2:
            assert torch.equal(params[0], before)  # by no transform either
            assert params[0] not in optimizer.state
    assert [int(optimizer.state[p]["grokfast_count"]) for p in params] == [2, 4, 4]


def test_a_step_that_amp_skips_is_no_part_of_it():
    params = parameters()
    optimizer = made(params)
    train(optimizer, params, range(2))
    saved = copy.deepcopy(optimizer.state_dict()["state"][0])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    loss = sum((p * torch.tensor(float("inf"))).sum() for p in params)
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    now = optimizer.state_dict()["state"][0]
    assert all(torch.equal(now[key], saved[key]) for key in saved)


def test_groups_have_transforms_of_their_own_or_none():
    params = parameters()
    groups = [
        {"params": params[:1], "filter": CHAIN},
        {"params": params[1:2]},
        {"params": params[2:], "grokfast_enabled": False},
    ]
    optimizer = GrokFast(torch.optim.SGD(groups, lr=0.1), EMA())
    train(optimizer, params, range(3))
    keys = [sorted(key for key in optimizer.state.get(p, {}) if "grokfast" in key) for p in params]
    assert keys[0] == ["grokfast_0.last", "grokfast_0.seen", "grokfast_1.ema", "grokfast_count"]
    assert keys[1:] == [["grokfast_ema"], []]
    optimizer.disable()
    train(optimizer, params, range(1))
    assert not any("grokfast" in key for p in params for key in optimizer.state.get(p, {}))


def test_one_class_for_frameworks_takes_any():
    expected, params = parameters(), parameters()
    train(made(expected), expected, range(3))
    train(GrokFastAdamW(params, lr=1e-2, filter=CHAIN), params, range(3))
    assert all(torch.equal(p, q) for p, q in zip(params, expected))


def test_a_closure_is_transformed_whoever_evaluates_it():
    (p, *_), seen = parameters(), []

    def closure():
        p.grad = gradients(0)[0]
        seen.append(1)
        return p.sum()

    optimizer = GrokFast(torch.optim.LBFGS([p], lr=0.1, max_iter=3), Clamp(0.1))
    optimizer.step(closure)
    assert len(seen) > 1
    assert (p.norm(dim=1) <= 0.1 + 1e-6).all()


def test_what_cannot_be_is_refused():
    params = parameters()
    with pytest.raises(TypeError, match=r"filter must be grokfast.EMA\(.*or another transform, got 3"):
        made(params, 3)
    with pytest.raises(ValueError, match=r"Host.* needs the host, which a captured step does without"):
        GrokFast(torch.optim.AdamW(params, capturable=True), Host())
    with pytest.raises(ValueError, match="grokfast_lamb is for EMA or MA alone, the group's filter is Chain"):
        GrokFast(torch.optim.SGD([{"params": params, "filter": CHAIN, "grokfast_lamb": 1.0}], lr=0.1))
    for bad, why in (
        (Returns(), "Returns.apply must change grad in place"),
        (Reshapes(), "Reshapes.apply must leave grad"),
    ):
        optimizer = made(params, bad)
        with pytest.raises((TypeError, ValueError), match=why):
            train(optimizer, params, range(1))
        assert all(torch.equal(p, q) for p, q in zip(params, parameters()))
    optimizer = made(params)
    train(optimizer, params, range(1))
    with pytest.raises(ValueError, match=r"\['state'\]\[0\] holds .*grokfast_0.seen.*, but the filter is EMA"):
        made(parameters(), EMA()).load_state_dict(optimizer.state_dict())
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match="grad must be a dense tensor"):
        made(list(embedding.parameters()), inner=torch.optim.SGD).step()
