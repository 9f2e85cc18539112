"""A run that has finished goes on: to the bits of one that was to be so long from the beginning."""

import sqlite3

import numpy as np
import pytest

from grokfast import EMA, MA, Experiment, RunStore, sweep, train
from grokfast.store import StoreError
from grokfast.sweeps import InProcess, Processes, plan_stored, worker
from grokfast.training import Interrupted, resume
from tests.training.common import StopAt, Waves, same_result

TINY = Experiment.preset("quick").override(
    {"task.p": 7, "model.width": 12, "schedule.steps": 20, "schedule.eval_every": 5, "schedule.stop_after": None}
)
# Generalises at once, as a threshold of 1% is reached.
STOPS = TINY.override({"criteria.threshold": 0.01, "schedule.steps": 100, "schedule.stop_after": 10})


@pytest.fixture
def store(tmp_path):
    with RunStore(tmp_path) as opened:
        yield opened


def contents(store):
    """All that a store has, as bytes."""
    database = sqlite3.connect(store.root / "grokfast.sqlite")
    rows = [database.execute(f"SELECT * FROM {table}").fetchall() for table in ("runs", "chunks")]
    database.close()
    return rows, {path: path.read_bytes() for path in store.root.rglob("*.safetensors")}


@pytest.mark.parametrize("steps", [20, 18], ids=["at an evaluation", "between two"])
@pytest.mark.parametrize(
    "change",
    [{}, {"filter": EMA()}, {"filter": MA(4)}, {"schedule.batch_size": 9}, {"optimizer.warmup": 30}],
    ids=["adamw", "ema", "ma", "minibatches", "warmup"],
)
def test_it_has_the_bits_of_one_long_run(how, store, change, steps):
    short = TINY.override({**change, "schedule.steps": steps})
    first = train(short, store=store)
    further = resume(first.run_id, store, steps=40)
    same_result(further, train(short.override({"schedule.steps": 40})))
    assert further.run_id == first.run_id


def test_on_the_extension_too(compiled, store):
    first = train(TINY, store=store)
    same_result(resume(first.run_id, store, steps=40), train(TINY.override({"schedule.steps": 40})))


def test_the_store_has_the_longer_run_in_its_place(store):
    first = train(TINY, store=store)
    further = resume(first.run_id, store, steps=40)
    (stored,) = store.list()
    assert (stored.run_id, stored.status, stored.result) == (first.run_id, "finished", further.summary())
    assert Experiment.from_dict(stored.config) == TINY.override({"schedule.steps": 40}) == further.experiment
    assert store.curves(first.run_id)["step"].tolist() == list(range(0, 41, 5))
    for name, tensor in store.load_weights(first.run_id).items():
        np.testing.assert_array_equal(tensor, further.weights[name])
    same_result(resume(first.run_id, store, steps=60), train(TINY.override({"schedule.steps": 60})))


def test_what_stop_after_has_ended_goes_on_without_it(how, store):
    first = train(STOPS, store=store)
    assert first.steps == 10
    further = resume(first.run_id, store, steps=40)
    same_result(further, train(STOPS.override({"schedule.steps": 40, "schedule.stop_after": None})))
    assert further.experiment.schedule.stop_after is None


# Memorises half of its rows at 25, and does not generalise.
STAYS = TINY.override({"criteria.threshold": 0.5, "criteria.sustain": 1, "task.split_seed": 0, "schedule.steps": 50})


def test_patience_is_counted_from_memorising_and_no_longer_counts_after_its_end(how, store):
    whole = train(STAYS)
    assert (whole.t_memorize, whole.t_generalize) == (25, None)
    first = train(STAYS.override({"schedule.patience": 10}), store=store)
    assert first.steps == 35
    further = resume(first.run_id, store, steps=50)
    same_result(further, whole)
    assert further.experiment.schedule.patience is None


def test_patience_does_not_end_what_has_generalised(how):
    at_once = STOPS.override({"schedule.stop_after": None, "schedule.steps": 20})
    assert train(at_once.override({"schedule.patience": 0})).steps == 20


def test_runs_of_an_ensemble_that_end_at_different_times_go_on(how, store):
    experiments = [STOPS.override({"schedule.stop_after": after, "seed": after}) for after in (10, 15, 20, 30)]
    firsts = train(experiments, store=store)
    assert [first.steps for first in firsts] == [10, 15, 20, 30]
    for first, experiment in zip(firsts, experiments):
        whole = experiment.override({"schedule.steps": 45, "schedule.stop_after": None})
        same_result(resume(first.run_id, store, steps=45), train(whole))


def test_a_stop_after_that_is_to_come_still_counts(store):
    late = STOPS.override({"schedule.steps": 5})
    first = train(late, store=store)
    same_result(resume(first.run_id, store, steps=100), train(STOPS))


def test_interrupted_on_its_longer_way_it_goes_on_to_its_end(store):
    run_id = train(TINY, store=store).run_id
    with pytest.raises(Interrupted):
        resume(run_id, store, steps=60, observers=[StopAt(33)])
    assert (store.get(run_id).status, store.get(run_id).result) == ("interrupted", None)
    same_result(resume(run_id, store), train(TINY.override({"schedule.steps": 60})))


def test_an_interrupted_run_may_be_made_longer_or_shorter(store):
    for steps in (33, 60):
        with pytest.raises(Interrupted) as stopped:
            train(TINY.override({"schedule.steps": 50}), store=store, observers=[StopAt(30)])
        (run_id,) = stopped.value.run_ids
        same_result(resume(run_id, store, steps=steps), train(TINY.override({"schedule.steps": steps})))


def test_it_goes_on_from_where_it_was(store):
    seen, run_id = Waves(), train(TINY, store=store).run_id
    resume(run_id, store, steps=40, observers=[seen])
    assert seen.records == [(0, step) for step in (25, 30, 35, 40)]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (None, r"has ended already \(status finished\), there is nothing to resume, unless it is to take more steps"),
        (20, "steps must be more than the 20 that run quick-.* has taken, got 20"),
        (0, "steps must be at least 1, got 0"),
    ],
)
def test_steps_that_are_refused_change_nothing(store, steps, message):
    run_id = train(TINY, store=store).run_id
    before = contents(store)
    with pytest.raises(ValueError, match=message):
        resume(run_id, store, steps=steps)
    assert contents(store) == before


def test_fewer_steps_than_an_interrupted_run_has_taken_are_refused(store):
    with pytest.raises(Interrupted) as stopped:
        train(TINY.override({"schedule.steps": 50}), store=store, observers=[StopAt(30)])
    (run_id,) = stopped.value.run_ids
    before = contents(store)
    with pytest.raises(ValueError, match=f"steps must be at least 30, as run {run_id} goes on from there, got 29"):
        resume(run_id, store, steps=29)
    assert contents(store) == before


def test_a_run_that_diverged_does_not_go_on(store):
    run_id = train(TINY.override({"optimizer.lr": 1e30}), store=store).run_id
    assert not store.has_checkpoint(run_id)
    with pytest.raises(ValueError, match=r"has ended already \(status diverged\), there is nothing to resume$"):
        resume(run_id, store, steps=40)
    with pytest.raises(StoreError, match="has diverged"):
        store.reopen(run_id, TINY.to_dict())


def test_an_older_run_without_a_checkpoint_is_a_message(store):
    run_id = train(TINY, store=store).run_id
    store.drop_checkpoint(run_id)
    before = contents(store)
    with pytest.raises(ValueError, match=f"run {run_id} has finished and has no checkpoint to go on from: an older"):
        resume(run_id, store, steps=40)
    assert contents(store) == before


def test_two_cannot_make_a_run_longer_at_once(store):
    run_id = train(TINY, store=store).run_id

    def meddle():
        with RunStore(store.root) as other, pytest.raises(StoreError, match="is being trained by another process"):
            resume(run_id, other, steps=100)

    further = resume(run_id, store, steps=40, observers=[StopAt(25, meddle)])
    same_result(further, train(TINY.override({"schedule.steps": 40})))


@pytest.mark.parametrize("runner", [InProcess(), Processes(1)], ids=["here", "in a process"])
def test_a_run_of_a_sweep_goes_on_and_stays_in_it(tmp_path, runner):
    tiny = TINY.override({"device": "cpu"})
    swept = sweep(tiny, {"seed": [0, 1]}, store=tmp_path, runner=runner)
    with RunStore(tmp_path) as store:
        resume(swept.runs[1].run_id, store, steps=40)
    assert swept.table()["steps"].tolist() == [20, 40]
    assert plan_stored(swept.sweep_id, store=tmp_path).todo == 0
    assert sweep(tiny, {"seed": [0, 1]}, store=tmp_path, runner=runner).table()["steps"].tolist() == [20, 40]


def test_sweeps_keep_small_checkpoints_beside_weights(tmp_path, monkeypatch):
    tiny = TINY.override({"device": "cpu"})

    def kept(root, **options):
        sweep(tiny, {"filter": [None, MA(50)]}, store=root, runner=InProcess(), **options)
        with RunStore(root) as store:
            return [store.has_checkpoint(run.run_id) for run in reversed(store.list())]

    assert kept(tmp_path / "all") == [True, True]
    assert kept(tmp_path / "no weights", keep_weights=False) == [False, False]
    monkeypatch.setattr(worker, "KEPT", 10_000)
    assert kept(tmp_path / "small", checkpoint_every=0) == [True, False]
