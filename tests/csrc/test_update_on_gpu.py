"""The one-pass update in CUDA graphs and streams, and what it says without a GPU."""

from array import array

import pytest
import torch

from tests.csrc.updates import (
    ADAM,
    FILTERS,
    SGD,
    VARIED,
    Reference,
    Tensors,
    gpu,
    hyper_row,
    judge_all,
    problem,
    references,
    run,
)


def test_without_a_gpu_a_cuda_kernel_says_so(compiled):
    if not compiled.with_cuda:
        pytest.skip("grokfast._C was built without CUDA")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert compiled.cuda_device_count() == 0
    t = Tensors(SGD, 0, 0, [hyper_row()], [torch.ones(3)])
    with pytest.raises(RuntimeError, match="cuda_update: cudaGetDevice: "):
        compiled.cuda_update(SGD, 0, 0, t.entries(), t.params[0].data_ptr(), 0, t.tickets.data_ptr(), 0, 0)
    compiled.cuda_update(SGD, 0, 0, array("q"), 0, 0, 0, 0, 0)  # nothing to do
    assert torch.equal(t.params[0], torch.ones(3))


@pytest.mark.parametrize("filter", ["plain", "ema", "ma", "bf16"])
@pytest.mark.parametrize("count", [3, 150])
def test_a_step_can_be_captured_and_replayed(on_gpu, judge, filter, count):
    """Rates, switches and counters are read on the device at every replay."""
    filter, ring_type, more = FILTERS[filter]
    sizes, steps = tuple(1000 + 7 * i for i in range(count)), 20
    params, grads = problem(sizes, steps)
    rows = [hyper_row(**{**more, **v}) for v in VARIED]
    t = Tensors(ADAM, filter, ring_type, rows, params, device="cuda")
    rate = torch.full((), 1e-2, device="cuda")
    overrides = torch.zeros(3, 4, dtype=torch.int64)
    overrides[:, 0] = rate.data_ptr()
    overrides = overrides.cuda()
    gpu(
        on_gpu.extension, t, overrides
    )  # makes the table of hyper-parameters; gradients are zero, and then all of it is
    for tensor, p in zip(t.params, params):
        tensor.copy_(p)
    for state in t.state:
        for name in ("state1", "state2", "step", "count"):
            state[name].zero_()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gpu(on_gpu.extension, t, overrides)
    both = [
        [Reference(ADAM, filter, ring_type, dict(rows[i % 3], lr=1e-2), p, d) for i, p in enumerate(params)]
        for d in (torch.float32, torch.float64)
    ]
    for step, now in enumerate(grads):
        value = 1e-2 / (step + 1)
        rate.fill_(value)
        t.give(now)
        graph.replay()
        for own in both:
            for reference, g in zip(own, now):
                reference.optimizer.param_groups[0]["lr"] = torch.tensor(value).item()
                reference.step(g)
    judge_all(judge, t, *both)
    assert all(state["step"] == steps and state["count"] == steps for state in t.state)
    assert not t.tickets.any()


def test_a_side_stream_is_kept(on_gpu, judge):
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    rows = [hyper_row(alpha=0.98)]
    with torch.cuda.stream(side):
        t = run(on_gpu, ADAM, 1, 0, rows, (300_000,), 8)
    side.synchronize()
    judge_all(judge, t, *references(ADAM, 1, 0, (tuple(rows[0].items()),), (300_000,), 8))
