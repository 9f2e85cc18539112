"""Snapshots: at the steps that were asked for, with the weights of then, in both engines; and what reads them."""

import pytest
import torch

from grokfast import Experiment, train
from grokfast.store import CheckpointError, RunStore, StoreError
from grokfast.training import Interrupted, resume
from grokfast.training.snapshots import Times, written
from tests.training.common import StopAt, same_result

TINY = Experiment.preset("quick").override(
    {"task.p": 11, "model.width": 32, "schedule.steps": 40, "schedule.eval_every": 5, "schedule.stop_after": None}
)


@pytest.fixture
def store(tmp_path):
    with RunStore(tmp_path) as opened:
        yield opened


@pytest.mark.parametrize("n", [1, 3, 8, 100])
def test_logarithmic_times(n):
    times, found = Times(f"log:{n}"), []
    while (step := times.next(found[-1] + 1 if found else 0)) <= 5000:
        found.append(step)
    expected = sorted({0, *(s for i in range(4 * n + 1) if (s := round(10 ** (i / n))) <= 5000)})
    assert found == expected
    assert [step for step in range(5001) if step in times] == expected


@pytest.mark.parametrize(
    ("said", "text", "steps"),
    [
        ("none", None, []), (None, None, []), ([], None, []), ("3, 1,3", "1,3", [1, 3]), ((7, 0), "0,7", [0, 7]),
        ("every:6", "every:6", [0, 6, 12, 18]), ("every: 7", "every:7", [0, 7, 14]),
    ],
)  # fmt: skip
def test_what_is_written(said, text, steps):
    assert written("x", said) == text
    assert written("x", text) == text
    assert [step for step in range(20) if step in Times(text)] == steps


@pytest.mark.parametrize(
    ("said", "error", "message"),
    [
        ("every:0", ValueError, "schedule.snapshots every must be at least 1, got 0"),
        ("log:101", ValueError, "schedule.snapshots log must be between 1 and 100, got 101"),
        ("often", ValueError, "schedule.snapshots must be steps like '0,100,1000', 'every:N' or 'log:N', got 'often'"),
        ("1,-2", ValueError, "schedule.snapshots must be steps"),
        ([1, -2], ValueError, r"schedule.snapshots\[1\] must be at least 0, got -2"),
        ([1.5], TypeError, r"schedule.snapshots\[0\] must be an integer"),
        (3, TypeError, "schedule.snapshots must be steps, 'every:N' or 'log:N', got 3"),
        ("0,41", ValueError, "schedule.snapshots must be at most schedule.steps, 40, got 41"),
    ],
)
def test_bad_times_are_refused(said, error, message):
    with pytest.raises(error, match=message):
        TINY.override({"schedule.snapshots": said})


def test_what_keeps_none_has_the_hash_that_it_had():
    from grokfast.sweeps.grid import identity

    assert not {"snapshots", "full_snapshots"} & identity(TINY)["schedule"].keys()
    assert "origin" not in identity(TINY)


@pytest.mark.parametrize("full", [False, True])
def test_they_are_what_the_run_was_then(how, store, full):
    """At evaluations, between them, at the beginning and at the end; a run of an ensemble as one alone."""
    steps = [0, 7, 8, 20, 23, 40]
    kept = TINY.override({"schedule.snapshots": steps, "schedule.full_snapshots": full})
    runs = train([kept, kept.override({"seed": 1})], store=store)
    for run, seed in zip(runs, (0, 1)):
        assert store.snapshots.of(run.run_id) == dict.fromkeys(steps, full)
        same_result(run, train(TINY.override({"seed": seed})))
        for step in steps[1:]:
            short, then = train(TINY.override({"seed": seed, "schedule.steps": step})), run.at(step)
            assert (then.steps, then.status, then.seconds > 0) == (step, "snapshot", True)
            assert all(torch.equal(then.weights[name], w) for name, w in short.weights.items())
            last = step - step % 5
            assert then.curves["step"].tolist() == list(range(0, last + 1, 5))
            assert (then.t_memorize, then.final.step) == (short.t_memorize if step == last else then.t_memorize, last)
    assert run.at(40).sentence == run.sentence


def test_a_run_that_ends_early_has_none_after_its_end(how, store):
    """A replayed device is ahead of what is known here."""
    groks = TINY.override(
        {
            "task.p": 17, "model.width": 64, "model.activation": "square", "task.train_fraction": 0.8,
            "schedule.steps": 2000, "schedule.stop_after": 10, "schedule.snapshots": "every:2",
        }
    )  # fmt: skip
    run = train(groks, store=store)
    assert run.t_generalize is not None
    assert run.steps < 2000
    assert run.at(run.steps).sentence == run.sentence
    with pytest.raises(StoreError, match=f"run {run.run_id} has (ended before|no snapshot of) step {run.steps + 2}"):
        run.at(run.steps + 2)


def test_one_that_diverges_keeps_none_of_that(how, store):
    wild = TINY.override({"optimizer.lr": 1e30, "schedule.snapshots": "every:1"})
    run = train(wild, store=store)
    assert [*store.snapshots.of(run.run_id)] == list(range(run.diverged_at + 1))


def test_interrupted_and_resumed_they_are_the_same(how, store):
    kept = TINY.override({"schedule.snapshots": "every:3"})
    with pytest.raises(Interrupted) as stopped:
        train(kept, store=store, observers=[StopAt(18)])
    (run_id,) = stopped.value.run_ids
    before = {step: store.snapshots.weights(run_id, step)[0] for step in store.snapshots.of(run_id)}
    run = resume(run_id, store)
    assert [*store.snapshots.of(run_id)] == list(range(0, 40, 3))
    for step, weights in before.items():
        assert all(torch.equal(run.at(step).weights[name], w) for name, w in weights.items())
    further = resume(run_id, store, steps=50)
    assert [*store.snapshots.of(run_id)] == list(range(0, 50, 3))
    assert further.at(48).steps == 48


def test_what_is_not_there_is_named(store):
    run = train(TINY.override({"schedule.snapshots": [0, 20]}), store=store)
    with pytest.raises(
        StoreError, match=f"run {run.run_id} has no snapshot of step 10: those that it has are of 0, 20"
    ):
        run.at(10)
    with pytest.raises(TypeError, match="step must be an integer"):
        run.at(0.5)
    without = train(TINY, store=store)
    with pytest.raises(StoreError, match=f"run {without.run_id} has no snapshot of step 10: it has none"):
        without.at(10)
    with pytest.raises(ValueError, match="snapshots are of a stored run: give `train` a store"):
        train(TINY).at(10)
    with pytest.raises(ValueError, match=r"schedule\.snapshots need a store, which must be given, got '1'"):
        train(TINY.override({"schedule.snapshots": "1"}))
    path = store.directory(run.run_id, "snapshots") / "20.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(CheckpointError, match=r"20\.safetensors is damaged"):
        run.at(20)
