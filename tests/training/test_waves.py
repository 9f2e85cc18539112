"""How many runs go together, and what happens where memory runs out after all."""

import gc
import weakref

import pytest
import torch

from grokfast import EMA, MA, Experiment, backend, train
from grokfast.store import RunStore
from grokfast.training import Interrupted, resume, waves
from grokfast.training.ensemble import Ensemble
from grokfast.training.entry import go_on
from grokfast.training.outcome import Outcome
from grokfast.training.replay import Replay
from grokfast.training.waves import at_once, bytes_per_run, split
from grokfast.transforms.flat import FlatOptimizer
from tests.memory import Alive
from tests.training.common import Waves, interrupt, same_result, short_of_memory

TINY = Experiment.preset("quick").override(
    {"task.p": 11, "model.width": 32, "schedule.steps": 40, "schedule.eval_every": 5, "schedule.stop_after": None}
)
NANDA = Experiment.preset("nanda").override({"task.p": 11, "model.d_model": 16, "model.d_mlp": 24})
POWER = Experiment.preset("power").override({"task.p": 11, "model.d_model": 16, "model.d_mlp": 24})
SMALL_BATCH = {"schedule.batch_size": 10, "optimizer": "sgd", "optimizer.momentum": 0.9}
SEEDS = [TINY.override({"seed": seed}) for seed in range(5)]


def memory_of(experiment, models):
    """Bytes of the tensors that a replayed ensemble holds throughout, but for counters."""
    replay = Replay(Ensemble([experiment] * models), [Outcome(experiment.criteria)] * models)
    made = replay.ensemble
    data = [t for rows in made.rows.values() for t in (rows.inputs, rows.targets)]
    held = [made.flat, replay.grad, replay.watch.kept, *made.optimizer.state.values(), *data]
    if replay.batches is not None:
        held += [replay.batches.ring, replay.batches._batch]
    return sum(t.nbytes for t in held)


@pytest.mark.parametrize(
    "change", [{}, {"filter": EMA()}, {"filter": MA(7)}, {"filter": MA(7, ring="bfloat16")},
     {"optimizer": "lion"}, SMALL_BATCH],
)  # fmt: skip
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("base", [TINY, POWER])
def test_what_a_run_holds_is_counted_exactly(base, change, precision):
    experiment = base.override({**change, "precision": precision})
    assert 3 * bytes_per_run(experiment).held == memory_of(experiment, 3)


def test_a_ring_in_host_memory_is_not_counted():
    full, host = (bytes_per_run(TINY.override({"filter": MA(50, ring=ring)})).held for ring in ("full", "host"))
    assert full - host == 50 * Ensemble([TINY]).flat.nbytes


@pytest.mark.parametrize("change", [{}, {"schedule.batch_size": 30}])
@pytest.mark.parametrize("base", [TINY, TINY.override({"model.depth": 3, "loss": "mse"}), NANDA, POWER])
def test_what_a_step_takes_beside_is_estimated_up_to_twice_as_high(base, change):
    experiment = base.override({"task.p": 31, **change})
    with backend.using("reference"):
        replay, need = Replay(Ensemble([experiment]), [Outcome(base.criteria)]), bytes_per_run(experiment)
        with Alive() as peak:
            replay.launch()
    assert peak.most <= need.passing <= 2 * peak.most


@pytest.mark.parametrize("change", [{}, {"schedule.batch_size": 500}])
@pytest.mark.parametrize("preset", ["nanda", "power"])
def test_what_the_kernels_of_a_transformer_take_is_counted_from_its_plan(preset, change):
    """Less than every position of every row; tests/models/transformer/test_memory.py has the numbers."""
    pytest.importorskip("triton")
    experiment = Experiment.preset(preset).override({"device": "cpu", **change})
    with backend.using("reference"):
        unplanned = bytes_per_run(experiment)
    with backend.using("triton"):
        planned = bytes_per_run(experiment)
    assert planned.held > unplanned.held  # indices, and scratch that stays
    assert planned.total < (0.7 if preset == "nanda" else 0.9) * unplanned.total


def test_as_many_as_fit_go_together():
    need = bytes_per_run(TINY).total
    assert at_once([TINY] * 100) == 100  # on a CPU
    assert at_once([TINY] * 100, free=int(10.5 * need / 0.9)) == 10
    assert at_once([TINY] * 7, free=1000 * need) == 7
    assert at_once([TINY] * 100, free=bytes_per_run(TINY).held) == 1  # the estimate may be too high: try
    assert split(list(range(10)), 4) == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]
    assert split([1], 3) == [[1]]


def test_a_run_that_holds_more_than_there_is_is_refused_with_how_much_it_needs():
    experiment = TINY.override({"filter": MA(1_000_000)})
    need = bytes_per_run(experiment)
    with pytest.raises(MemoryError, match=rf"quick needs {need.total / 1e9:.3g} GB .* 1 GB are free on cpu"):
        at_once([experiment] * 3, free=10**9)


def test_waves_give_each_run_its_own_result(how, tmp_path):
    seen = Waves()
    with RunStore(tmp_path) as store:
        results = train(SEEDS, store=store, observers=[seen], max_together=2)
        assert [store.get(r.run_id).status for r in results] == ["finished"] * 5
    assert seen.sizes == [1, 2, 2]
    for result, expected in zip(results, train(SEEDS)):
        same_result(result, expected)


@pytest.mark.parametrize("is_resumed", [False, True])
def test_a_wave_leaves_nothing_in_memory(how, tmp_path, is_resumed):
    alive = []

    class Look(Waves):
        def started(self, ensemble, run_ids):
            gc.collect()
            assert not [made for made in alive if made() is not None]
            alive.extend(map(weakref.ref, (ensemble, ensemble.flat)))
            super().started(ensemble, run_ids)

    with RunStore(tmp_path) as store:
        ids = [store.create(e.to_dict(), preset="quick", version="", device="cpu") for e in SEEDS[:3]]
        if is_resumed:
            go_on(ids, store, observers=[Look()], max_together=1)
        else:
            train(SEEDS[:3], observers=[Look()], max_together=1)
    assert len(alive) == 6


def test_the_waves_are_those_that_fit(how, monkeypatch):
    monkeypatch.setattr(waves, "at_once", lambda experiments: 3)
    seen = Waves()
    train(SEEDS, observers=[seen])
    assert seen.sizes == [2, 3]


@pytest.mark.parametrize(("is_stored", "change"), [(True, {}), (False, {"schedule.batch_size": 10, "filter": MA(4)})])
@pytest.mark.parametrize(
    ("owner", "name", "step", "raised"),
    [
        (Ensemble, "__init__", None, 2),  # 5; then 2 and 3, 3 in halves again
        (FlatOptimizer, "_reference", 17, 2),  # in the middle of an update: from the state before
        (FlatOptimizer, "step", 0, 2),
        (FlatOptimizer, "step", 17, 2),
        (FlatOptimizer, "keep", None, 0),
    ],
)
def test_out_of_memory_halves_the_wave_and_nothing_is_lost(
    how, monkeypatch, tmp_path, owner, name, step, raised, change, is_stored
):
    experiments = [e.override(change) for e in SEEDS]
    expected = [train(e) for e in experiments]
    when = (lambda self: True) if step is None else (lambda self: self.steps == step)
    raises = short_of_memory(monkeypatch, owner, name, 2, when)
    seen = Waves()
    with RunStore(tmp_path) as store:
        results = train(experiments, store=store if is_stored else None, observers=[seen])
        for result in results if is_stored else []:
            assert store.get(result.run_id).status == "finished"
            assert store.curves(result.run_id)["step"].tolist() == list(range(0, 41, 5))
    assert len(raises) >= raised
    for result, alone in zip(results, expected):
        same_result(result, alone)
    if name == "step":
        assert len(seen.records) == len(set(seen.records))  # no evaluation was made twice


def test_out_of_memory_while_the_ensemble_shrinks(how, monkeypatch):
    soon = {"criteria.threshold": 1e-9, "criteria.sustain": 1, "schedule.stop_after": 0}
    experiments = [e.override(soon if i < 2 else {}) for i, e in enumerate(SEEDS)]
    expected = [train(e) for e in experiments]
    assert len({r.steps for r in expected}) > 1
    original, failed = FlatOptimizer.keep, []

    def keep(self, models):
        if not failed:
            failed.append(len(models))
            raise torch.OutOfMemoryError("CUDA out of memory (injected)")
        return original(self, models)

    monkeypatch.setattr(FlatOptimizer, "keep", keep)
    for result, alone in zip(train(experiments), expected):
        same_result(result, alone)
    assert failed


def test_one_run_that_does_not_fit_says_how_much_it_needs(how, monkeypatch, tmp_path):
    short_of_memory(monkeypatch, FlatOptimizer, "step", 0)
    with RunStore(tmp_path) as store:
        with pytest.raises(MemoryError, match=r"quick needs .* GB for one run \(.* throughout, .* in a step\)"):
            train(SEEDS[:2], store=store)
        assert {run.status for run in store.list()} == {"failed"}


def test_interrupted_in_a_wave_all_runs_can_be_resumed(how, tmp_path):
    class Stop(Waves):
        def recorded(self, run, record, outcome):
            if run == 2 and record.step == 20:
                interrupt()

    with RunStore(tmp_path) as store:
        with pytest.raises(Interrupted) as stopped:
            train(SEEDS, store=store, observers=[Stop()], max_together=2)
        assert len(stopped.value.run_ids) == 4  # one has finished, two were under way, two not yet begun
        assert sum(store.has_checkpoint(run_id) for run_id in stopped.value.run_ids) == 2
        for run_id, experiment in zip(stopped.value.run_ids, SEEDS[1:]):
            same_result(resume(run_id, store), train(experiment))


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="max_together must be at least 1, got 0"):
        train(TINY, max_together=0)
