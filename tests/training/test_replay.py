"""Training from evaluation to evaluation: the same results as step by step, and nothing waits for the device.

Without a GPU the functions that graphs would hold are called, the kernels in Triton's interpreter.
"""

import dataclasses
import os
import signal
import sys

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from grokfast import EMA, MA, Experiment, backend, train
from grokfast.ops.pair_step import plan
from grokfast.store import RunStore
from grokfast.store.records import Record
from grokfast.training import Interrupted, Observer, ensemble, loop, resume
from grokfast.training import replay as replay_module
from grokfast.training.choice import FUSED, PLAIN
from grokfast.training.ensemble import Ensemble
from grokfast.training.outcome import Outcome
from grokfast.training.replay import Graphs, Replay

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TINY = Experiment.preset("quick").override(
    {"task.p": 5, "model.width": 10, "schedule.steps": 20, "schedule.eval_every": 4, "schedule.stop_after": None}
)
GROKS = (
    Experiment.preset("quick")
    .override(
        {
            "task.p": 17,
            "model.width": 64,
            "task.train_fraction": 0.8,
            "schedule.eval_every": 5,
            "schedule.stop_after": 10,
        }
    )
    .override({"model.activation": "square"})
)
OPTIONS = {
    "adamw": {"optimizer.warmup": 7},
    "adam, L2, mse": {"optimizer.name": "adam", "optimizer.weight_decay": 0.01, "loss": "mse"},
    "sgd, square": {"optimizer.name": "sgd", "optimizer.lr": 0.3, "model.activation": "square", "model.bias": False},
    "nesterov": {"optimizer.name": "sgd", "optimizer.lr": 0.1, "optimizer.momentum": 0.9, "optimizer.nesterov": True},
    "lion, gelu": {"optimizer.name": "lion", "optimizer.lr": 1e-3, "model.activation": "gelu"},
    "EMA": {"filter": EMA(0.9, 2.0)},
    "MA": {"filter": MA(4, 3.0), "optimizer.warmup": 3},
    "MA, minibatch": {"filter": MA(3, 0.5, "sum", warmup=False, ring="bfloat16"), "schedule.batch_size": 4},
    "EMA, minibatch, noise": {"schedule.batch_size": 3, "filter": EMA(), "task.label_noise": 0.3},
}


@pytest.fixture
def kernels():
    """The fused step, in the interpreter where there is no GPU."""
    pytest.importorskip("triton")
    with backend.using("triton"):
        yield


@pytest.fixture
def replayed(monkeypatch):
    """Plain PyTorch, replayed on any device."""
    choose = ensemble.choose
    monkeypatch.setattr(ensemble, "choose", lambda *a, **k: dataclasses.replace(choose(*a, **k), why_no_replay=""))
    with backend.using("reference"):
        yield


def variants(experiment):
    changes = [{"seed": 3}, {"seed": 4, "optimizer.lr": 0.7 * experiment.optimizer.lr, "optimizer.weight_decay": 0.2}]
    return [experiment, *(experiment.override(c) for c in changes)]


def step_by_step(experiment, steps):
    with backend.using("reference"):
        made = Ensemble([experiment])
        for _ in range(steps):
            made.step()
    return made.weights(0)


def follow(experiments):
    """A Replay at the beginning."""
    return Replay(Ensemble(experiments), [Outcome(e.criteria) for e in experiments])


def same_result(one, other):
    leave_out = ("run_id", "seconds", "directory")
    assert {n: v for n, v in one.summary().items() if n not in leave_out} == {
        n: v for n, v in other.summary().items() if n not in leave_out
    }
    for name, tensor in one.weights.items():
        np.testing.assert_array_equal(tensor, other.weights[name])  # NaN is NaN
    for name, column in one.curves.items():
        np.testing.assert_array_equal(column, other.curves[name])


@pytest.mark.parametrize("option", OPTIONS)
def test_twenty_fused_steps_follow_the_reference(kernels, option, judge):
    experiment = TINY.override(OPTIONS[option])
    exact = step_by_step(experiment.override({"precision": "float64"}), 20)
    by_torch = step_by_step(experiment, 20)
    result = train(experiment.override({"schedule.eval_every": 10}))
    assert result.steps == 20
    ours, torchs, right = (
        torch.cat([weights[name].flatten() for name in exact]) for weights in (result.weights, by_torch, exact)
    )
    judge(ours, torchs, right)


def test_the_curves_are_those_of_the_step_by_step_run(kernels):
    experiment = TINY.override({"schedule.steps": 7, "schedule.eval_every": 3, "schedule.batch_size": 4})
    result = train(experiment)
    with backend.using("reference"):
        expected = train(experiment.override({"device": "cpu"}))
    assert result.curves["step"].tolist() == [0, 3, 6, 7]
    for name, column in expected.curves.items():
        np.testing.assert_allclose(result.curves[name], column, rtol=1e-5)


@pytest.mark.parametrize("option", ["EMA", "MA, minibatch"])
def test_together_they_are_each_alone_and_twice_the_same(kernels, option):
    experiments = variants(TINY.override({**OPTIONS[option], "schedule.steps": 4}))[:2]
    together = train(experiments)
    for result, again, experiment in zip(together, train(experiments), experiments):
        same_result(result, again)
        same_result(result, train(experiment))


def test_a_run_that_diverges_in_the_kernels_leaves_its_neighbour_alone(kernels):
    tame = TINY.override({"schedule.steps": 4, "schedule.eval_every": 2})
    wild, neighbour = train([tame.override({"optimizer.lr": 1e30}), tame])
    assert wild.status == "diverged"
    assert wild.steps == 2
    with backend.using("reference"):
        assert wild.diverged_at == train(tame.override({"optimizer.lr": 1e30, "device": "cpu"})).diverged_at
    same_result(neighbour, train(tame))


@pytest.mark.parametrize("change", [{}, {"schedule.batch_size": 200}])
def test_runs_that_end_at_different_times_end_as_alone(replayed, change):
    """They leave when a quarter has ended; until then those that are over change nothing any more."""
    changes = [{"criteria.threshold": at, "seed": i} for i, at in enumerate((0.1, 0.2, 0.3, 0.9))]
    changes += [{"optimizer.lr": 1e30, "seed": 7}]
    experiments = [GROKS.override({**change, **c, "schedule.steps": 150}) for c in changes]
    sizes = Sizes()
    together = train(experiments, observers=[sizes])
    assert [r.status for r in together].count("diverged") == 1
    assert len({r.steps for r in together}) > 2
    assert len(sizes.seen) >= 2
    for result, experiment in zip(together, experiments):
        alone = train(experiment)
        same_result(result, alone)
        assert result.steps == alone.steps


class Sizes(Observer):
    """How many models the ensemble had."""

    def started(self, ensemble, run_ids):
        self.ensemble, self.seen = ensemble, set()

    def stepped(self, steps):
        self.seen.add(len(self.ensemble.experiments))


def test_a_transformers_kernels_follow_the_reference(kernels):
    """The median of three seeds: on the few numbers of a bias either side may be exact by luck."""
    small = {"task.p": 5, "model.d_model": 16, "model.d_mlp": 16, "model.n_heads": 2, "schedule.steps": 2}
    experiment = Experiment.preset("nanda").override({**small, "optimizer.warmup": 1, "optimizer.eps": 1e-3})
    errors, yardsticks = {}, {}
    for seed in range(3):
        own = experiment.override({"seed": seed})
        exact = step_by_step(own.override({"precision": "float64"}), 2)
        by_torch = step_by_step(own, 2)
        result = train(own)
        assert result.curves["step"].tolist() == [0, 2]
        for name, right in exact.items():
            for found, of in ((errors, result.weights), (yardsticks, by_torch)):
                found.setdefault(name, []).append(float((of[name].double() - right).norm() / right.norm()))
    for name, error in errors.items():
        assert np.median(error) <= 2 * np.median(yardsticks[name]) + torch.finfo(torch.float32).eps / 2, name


@pytest.mark.parametrize("preset", ["quick", "nanda", "power"])
def test_the_kernels_steps_shrink_with_their_ensemble_to_the_same_bits(replayed, monkeypatch, preset):
    """Here in plain PyTorch: a transformer's tables are those of the ensemble as it was, whoever is left."""
    choose = ensemble.choose
    monkeypatch.setattr(ensemble, "choose", lambda *a, **k: dataclasses.replace(choose(*a, **k), has_kernels=True))
    small = {"task.p": 7, "schedule.steps": 12, "schedule.eval_every": 3, "schedule.batch_size": 10}
    small |= {"model.width": 8} if preset == "quick" else {"model.d_model": 16, "model.d_mlp": 16, "model.n_heads": 2}
    soon = {"criteria.threshold": 1e-9, "criteria.sustain": 2, "schedule.stop_after": 0}
    base = Experiment.preset(preset).override(small)
    experiments = [base.override({"seed": i, **(soon if i in (1, 3) else {})}) for i in range(4)]
    sizes = Sizes()
    shrunk = train(experiments, observers=[sizes])
    monkeypatch.setattr(loop, "FULL", 0)
    whole = Sizes()
    expected = train(experiments, observers=[whole])
    assert whole.seen == {4}
    assert len(sizes.seen) > 1
    for result, other in zip(shrunk, expected):
        same_result(result, other)


@pytest.mark.parametrize("change", [{}, {"schedule.batch_size": 9, "filter": MA(3)}, {"optimizer.name": "sgd"}])
def test_a_replay_of_plain_steps_gives_the_bits_of_the_steps(replayed, change):
    experiments = variants(TINY.override({"task.p": 7, "schedule.steps": 30, "schedule.eval_every": 7, **change}))
    replay = follow(experiments)
    plain = Ensemble(experiments)
    window = replay.evaluate()
    while True:
        expected = plain.evaluate()
        assert [report.record for report in window.read()] == expected
        assert torch.equal(replay.ensemble.flat, plain.flat)
        if plain.steps == 30:
            break
        window = replay.launch()
        while plain.steps < window.steps:
            plain.step()
    assert all(report.ended_at == 30 for report in window.read())


class Stop(Observer):
    def __init__(self, at, action):
        self.at, self.action, self.has = at, action, False

    def stepped(self, steps):
        if steps >= self.at and not self.has:
            self.has = True
            self.action()


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def test_partial_gradients_are_summed_on_the_way_to_the_update(kernels, monkeypatch):
    """Of a model that does not fill a GPU; more models need none, and have the same bits."""
    experiment = TINY.override({"task.p": 17, "task.train_fraction": 0.95, "schedule.steps": 2, "filter": EMA()})
    weights = []
    for splits in (3, 1):
        if splits == 1:
            monkeypatch.setattr(plan, "n_splits", lambda *sizes: 1)
        made = Ensemble([experiment, experiment.override({"seed": 1})])
        replay = Replay(made, [Outcome(experiment.criteria)] * 2)
        assert replay.step.splits == splits
        assert replay.grad.shape == ((splits,) * (splits > 1)) + made.flat.shape
        replay.launch()
        weights.append(made.flat)
    assert torch.equal(*weights)


@pytest.mark.parametrize("option", ["nesterov", "EMA, minibatch, noise"])
def test_stopped_and_resumed_is_uninterrupted(kernels, tmp_path, option):
    experiment = TINY.override({**OPTIONS[option], "schedule.steps": 6, "schedule.eval_every": 2})
    with RunStore(tmp_path) as store:
        with pytest.raises(Interrupted) as stopped:
            train(experiment, store=store, observers=[Stop(2, interrupt)])
        (run_id,) = stopped.value.run_ids
        assert 2 <= store.load_checkpoint(run_id)[1]["steps"] < 6
        resumed = resume(run_id, store)
        same_result(resumed, train(experiment))
        np.testing.assert_array_equal(store.curves(run_id)["step"], resumed.curves["step"])


@pytest.mark.parametrize("batch_size", [None, 9])
def test_a_checkpoint_of_either_way_goes_on_the_other_way(tmp_path, batch_size, monkeypatch):
    """Stopped between evaluations, step by step, and resumed in a replay."""
    monkeypatch.setenv("GROKFAST_BACKEND", "reference")
    experiment = TINY.override({"schedule.batch_size": batch_size, "schedule.steps": 30, "task.p": 7, "device": "cpu"})
    with RunStore(tmp_path) as store:
        with pytest.raises(Interrupted) as stopped:
            train(experiment, store=store, observers=[Stop(13, interrupt)])
        (run_id,) = stopped.value.run_ids
        assert store.load_checkpoint(run_id)[1]["steps"] == 13
        choose = ensemble.choose
        monkeypatch.setattr(ensemble, "choose", lambda *a, **k: dataclasses.replace(choose(*a, **k), why_no_replay=""))
        resumed = resume(run_id, store)
        monkeypatch.setattr(ensemble, "choose", choose)
        same_result(resumed, train(experiment))


def test_resumed_at_the_end_of_a_run_it_ends(replayed, tmp_path):
    experiment = TINY.override({"schedule.steps": 8})

    def fail():
        raise RuntimeError("a full disk")

    with RunStore(tmp_path) as store:
        result = train(experiment)
        with pytest.raises(RuntimeError, match="a full disk"):
            train(experiment, store=store, observers=[Stop(4, fail)], checkpoint_every=0)
        (stored,) = store.list()
        assert stored.status == "failed"
        made = Ensemble([experiment])
        for _ in range(8):
            made.step()
        known = store.curves(stored.run_id)["step"]
        rows = [Record(int(step), *map(float, row)) for step, *row in zip(*result.curves.values()) if step not in known]
        store.append(stored.run_id, rows)
        store.save_checkpoint(stored.run_id, made.checkpoint(0), {"steps": 8, "seconds": 1.0})
        same_result(resume(stored.run_id, store), result)


def refuse(*_args, **_kwargs):
    raise AssertionError("the host would wait for the device")


class NoReads(TorchDispatchMode):
    """Operations that a GPU would have to answer before the host goes on."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique_dim", "_unique2"):
            refuse()
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("case", ["adamw", "nesterov", "MA, minibatch"])
@pytest.mark.parametrize("how", ["kernels", "replayed"])
def test_nothing_waits_for_the_device(request, monkeypatch, how, case):
    request.getfixturevalue(how)
    replay = follow(
        variants(TINY.override({**OPTIONS[case], "schedule.eval_every": 2}))[: 1 if how == "kernels" else 3]
    )
    assert replay.ensemble.choice.name == (FUSED if how == "kernels" else PLAIN)
    for name in ("classify", "pair_embed"):  # as on a GPU
        monkeypatch.setattr(sys.modules[f"grokfast.ops.{name}"], "check_indices", lambda *_: None)
    if how == "kernels" and DEVICE.type == "cpu":
        outside_of_launches(monkeypatch)
    for name in ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    with NoReads():
        replay.evaluate()
        replay.launch()
        replay.launch()
    monkeypatch.undo()
    with backend.using("triton" if how == "kernels" else "reference"):
        assert replay.launch().read()[0].record.step == 6


def outside_of_launches(monkeypatch):
    """Triton's interpreter reads the tensors that a GPU would: let it."""
    from triton.runtime import interpreter

    run = interpreter.GridExecutor.__call__
    reads = {name: getattr(torch.Tensor, name) for name in ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__")}
    reads |= {name: getattr(torch.Tensor, name) for name in ("__int__", "__float__", "__index__")}

    def launch(self, *args, **kwargs):
        refusing = {name: getattr(torch.Tensor, name) for name in reads}
        for name, read in reads.items():
            setattr(torch.Tensor, name, read)
        try:
            with torch.utils._python_dispatch._disable_current_modes():
                return run(self, *args, **kwargs)
        finally:
            for name, read in refusing.items():
                setattr(torch.Tensor, name, read)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", launch)


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


@pytest.mark.parametrize("change", [{}, {"schedule.batch_size": 6}])
def test_a_full_batchs_evaluation_is_the_next_steps_gradient(replayed, monkeypatch, change):
    replay = follow([TINY.override({"task.p": 7, **change})])
    called = []
    for name in ("gradient", "measure"):
        method = getattr(replay.step, name)
        monkeypatch.setattr(replay.step, name, lambda *a, name=name, method=method: called.append(name) or method(*a))
    replay.evaluate()
    for _ in range(3):
        replay.launch()
    measured = called.count("measure")
    assert (called.count("gradient"), measured) == ((13, 4) if not change else (12, 8))


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
