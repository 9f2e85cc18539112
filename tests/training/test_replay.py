"""Training from evaluation to evaluation: the same results as step by step, and nothing waits for the device.

Without a GPU the functions that graphs would hold are called, the kernels in Triton's interpreter.
"""

import dataclasses
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from grokfast import MA, Experiment, backend, train
from grokfast.models.base import FUSED, PLAIN
from grokfast.store import RunStore
from grokfast.store.records import records_of
from grokfast.training import Interrupted, Observer, ensemble, resume
from grokfast.training.ensemble import Ensemble
from grokfast.training.replay import Replay
from tests.training.common import StopAt, same_result
from tests.training.replays import GROKS, OPTIONS, TINY, follow, variants

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


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


@pytest.mark.parametrize("preset", ["quick", "nanda", "power"])
def test_the_kernels_steps_shrink_with_their_ensemble_to_the_same_bits(replayed, monkeypatch, preset):
    """Here in plain PyTorch: a transformer's tables are those of the ensemble as it was, whoever is left."""
    choose = ensemble.choose
    monkeypatch.setattr(
        ensemble, "choose", lambda spec, why: dataclasses.replace(choose(spec, why), step=spec.model.ways[0])
    )
    small = {"task.p": 7, "schedule.steps": 12, "schedule.eval_every": 3, "schedule.batch_size": 10}
    small |= {"model.width": 8} if preset == "quick" else {"model.d_model": 16, "model.d_mlp": 16, "model.n_heads": 2}
    soon = {"criteria.threshold": 1e-9, "criteria.sustain": 2, "schedule.stop_after": 0}
    base = Experiment.preset(preset).override(small)
    experiments = [base.override({"seed": i, **(soon if i in (1, 3) else {})}) for i in range(4)]
    sizes = Sizes()
    shrunk = train(experiments, observers=[sizes])
    monkeypatch.setattr(Replay, "share", 0)
    whole = Sizes()
    expected = train(experiments, observers=[whole])
    assert whole.seen == {4}
    assert len(sizes.seen) > 1
    for result, other in zip(shrunk, expected):
        same_result(result, other)


@pytest.mark.parametrize("change", [{}, {"schedule.batch_size": 9, "filter": MA(3)}, {"optimizer": "sgd"}])
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
    assert replay.watch.ended_at.tolist() == [30] * len(experiments)


@pytest.mark.parametrize("batch_size", [None, 9])
def test_a_checkpoint_of_either_way_goes_on_the_other_way(tmp_path, batch_size, monkeypatch):
    """Stopped between evaluations, step by step, and resumed in a replay."""
    monkeypatch.setenv("GROKFAST_BACKEND", "reference")
    experiment = TINY.override({"schedule.batch_size": batch_size, "schedule.steps": 30, "task.p": 7, "device": "cpu"})
    with RunStore(tmp_path) as store:
        with pytest.raises(Interrupted) as stopped:
            train(experiment, store=store, observers=[StopAt(13)])
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
            train(experiment, store=store, observers=[StopAt(4, fail)], checkpoint_every=0)
        (stored,) = store.list()
        assert stored.status == "failed"
        made = Ensemble([experiment])
        for _ in range(8):
            made.step()
        known = store.curves(stored.run_id)["step"]
        rows = [record for record in records_of(result.curves) if record.step not in known]
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


@pytest.mark.parametrize("case", ["adamw", "nesterov", "MA, minibatch", "probes"])
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
