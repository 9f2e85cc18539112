"""A step that a CUDA graph can hold: nothing waits for the device, and α, λ and on/off are tensors there.

Without a GPU the same operations run on CPU tensors: in Triton's interpreter, and in plain PyTorch, around SGD (torch's
capturable optimizers refuse CPU tensors).
"""

import pytest
import torch

from grokfast import EMA, MA, GrokFast, GrokFastAdamW, backend
from grokfast.optim import Lion
from grokfast.optim.history import COUNT_KEY
from tests.optim.by_hand import histories

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = [(5,), (7, 90)]
FILTERS = {
    "EMA": EMA(0.9, 2.0),
    "MA": MA(3, 5.0),
    "MA now": MA(4, 1.5, "sum", warmup=False),
    "bf16": MA(3, ring="bfloat16"),
}


def parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(size, generator=generator).to(DEVICE, dtype)) for size in SIZES]


def gradients(steps):
    generator = torch.Generator().manual_seed(1)
    return [[torch.randn(size, generator=generator).to(DEVICE) for size in SIZES] for _ in range(steps)]


def scalar(value):
    return torch.tensor(float(value), device=DEVICE)


def take(optimizer, params, grads):
    for p, grad in zip(params, grads):
        p.grad = grad.to(p.dtype, copy=True)
    optimizer.step()


def sgd(params, **group):
    return torch.optim.SGD([{"params": params, **group}], lr=0.1, momentum=0.9)


@pytest.mark.parametrize("name", FILTERS)
def test_the_steps_are_those_of_the_ordinary_wrapper(engine, name, judge):
    filter, results = FILTERS[name], []
    for dtype, capturable in ((torch.float32, True), (torch.float32, False), (torch.float64, False)):
        params = parameters(dtype)
        optimizer = GrokFast(sgd(params), filter, capturable=capturable)
        with backend.using(engine if capturable else "reference"):
            for grads in gradients(14):
                take(optimizer, params, grads)
        results.append([p.detach() for p in params])
        if capturable:
            assert all(history[COUNT_KEY].item() == 14 for history in histories(optimizer).values())
    for got, by_torch, exact in zip(*results):
        judge(got, by_torch, exact)


@pytest.mark.parametrize("name", FILTERS)
def test_tensors_for_lamb_alpha_and_lr_are_read_at_every_step(engine, name, judge):
    """Filled anew in between, as one does between two replays of a graph."""
    filter, results = FILTERS[name], []
    for dtype, capturable in ((torch.float32, True), (torch.float32, False), (torch.float64, False)):
        params = parameters(dtype)
        group = {"grokfast_lamb": scalar(0.5), "grokfast_alpha": scalar(0.5)} if capturable else {}
        optimizer = GrokFast(sgd(params, **group), filter, capturable=capturable)
        for step, grads in enumerate(gradients(8)):
            lamb, alpha = (0.5, 0.5) if step < 5 else (3.0, 0.75)
            if capturable:
                group["grokfast_lamb"].fill_(lamb)
                group["grokfast_alpha"].fill_(alpha)
            else:
                optimizer.param_groups[0].update(grokfast_lamb=lamb, grokfast_alpha=alpha)
            with backend.using(engine if capturable else "reference"):
                take(optimizer, params, grads)
        results.append([p.detach() for p in params])
    for got, by_torch, exact in zip(*results):
        judge(got, by_torch, exact)


@pytest.mark.parametrize("name", FILTERS)
def test_off_is_no_filter_and_on_again_begins_anew(engine, name, judge):
    filter, results = FILTERS[name], []
    for dtype, capturable in ((torch.float32, True), (torch.float32, False), (torch.float64, False)):
        params = parameters(dtype)
        switch = scalar(1)
        optimizer = GrokFast(
            sgd(params, **({"grokfast_enabled": switch} if capturable else {})), filter, capturable=capturable
        )
        for step, grads in enumerate(gradients(13)):
            is_on = not 5 <= step < 7
            if capturable:
                switch.fill_(is_on)
            else:
                optimizer.param_groups[0]["grokfast_enabled"] = is_on
            with backend.using(engine if capturable else "reference"):
                take(optimizer, params, grads)
            if capturable and not is_on:
                assert all(history[COUNT_KEY].item() == 0 for history in histories(optimizer).values())
        results.append([p.detach() for p in params])
    for got, by_torch, exact in zip(*results):
        judge(got, by_torch, exact)


def test_an_off_filter_passes_the_gradient_on_bit_for_bit(engine):
    results = []
    for wrapped in (True, False):
        params = parameters()
        inner = sgd(params, **({"grokfast_enabled": scalar(0)} if wrapped else {}))
        optimizer = GrokFast(inner, EMA(), capturable=True, write_grad=True) if wrapped else inner
        for grads in gradients(3):
            take(optimizer, params, grads)
        results.append([p.detach() for p in params])
    assert all(torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("saved_as", [True, False])
def test_a_state_dict_goes_on_with_and_without(engine, name, saved_as, judge):
    filter, results = FILTERS[name], []
    for dtype, changes in ((torch.float32, True), (torch.float32, False), (torch.float64, False)):
        params = parameters(dtype)
        with backend.using(engine if changes else "reference"):
            optimizer = GrokFast(sgd(params), filter, capturable=changes and saved_as)
            for step, grads in enumerate(gradients(9)):
                if changes and step == 5:
                    saved = optimizer.state_dict()
                    optimizer = GrokFast(sgd(params), filter, capturable=not saved_as)
                    optimizer.load_state_dict(saved)
                take(optimizer, params, grads)
        results.append([p.detach() for p in params])
    for got, by_torch, exact in zip(*results):
        judge(got, by_torch, exact)


def test_before_the_first_step_of_a_loaded_state(engine):
    """A state dict asked for before any gradient loads as no history."""
    params = parameters()
    optimizer = GrokFast(sgd(params), EMA(0.9, 2.0), capturable=True)
    optimizer.load_state_dict(optimizer.state_dict())
    grads = gradients(1)[0]
    before = [p.detach().clone() for p in params]
    take(optimizer, params, grads)
    for p, was, grad in zip(params, before, grads):
        torch.testing.assert_close(p.detach(), was - 0.1 * 3 * grad)


def test_the_inner_optimizer_says_that_it_is_capturable():
    assert GrokFastAdamW(parameters(), capturable=True).capturable
    assert not GrokFastAdamW(parameters()).capturable
    with pytest.raises(ValueError, match=r"capturable=True needs AdamW\(\.\.\., capturable=True\)"):
        GrokFast(torch.optim.AdamW(parameters()), capturable=True)
    with pytest.raises(TypeError, match="capturable must be True or False, got 1"):
        GrokFast(Lion(parameters()), capturable=1)


@pytest.mark.parametrize("option", [{"start_step": 3}, {"start_when": lambda step: True}])
def test_a_start_counted_on_the_host_is_refused(option):
    with pytest.raises(ValueError, match=r"start_step=.*make grokfast_enabled a 0-dim tensor"):
        GrokFast(Lion(parameters()), EMA(), capturable=True, **option)
    with pytest.raises(ValueError, match="start_step="):
        GrokFastAdamW(parameters(), capturable=True, **option)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(2), r"grokfast_lamb must be .* got shape \(2,\)"),
        (torch.zeros((), dtype=torch.float64), "torch.float64"),
        (torch.zeros((), device="meta"), "on meta"),
    ],
)
def test_a_tensor_that_no_kernel_could_read_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        GrokFast(sgd(parameters(), grokfast_lamb=value), capturable=True)


def test_tensors_need_capturable():
    with pytest.raises(TypeError, match="grokfast_lamb may be a tensor only with capturable=True"):
        GrokFast(sgd(parameters(), grokfast_lamb=scalar(1)))


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("kernels", ["reference", "triton", "cuda"])
@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("name", FILTERS)
def test_a_whole_training_step_in_a_graph(name, set_to_none, kernels):
    """Replays give what the same number of ordinary steps gives, bit for bit."""
    x = torch.randn(32, 90, device=DEVICE)
    results = []
    with backend.using(kernels):
        for captured in (False, True):
            torch.manual_seed(0)
            net = torch.nn.Sequential(torch.nn.Linear(90, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8)).to(DEVICE)
            lr, lamb = torch.tensor(1e-2, device=DEVICE), scalar(2)
            groups = [{"params": list(net.parameters()), "grokfast_lamb": lamb}]
            optimizer = GrokFastAdamW(groups, lr=lr, capturable=True, filter=FILTERS[name])

            def step(net=net, optimizer=optimizer):
                optimizer.zero_grad(set_to_none=set_to_none)
                net(x).square().mean().backward()
                optimizer.step()

            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    step()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            if captured:
                optimizer.zero_grad(set_to_none=set_to_none)
                with torch.cuda.graph(graph):
                    step()
            for i in range(10):
                lr.fill_(1e-2 / (i + 1))
                lamb.fill_(i / 2)
                if captured:
                    graph.replay()
                else:
                    step()
            results.append([p.detach().clone() for p in net.parameters()])
            counts = [history[COUNT_KEY].item() for history in histories(optimizer).values()]
            assert set(counts) == {13}
    assert all(torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_parameters_on_two_gpus():
    params = [torch.nn.Parameter(torch.ones(100, device=f"cuda:{i}")) for i in (0, 1)]
    optimizer = GrokFast(torch.optim.AdamW(params), EMA())
    for p in params:
        p.grad = torch.ones_like(p)
    for _ in range(3):
        optimizer.step()
    assert torch.equal(params[0].detach().cpu(), params[1].detach().cpu())
