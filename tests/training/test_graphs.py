"""What is called, captured and replayed, and what happens where a capture fails: without a GPU the functions that
graphs would hold are called."""

import pytest
import torch

from grokfast import EMA
from grokfast.training import replay as replay_module
from grokfast.training.ensemble import Ensemble
from grokfast.training.replay import Graphs
from tests.training.replays import GROKS, TINY, follow, variants

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Recorded:
    """Stands in for a CUDA graph: does again what was captured, without the host's counting."""

    def __init__(self, function):
        self.function = function

    def replay(self):
        self.function()


class FakeGraphs(Graphs):
    def __init__(self, device):
        super().__init__(device)
        self._takes_graphs, self.captured = True, 0

    def capture(self, function):
        self.captured += 1
        return Recorded(function)


@pytest.mark.parametrize(
    ("change", "steps", "graphs"),
    [
        ({}, 40, 1),
        ({"schedule.eval_every": 3 * 8}, 6 * 8, 2),  # steps, steps, steps with an evaluation
        ({"schedule.batch_size": 19}, 40, 1),  # the whole set
        ({"schedule.batch_size": 6}, 40, 1),  # 4 to an epoch, 4 to a window
        ({"schedule.batch_size": 4}, 48, 5),  # 5 to an epoch
        ({"schedule.batch_size": 1}, 40, 2),  # 19 to an epoch, as many patterns: a graph for each step
    ],
)
def test_every_stretch_is_called_once_then_captured_then_replayed(replayed, monkeypatch, change, steps, graphs):
    monkeypatch.setattr(replay_module, "LONGEST", 8)
    experiment = TINY.override({"task.p": 7, "schedule.steps": steps, **change})
    replay = follow([experiment])
    replay.graphs = fake = FakeGraphs(DEVICE)
    while replay.ensemble.steps < steps:
        window = replay.launch()
    assert window.steps == steps
    assert fake.captured == graphs
    plain = Ensemble([experiment])
    for _ in range(steps):
        plain.step()
    assert torch.equal(replay.ensemble.flat, plain.flat)
    assert window.read()[0].record == plain.evaluate()[0]


def test_what_cannot_be_captured_is_called_and_said(replayed, monkeypatch):
    replay = follow([TINY])
    replay.graphs = FakeGraphs(DEVICE)
    monkeypatch.setattr(replay.graphs, "capture", lambda _: (_ for _ in ()).throw(RuntimeError("not permitted")))
    replay.evaluate()
    replay.launch()
    with pytest.warns(UserWarning, match="without CUDA graphs, several times slower: not permitted"):
        replay.launch()
    for _ in range(3):
        window = replay.launch()
    plain = Ensemble([TINY])
    for _ in range(20):
        plain.step()
    assert torch.equal(replay.ensemble.flat, plain.flat)
    assert window.steps == 20


def test_a_capture_that_fails_within_an_update_leaves_the_counting_right(replayed, monkeypatch):
    """Here as on a GPU: what the host counted in vain is forgotten, and nothing was counted on the device."""
    experiment = TINY.override({"optimizer.warmup": 30, "schedule.eval_every": 2})
    replay, plain = follow([experiment]), Ensemble([experiment])
    replay.graphs = FakeGraphs(DEVICE)
    optimizer = replay.ensemble.optimizer
    tick, reference, device = optimizer.clock.tick, optimizer._reference, optimizer.clock.steps

    def capture(function):
        updates = iter(range(2))

        def fail_at_the_second(*_):
            if next(updates):
                raise RuntimeError("not permitted")

        monkeypatch.setattr(optimizer.clock, "tick", lambda *_: setattr(optimizer.clock, "at", optimizer.clock.at + 1))
        monkeypatch.setattr(optimizer, "_reference", fail_at_the_second)
        try:
            function()
        finally:
            monkeypatch.setattr(optimizer.clock, "tick", tick)
            monkeypatch.setattr(optimizer, "_reference", reference)

    monkeypatch.setattr(replay.graphs, "capture", capture)
    replay.evaluate()
    replay.launch()
    with pytest.warns(UserWarning, match="without CUDA graphs"):
        window = replay.launch()
    assert window.steps == 4
    assert device.tolist() == [4]
    assert not optimizer.is_torn
    for _ in range(4):
        plain.step()
    assert torch.equal(replay.ensemble.flat, plain.flat)


def test_out_of_memory_in_a_capture_is_not_hidden(replayed, monkeypatch):
    replay = follow([TINY])
    replay.graphs = FakeGraphs(DEVICE)
    error = torch.OutOfMemoryError("no memory")
    monkeypatch.setattr(replay.graphs, "capture", lambda _: (_ for _ in ()).throw(error))
    replay.evaluate()
    replay.launch()
    with pytest.raises(torch.OutOfMemoryError):
        replay.launch()


def test_after_a_capture_without_memory_the_steps_are_those_of_the_weights(replayed, monkeypatch):
    """Whoever goes on in halves goes on from there."""
    replay = follow([TINY])
    replay.graphs = FakeGraphs(DEVICE)
    replay.evaluate()
    replay.launch()
    weights, optimizer = replay.ensemble.flat.clone(), replay.ensemble.optimizer

    def capture(function):
        with monkeypatch.context() as patched:  # a capture computes nothing, but the host counts
            patched.setattr(optimizer, "step", lambda *_: optimizer.set_host(optimizer.steps + 1))
            no_memory = torch.OutOfMemoryError("no memory")
            patched.setattr(replay.step, "measure", lambda *_: (_ for _ in ()).throw(no_memory))
            function()

    monkeypatch.setattr(replay.graphs, "capture", capture)
    with pytest.raises(torch.OutOfMemoryError):
        replay.launch()
    assert replay.ensemble.steps == 4
    assert not optimizer.is_torn
    assert torch.equal(replay.ensemble.flat, weights)


@pytest.mark.gpu
def test_graphs_on_a_gpu_give_the_bits_of_the_calls():
    """The whole of a run, with and without graphs."""
    if DEVICE.type != "cuda":
        pytest.skip("no GPU")
    experiments = variants(GROKS.override({"schedule.steps": 300, "schedule.batch_size": 100, "filter": EMA()}))
    with_graphs, without = follow(experiments), follow(experiments)
    without.graphs._takes_graphs = False
    for _ in range(60):
        one, other = with_graphs.launch(), without.launch()
        assert one.read() == other.read()
    assert torch.equal(with_graphs.ensemble.flat, without.ensemble.flat)
