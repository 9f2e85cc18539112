import dataclasses
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from grokfast import EMA, Experiment, backend, train
from grokfast.store import CheckpointError, RunStore, StoreError, StoreFullError
from grokfast.training import Interrupted, ensemble, resume
from grokfast.training.ensemble import Ensemble
from grokfast.training.replay import Replay, Stretch
from tests.training.common import StopAt, interrupt, same_result

TINY = Experiment.preset("quick").override(
    {"task.p": 13, "model.width": 32, "schedule.steps": 60, "schedule.eval_every": 5, "schedule.stop_after": None}
)
# Memorises and generalises within a few hundred steps.
GROKS = TINY.override(
    {"task.p": 29, "model.width": 128, "task.train_fraction": 0.8, "schedule.steps": 3000, "schedule.stop_after": 50}
)


def test_same_seed_same_bits():
    same_result(train(TINY), train(TINY))


@pytest.mark.parametrize("is_stored", [False, True])
def test_the_device_stays_a_stretch_ahead_unless_a_checkpoint_is_due(tmp_path, monkeypatch, is_stored):
    choose, launch, read, said = ensemble.choose, Replay.launch, Stretch.read, []
    monkeypatch.setattr(ensemble, "choose", lambda *a, **k: dataclasses.replace(choose(*a, **k), why_no_replay=""))
    monkeypatch.setattr(Replay, "launch", lambda self: said.append("launch") or launch(self))
    monkeypatch.setattr(Stretch, "read", lambda self: said.append("read") or read(self))
    with RunStore(tmp_path) as store, backend.using("reference"):
        train(TINY.override({"schedule.steps": 20}), store=store if is_stored else None, checkpoint_every=0)
    ahead = ["launch", "read"] * 4 + ["read"]  # what is read first is the evaluation before the first step
    assert said == (["launch", "read", "read", *["launch", "read"] * 3] if is_stored else ahead)


def test_another_seed_is_another_run():
    assert train(TINY).summary()["final"] != train(TINY.override({"seed": 1})).summary()["final"]


def test_curves_have_every_evaluation_and_the_last_step():
    result = train(TINY.override({"schedule.steps": 13}))
    assert result.curves["step"].tolist() == [0, 5, 10, 13]
    assert result.final.step == result.steps == 13


def test_a_run_that_generalises_stops_a_while_after():
    result = train(GROKS)
    assert result.status == "finished"
    assert result.t_memorize is not None
    assert result.t_generalize is not None
    assert result.steps == result.t_generalize + 50
    assert result.phase in ("comprehension", "grokking")
    assert "memorised at step" in result.sentence


@pytest.mark.parametrize("change", [{}, {"schedule.batch_size": 17}])
def test_what_is_trained_does_not_depend_on_work_saved_between_evaluation_and_step(monkeypatch, change):
    experiments = [GROKS.override({**change, "seed": seed, "schedule.steps": 400}) for seed in range(2)]
    measured, measure, evaluate = [], Ensemble.measure, Ensemble.evaluate
    monkeypatch.setattr(Ensemble, "measure", lambda self, split: measured.append(split) or measure(self, split))
    saving = train(experiments)
    assert measured.count("train") <= 1 if not change else measured.count("train") == measured.count("test")
    monkeypatch.setattr(Ensemble, "evaluate", lambda self, **_: evaluate(self))
    for result, expected in zip(saving, train(experiments)):
        same_result(result, expected)


def test_an_ensemble_gives_each_run_its_own_result():
    experiments = [GROKS, GROKS.override({"seed": 1}), GROKS.override({"optimizer.lr": 2e-2, "seed": 2})]
    together = train(experiments)
    assert len({r.steps for r in together}) > 1  # they ended at different times, so the ensemble shrank
    for result, experiment in zip(together, experiments):
        same_result(result, train(experiment))


def test_a_diverged_run_ends_and_its_neighbours_go_on(tmp_path):
    with RunStore(tmp_path) as store:
        wild, tame = train([TINY.override({"optimizer.lr": 1e30}), TINY], store=store)
        assert wild.status == store.get(wild.run_id).status == "diverged"
        assert wild.diverged_at is not None
        assert wild.diverged_at <= wild.steps < 60
        assert str(wild.diverged_at) in wild.sentence
        assert wild.summary()["final"]["train_loss"] is None
        assert tame.status == "finished"
    same_result(tame, train(TINY))


@pytest.mark.parametrize("lr", [1e30, 1e38])
@pytest.mark.parametrize("change", [{}, {"schedule.batch_size": 17}], ids=["all rows", "minibatches"])
def test_divergence_in_the_last_step_is_seen_as_a_further_step_would_see_it(how, lr, change, tmp_path):
    short = TINY.override({"schedule.steps": 1, **change})
    with RunStore(tmp_path) as store:
        wild, tame = train([short.override({"optimizer.lr": lr}), short], store=store)
        assert wild.status == store.get(wild.run_id).status == "diverged"
        assert store.get(wild.run_id).result["diverged_at"] == wild.diverged_at == wild.steps == 1
    assert wild.sentence.startswith("diverged at step 1: ")
    assert train(wild.experiment.override({"schedule.steps": 20})).diverged_at == 1
    assert tame.status == "finished"
    same_result(tame, train(short))


def test_divergence_in_the_last_step_of_kernels_is_seen(kernels):
    result = train(TINY.override({"task.p": 5, "model.width": 8, "schedule.steps": 1, "optimizer.lr": 1e30}))
    assert (result.status, result.diverged_at) == ("diverged", 1)


def test_the_store_has_everything(tmp_path):
    with RunStore(tmp_path) as store:
        result = train(TINY, store=store)
        stored = store.get(result.run_id)
        assert stored.status == "finished"
        assert stored.result == result.summary()
        assert Experiment.from_dict(stored.config) == TINY
        for name, column in store.curves(result.run_id).items():
            np.testing.assert_array_equal(column, result.curves[name])
        for name, tensor in store.load_weights(result.run_id).items():
            assert torch.equal(tensor, result.weights[name])


@pytest.mark.parametrize(
    "change", [{}, {"filter": EMA()}, {"schedule.batch_size": 17}, {"optimizer": "sgd", "optimizer.momentum": 0.9}]
)
def test_interrupted_and_resumed_is_uninterrupted(tmp_path, change):
    experiment = TINY.override(change)
    with RunStore(tmp_path) as store:
        with pytest.raises(Interrupted) as stopped:
            train(experiment, store=store, observers=[StopAt(33)])
        (run_id,) = stopped.value.run_ids
        assert store.get(run_id).status == "interrupted"
        resumed = resume(run_id, store)
        assert store.get(run_id).status == "finished"
        same_result(resumed, train(experiment))
        np.testing.assert_array_equal(store.curves(run_id)["step"], resumed.curves["step"])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_any_number_of_interruptions_at_once_is_one(tmp_path):
    def interrupt_often():
        for _ in range(5):
            interrupt()

    with RunStore(tmp_path) as store:
        with pytest.raises(Interrupted) as stopped:
            train(TINY, store=store, observers=[StopAt(33, interrupt_often)], checkpoint_every=1e6)
        (run_id,) = stopped.value.run_ids
        assert store.load_checkpoint(run_id)[1]["steps"] == 33
        same_result(resume(run_id, store), train(TINY))


def test_an_interrupted_ensemble_resumes_run_by_run(tmp_path):
    experiments = [TINY, TINY.override({"seed": 1})]
    with RunStore(tmp_path) as store:
        with pytest.raises(Interrupted) as stopped:
            train(experiments, store=store, observers=[StopAt(33)])
        for run_id, experiment in zip(stopped.value.run_ids, experiments):
            same_result(resume(run_id, store), train(experiment))


def test_interrupted_without_a_store_is_a_keyboard_interrupt():
    with pytest.raises(KeyboardInterrupt) as stopped:
        train(TINY, observers=[StopAt(3)])
    assert not isinstance(stopped.value, Interrupted)


def test_training_works_outside_the_main_thread():
    results = []
    thread = threading.Thread(target=lambda: results.append(train(TINY)))
    thread.start()
    thread.join()
    same_result(results[0], train(TINY))


def test_a_run_is_not_moved_by_the_engine_of_another_thread(compiled):
    results = []

    def train_elsewhere():
        thread = threading.Thread(target=lambda: results.append(train(TINY)))
        thread.start()
        thread.join()

    plain = train(TINY.override({"engine": "reference"}), observers=[StopAt(20, train_elsewhere)])
    fast = train(TINY)
    same_result(results[0], fast)
    assert fast.final != plain.final


KILLED = """
import sys
from grokfast import Experiment, RunStore, train
from grokfast.training import Observer
class Tell(Observer):
    def started(self, ensemble, run_ids):
        print(run_ids[0], flush=True)
    def stepped(self, steps):
        if steps == 200:
            print("200", flush=True)
experiment = Experiment.from_dict(eval(sys.argv[2]))
with RunStore(sys.argv[1]) as store:
    train(experiment, store=store, observers=[Tell()], checkpoint_every=0)
"""


def test_kill_9_loses_nothing_before_the_last_checkpoint(tmp_path):
    experiment = TINY.override({"schedule.steps": 100_000, "filter": EMA()})
    command = [sys.executable, "-c", KILLED, str(tmp_path), repr(experiment.to_dict())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        run_id = process.stdout.readline().strip()
        assert process.stdout.readline().strip() == "200"
        time.sleep(0.05)
        process.kill()
    with RunStore(tmp_path, create=False) as store:
        assert store.get(run_id).status == "interrupted"
        _, meta = store.load_checkpoint(run_id)
        saved = meta["steps"]
        assert saved >= 195  # a checkpoint at every evaluation
        assert store.curves(run_id)["step"].tolist()[: saved // 5 + 1] == list(range(0, saved + 1, 5))
        steps = saved + 40
        shorter = experiment.override({"schedule.steps": steps})
        store.update(run_id, config=shorter.to_dict())
        same_result(resume(run_id, store), train(shorter))


def test_killed_before_the_first_checkpoint_starts_again(tmp_path):
    with RunStore(tmp_path) as store:
        run_id = store.create(TINY.to_dict(), preset="quick", version="grokfast 0", device="cpu")
        with pytest.warns(UserWarning, match="was begun with grokfast 0, this is grokfast"):
            same_result(resume(run_id, store), train(TINY))


def test_a_run_that_fails_is_marked_and_can_be_resumed(tmp_path):
    def fail():
        raise RuntimeError("out of memory")

    with RunStore(tmp_path) as store:
        with pytest.raises(RuntimeError, match="out of memory"):
            train(TINY, store=store, observers=[StopAt(33, fail)], checkpoint_every=0)
        (stored,) = store.list()
        assert stored.status == "failed"
        same_result(resume(stored.run_id, store), train(TINY))


def test_resuming_what_has_ended_is_refused(tmp_path):
    with RunStore(tmp_path) as store:
        result = train(TINY, store=store)
        with pytest.raises(ValueError, match="has ended already"):
            resume(result.run_id, store)
        with pytest.raises(StoreError, match="has no run 'quick-nope'"):
            resume("quick-nope", store)


def test_a_corrupt_checkpoint_is_refused_and_nothing_changes(tmp_path):
    with RunStore(tmp_path) as store:
        with pytest.raises(Interrupted) as stopped:
            train(TINY, store=store, observers=[StopAt(33)])
        (run_id,) = stopped.value.run_ids
        path = store.directory(run_id) / "checkpoint.safetensors"
        data = bytearray(path.read_bytes())
        data[-9] ^= 1
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors is damaged"):
            resume(run_id, store)
        assert store.get(run_id).status == "interrupted"
        assert path.read_bytes() == data
        assert store.curves(run_id)["step"][-1] == 30


def test_a_full_disk_stops_the_run_and_what_was_stored_stays_readable(tmp_path):
    with RunStore(tmp_path) as store:

        def fill():
            pages = store._db.execute("PRAGMA page_count")[0][0]
            store._db.execute(f"PRAGMA max_page_count = {pages}")

        long = TINY.override({"schedule.steps": 100_000, "schedule.eval_every": 1})
        with pytest.raises(StoreFullError, match="remains readable"):
            train(long, store=store, observers=[StopAt(100, fill)], checkpoint_every=0)
        (stored,) = store.list()
        steps = store.curves(stored.run_id)["step"].tolist()
        assert steps == list(range(len(steps)))
        assert len(steps) >= 100
        store.load_checkpoint(stored.run_id)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: train([]), ValueError, "experiments must name at least one"),
        (lambda: train("quick"), TypeError, "experiments must be Experiment objects, got str"),
        (lambda: train(TINY, checkpoint_every=-1), ValueError, "checkpoint_every"),
        (lambda: train(TINY.override({"device": "cuda:99"})), ValueError, "device"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
