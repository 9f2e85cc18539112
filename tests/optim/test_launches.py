"""One launch for filter and update: Triton's kernels, and with a GPU CUDA's, against the filter by hand in fp64.

Without a GPU Triton's interpreter runs the kernels on CPU tensors.
"""

import copy

import pytest
import torch

from grokfast import EMA, MA, GrokFast, backend
from grokfast.optim import Lion
from grokfast.optim.passes import OnDevice
from grokfast.transforms.sizes import BLOCK, chunk_size, slice_size
from tests.optim.by_hand import histories

pytest.importorskip("triton")

HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
SIZES = [(1,), (63,), (7, 100), (1025,)]
ADAM = {"lr": 1e-2, "betas": (0.9, 0.98), "weight_decay": 0.1}
INNER = {
    "AdamW": lambda ps: torch.optim.AdamW(ps, **ADAM),
    "Adam with L2": lambda ps: torch.optim.Adam(ps, **ADAM, maximize=True),
    "SGD": lambda ps: torch.optim.SGD(ps, lr=0.1, weight_decay=0.1),
    "SGD with momentum": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, weight_decay=0.1),
    "SGD with Nesterov": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, nesterov=True),
    "Lion": lambda ps: Lion(ps, lr=1e-2, weight_decay=0.1),
}
FILTERS = {
    "EMA": EMA(0.9, 2.0),
    "MA": MA(3, 5.0),
    "MA sum, no warm-up": MA(2, 1.5, "sum", warmup=False),
    "MA in bf16": MA(3, 5.0, ring="bfloat16"),
    "MA on the host": MA(3, 5.0, ring="host"),
}


@pytest.fixture(params=["triton", pytest.param("cuda", marks=pytest.mark.gpu)])
def kernels(request):
    """Runs the test on Triton's kernels and, with a GPU and an extension that has them, on CUDA's."""
    with backend.using(request.param):
        if backend.device_kernels(torch.device(DEVICE, 0) if HAS_GPU else torch.device("cpu")) != request.param:
            pytest.skip(f"no {request.param} kernels: no GPU, or an extension built without CUDA")
        yield request.param


def parameters(dtype=torch.float32, sizes=SIZES):
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(size, generator=generator).to(DEVICE, dtype)) for size in sizes]


def gradients(steps, dtype=torch.float32, sizes=SIZES):
    generator = torch.Generator().manual_seed(1)
    return [[torch.randn(size, generator=generator).to(DEVICE, dtype) for size in sizes] for _ in range(steps)]


def run(params, optimizer, grads, before=lambda step: None):
    for step, now in enumerate(grads):
        before(step)
        for p, grad in zip(params, now):
            p.grad = None if grad is None else grad.to(p.dtype, copy=True)
        optimizer.step()
    return [p.detach() for p in params]


def by_hand(make, filter, grads, dtype, sizes=SIZES, start_dtype=None):
    """The same steps in plain PyTorch, filter first, in another precision."""
    params = [torch.nn.Parameter(p.detach().to(dtype)) for p in parameters(start_dtype or torch.float32, sizes)]
    with backend.using("reference"):
        return run(params, GrokFast(make(params), filter), grads)


def is_launched(optimizer):
    return any(isinstance(part, OnDevice) for made in optimizer._filtering.passes.made.values() for part in made.parts)


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("inner", INNER)
def test_a_launch_is_the_filter_and_the_update(kernels, inner, filter, judge, poisoned):
    make, filter, grads = INNER[inner], FILTERS[filter], gradients(5)
    params = parameters()
    optimizer = GrokFast(make(params), filter)
    got = run(params, optimizer, grads)
    assert is_launched(optimizer)
    exact, by_torch = (by_hand(make, filter, grads, dtype) for dtype in (torch.float64, torch.float32))
    for one, two, truth in zip(got, by_torch, exact):
        judge(one, two, truth)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("filter", ["EMA", "MA"])
def test_half_precision_keeps_its_history_in_fp32(kernels, filter, dtype, judge):
    if kernels == "cuda":
        pytest.skip("the CUDA kernel is for fp32; others go to plain PyTorch")
    make, filter, grads = INNER["AdamW"], FILTERS[filter], gradients(4, dtype)
    params = parameters(dtype)
    optimizer = GrokFast(make(params), filter)
    got = run(params, optimizer, grads)
    assert is_launched(optimizer)
    exact = by_hand(make, filter, grads, torch.float64, start_dtype=dtype)
    by_torch = by_hand(make, filter, grads, dtype, start_dtype=dtype)
    for one, two, truth in zip(got, by_torch, exact):
        judge(one, two, truth)
    for history in histories(optimizer).values():
        assert {t.dtype for t in history.values()} <= {torch.float32, torch.int64}


def test_groups_have_values_of_their_own_and_a_late_parameter_its_own_step(kernels, judge):
    def make(ps):
        return torch.optim.AdamW([{"params": ps[:1], "grokfast_alpha": 0.5, "lr": 0.1}, {"params": ps[1:]}], **ADAM)

    grads = gradients(6)
    grads[0][2] = grads[1][2] = grads[4][2] = None
    params = parameters()
    optimizer = GrokFast(make(params), EMA(0.9, 2.0))
    got = run(params, optimizer, grads)
    assert is_launched(optimizer)
    assert [int(optimizer.state[p]["step"]) for p in params] == [6, 6, 3, 6]
    exact, by_torch = (by_hand(make, EMA(0.9, 2.0), grads, dtype) for dtype in (torch.float64, torch.float32))
    for one, two, truth in zip(got, by_torch, exact):
        judge(one, two, truth)


def test_memory_that_is_not_aligned_or_contiguous(kernels, judge):
    def lay_out(t):
        whole = torch.empty(t.numel() + 1, dtype=t.dtype, device=t.device)
        shifted = whole[1:].view(t.shape).copy_(t)
        return shifted.t() if t.dim() == 2 else shifted  # transposed: dense, in another order

    sizes = [(600,), (20, 31), (64, 16)]
    params = [torch.nn.Parameter(lay_out(p.detach())) for p in parameters(sizes=sizes)]
    grads = [[lay_out(g) for g in now] for now in gradients(4, sizes=sizes)]
    optimizer = GrokFast(torch.optim.AdamW(params, **ADAM), MA(2, 1.5))
    for now in grads:
        for p, grad in zip(params, now):
            p.grad = grad
        optimizer.step()
    assert is_launched(optimizer)
    assert not params[1].is_contiguous()
    assert optimizer.state[params[1]]["exp_avg"].stride() == params[1].stride()
    plain = [[g.t() if g.dim() == 2 else g for g in now] for now in grads]
    exact, by_torch = (
        by_hand(INNER["AdamW"], MA(2, 1.5), plain, dtype, sizes) for dtype in (torch.float64, torch.float32)
    )
    for one, two, truth in zip(params, by_torch, exact):
        one = one.detach()
        judge(one.t() if one.dim() == 2 else one, two, truth)


def test_a_parameter_with_gaps_takes_the_plain_path(kernels):
    wide = torch.randn(8, 4, device=DEVICE)
    p = torch.nn.Parameter(wide[:, :2])
    before = wide.clone()
    optimizer = GrokFast(torch.optim.AdamW([p], **ADAM), EMA())
    p.grad = torch.ones(8, 2, device=DEVICE)
    optimizer.step()
    assert not is_launched(optimizer)
    assert torch.equal(wide[:, 2:], before[:, 2:])
    assert not torch.equal(wide[:, :2], before[:, :2])


def test_the_sum_is_made_anew_and_outlives_an_overflow(kernels):
    """An element of 3e38 overflows the window's sum; five windows later nothing of it is left."""
    p = torch.nn.Parameter(torch.zeros(600, device=DEVICE))
    optimizer = GrokFast(torch.optim.SGD([p], lr=0.0), MA(2, 1.0))
    optimizer.step()
    for step in range(2 + 4 * 2 + 1):
        p.grad = torch.full((600,), 3e38 if step < 2 else 1.0, device=DEVICE)
        optimizer.step()
    assert is_launched(optimizer)
    assert optimizer.state[p]["grokfast_sum"].eq(2).all()


def test_the_filter_alone_runs_before_any_other_optimizer(kernels, judge):
    def make(ps):
        return torch.optim.RMSprop(ps, lr=1e-2)

    grads, params = gradients(4), parameters()
    optimizer = GrokFast(make(params), MA(2, 1.5))
    got = run(params, optimizer, grads)
    assert is_launched(optimizer)
    assert all(torch.equal(p.grad, grad) for p, grad in zip(params, grads[-1]))
    exact, by_torch = (by_hand(make, MA(2, 1.5), grads, dtype) for dtype in (torch.float64, torch.float32))
    for one, two, truth in zip(got, by_torch, exact):
        judge(one, two, truth)


@pytest.mark.parametrize("filter", ["EMA", "MA", "MA in bf16"])
def test_a_state_dict_goes_on_on_the_plain_path_and_back(kernels, filter, judge):
    make, filter, grads = INNER["AdamW"], FILTERS[filter], gradients(7)
    params = parameters()
    optimizer = GrokFast(make(params), filter)
    run(params, optimizer, grads[:4])
    others = [torch.nn.Parameter(p.detach().clone()) for p in params]
    plain = GrokFast(make(others), filter)
    with backend.using("reference"):
        plain.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        run(others, plain, grads[4:6])
    optimizer.load_state_dict(plain.state_dict())
    for p, other in zip(params, others):
        p.detach().copy_(other.detach())
    got = run(params, optimizer, grads[6:])
    exact, by_torch = (by_hand(make, filter, grads, dtype) for dtype in (torch.float64, torch.float32))
    for one, two, truth in zip(got, by_torch, exact):
        judge(one, two, truth)


def test_launches_are_found_again_but_not_after_memory_moved(kernels):
    params, grads = parameters(), gradients(1)[0]
    optimizer = GrokFast(torch.optim.AdamW(params, **ADAM), EMA())
    for p, grad in zip(params, grads):
        p.grad = grad
    for _ in range(3):
        optimizer.step()
    (made,) = optimizer._filtering.passes.made.values()
    (part,) = made.parts
    assert len(part.launches) == 1

    params[0].grad = grads[0].clone()  # another place: another table, the rest stays
    optimizer.step()
    params[0].grad = grads[0]
    optimizer.step()
    assert len(part.launches) == 2
    assert list(optimizer._filtering.passes.made.values()) == [made]

    params[0].data = params[0].detach().clone()
    optimizer.step()
    (moved,) = optimizer._filtering.passes.made.values()
    assert moved is not made

    fresh = torch.zeros_like(params[0])
    optimizer.state[params[0]]["exp_avg"] = fresh
    optimizer.step()
    assert fresh.any()  # the new tensor was written, not the one that was there


def test_gradients_of_another_order_in_memory_take_the_plain_path(kernels, judge):
    """Square, so that the transposed gradient has the shape; its memory may lie where the last one lay."""
    p = torch.nn.Parameter(torch.zeros(20, 20, device=DEVICE))
    optimizer = GrokFast(torch.optim.SGD([p], lr=1.0), EMA(0.5, 1.0))
    grad = torch.randn(20, 20, device=DEVICE)
    p.grad = grad
    optimizer.step()
    before = p.detach().clone()
    p.grad = grad.t()
    optimizer.step()
    ema = 0.5 * grad + 0.5 * grad.t()
    torch.testing.assert_close(p.detach(), before - (grad.t() + ema))


def test_the_same_steps_give_the_same_bits(kernels):
    results = []
    for _ in range(2):
        params = parameters()
        results.append(run(params, GrokFast(torch.optim.AdamW(params, **ADAM), MA(3, 5.0)), gradients(5)))
    assert all(torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.parametrize("sizes", [[(0,), (5,)]])
def test_an_empty_tensor_counts_its_steps(kernels, sizes):
    params = parameters(sizes=sizes)
    optimizer = GrokFast(torch.optim.AdamW(params, **ADAM), EMA())
    run(params, optimizer, gradients(2, sizes=sizes))
    assert is_launched(optimizer)
    assert [int(optimizer.state[p]["step"]) for p in params] == [2, 2]


def test_chunks_and_slices():
    assert chunk_size(227_000) < chunk_size(10_000_000)
    for window in (1, 5, 100, 3000):
        size = slice_size(window)
        assert size & (size - 1) == 0
        assert BLOCK % size == 0
        assert size * 4 * window >= BLOCK  # every element has its turn


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")
def test_a_step_on_a_side_stream_waits_for_what_was_queued_there(kernels):
    results = []
    for stream in (torch.cuda.current_stream(), torch.cuda.Stream()):
        params = parameters(sizes=[(1_000_000,)])
        optimizer = GrokFast(torch.optim.AdamW(params, **ADAM), EMA())
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            for step in range(5):
                grad = torch.full((1_000_000,), float(step), device=DEVICE)
                for _ in range(20):  # keeps the stream busy
                    grad = grad * 1.01
                params[0].grad = grad
                optimizer.step()
        torch.cuda.synchronize()
        results.append(params[0].detach().clone())
    assert torch.equal(*results)


@pytest.mark.gpu
@pytest.mark.skipif(
    not HAS_GPU or torch.cuda.get_device_properties(0).total_memory < 48e9, reason="needs a GPU with 48 GB"
)
def test_more_elements_than_32_bits_count(kernels):
    size = 2**31 + 1027
    p = torch.nn.Parameter(torch.zeros(size, device=DEVICE))
    p.grad = torch.zeros(size, device=DEVICE)
    p.grad[-1] = p.grad[2**31 - 1] = 1
    optimizer = GrokFast(torch.optim.SGD([p], lr=1.0), EMA(0.9, 2.0))
    optimizer.step()
    assert is_launched(optimizer)
    assert p.detach()[[0, 2**31 - 1, 2**31, -1]].tolist() == [0, -3, 0, -3]
