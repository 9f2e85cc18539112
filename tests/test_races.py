"""The kernels' results do not depend on the order of a launch's programs, nor on which of its threads comes first."""

import numpy as np
import pytest
import torch

from grokfast import EMA, MA, Experiment, backend, ops
from grokfast.parts import find
from grokfast.training.ensemble import Ensemble
from grokfast.training.outcome import Outcome
from grokfast.training.replay import Replay
from grokfast.transforms.flat import FlatOptimizer

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from grokfast.ops.pair_step import launches  # noqa: E402
from tests.races import watching  # noqa: E402

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="watches Triton's interpreter")


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def a_step(**changes):
    """Two models' gradient, update and evaluation."""
    experiment = Experiment.preset(changes.pop("preset")).override(
        {"device": "cpu", "schedule.eval_every": 1, "schedule.steps": 3, **changes}
    )
    experiments = [experiment, experiment.override({"seed": 1})]
    replay = Replay(Ensemble(experiments), [Outcome(e.criteria) for e in experiments])
    reports = replay.launch().read()
    return [replay.ensemble.flat.clone(), torch.tensor([[*report.record.values.values()] for report in reports])]


def pair_mlp(monkeypatch):
    return a_step(preset="quick", **{"task.p": 17, "task.train_fraction": 0.9, "model.width": 20})


def pair_mlp_in_chunks(monkeypatch):
    """One program adds up several chunks of rows."""
    monkeypatch.setattr(launches, "_device", lambda device: (90, 1))
    return pair_mlp(monkeypatch)


def transformer(monkeypatch):
    small = {"task.p": 3, "model.d_model": 16, "model.d_mlp": 16, "model.n_heads": 2, "schedule.batch_size": 2}
    return a_step(preset="power", **small)


def updates(monkeypatch):
    """More elements than a chunk has, so that several programs share a model's counters."""
    found = []
    for name, filter in (("adamw", EMA()), ("adam", MA(2)), ("lion", MA(3, ring="bfloat16")), ("sgd", None)):
        flat = draw(2, 4 * 1024 + 16)
        momentum = {"momentum": 0.9} if name == "sgd" else {}
        optimizer = FlatOptimizer(flat, [find("optimizer", name)(lr=0.1, **momentum)] * 2, [filter] * 2)
        for step in range(2):
            optimizer.step(flat, draw(2, flat.shape[1]) + step, torch.zeros(2), torch.full((2,), -1))
        found += [flat, *optimizer.state.values(), optimizer.clock.steps]
    return found


def operations(monkeypatch):
    x, w_in, w_out = (draw(*shape).requires_grad_() for shape in ((2, 70, 20), (2, 40, 20), (2, 20, 40)))
    options = {"backend": "triton"}
    y = ops.mlp(x, w_in, None, w_out, None, skip=x, **options)
    loss = ops.linear_cross_entropy(y, w_in, torch.arange(70).expand(2, -1) % 40, reduction="none", **options)
    weight = draw(2, 20).requires_grad_()
    normal = ops.layer_norm(x, weight, weight, **options)
    q = draw(9, 2, 3, 16).requires_grad_()
    heads = ops.attention(q, q, q, **options)
    pairs = (torch.arange(140) % 7).view(1, 70, 2).expand(2, -1, -1)
    a = draw(2, 7, 20).requires_grad_()
    rows = ops.pair_embed(a, a, pairs, weight, activation="gelu", **options)
    outputs = [y, loss, normal, heads, rows]
    grads = torch.autograd.grad([t.square().sum() for t in outputs], [x, w_in, w_out, weight, q, a])
    return [*outputs, *grads]


SCENES = [pair_mlp, pair_mlp_in_chunks, transformer, updates, operations]


@pytest.mark.parametrize("scene", SCENES)
def test_the_order_of_programs_changes_no_bit(scene, monkeypatch):
    results = {}
    with backend.using("triton"):
        for order in ("forward", "shuffled"):
            with watching(order) as seen:
                results[order] = scene(monkeypatch)
            assert seen.launches > 3
            # Those that find a gradient that is not finite write the same step to the same place.
            assert seen.between <= {"tick_kernel"}
            assert seen.within == set()
            assert seen.outside <= {"update_kernel"}  # whose tensors stand in a table
    for first, other in zip(*results.values(), strict=True):
        assert torch.equal(first, other)


@triton.jit
def running_sum_kernel(p_x, BLOCK: tl.constexpr):
    """Each program needs what the one before it wrote."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    before = tl.load(p_x + at - BLOCK, mask=at >= BLOCK, other=0)
    tl.store(p_x + at, tl.load(p_x + at) + before)


@triton.jit
def reverse_kernel(p_x, BLOCK: tl.constexpr, BARRIER: tl.constexpr):
    """Threads read what others wrote."""
    at = tl.arange(0, BLOCK)
    tl.store(p_x + at, tl.load(p_x + at) * 2)
    if BARRIER:
        tl.debug_barrier()
    tl.store(p_x + BLOCK + at, tl.load(p_x + BLOCK - 1 - at))


def test_a_race_between_programs_is_seen():
    x = torch.ones(16)
    with watching("forward") as seen:
        running_sum_kernel[(4,)](x, BLOCK=4)
    assert seen.between == {"running_sum_kernel"}
    y = torch.ones(16)
    with watching("reversed"):
        running_sum_kernel[(4,)](y, BLOCK=4)
    assert not torch.equal(x, y)


@pytest.mark.parametrize("barrier", [True, False])
def test_a_race_between_threads_is_seen_unless_a_barrier_stands_between(barrier):
    with watching() as seen:
        reverse_kernel[(1,)](torch.ones(16), BLOCK=8, BARRIER=barrier)
    assert seen.within == (set() if barrier else {"reverse_kernel"})
    assert seen.between == seen.outside == set()


def test_what_is_outside_of_the_memory_is_seen():
    x = torch.from_numpy(np.ones(40, np.float32)[8:24])  # others' memory lies around it
    for programs, outside in ((4, set()), (5, {"running_sum_kernel"})):
        with watching() as seen:
            running_sum_kernel[(programs,)](x, BLOCK=4)
        assert seen.outside == outside
