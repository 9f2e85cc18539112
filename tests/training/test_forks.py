"""Forks: what nothing changes has the same bits, and what a change does to the state."""

import dataclasses

import numpy as np
import pytest
import torch

from grokfast import EMA, MA, Chain, Experiment, backend, train
from grokfast.store import CheckpointError, RunStore, StoreError
from grokfast.training import Interrupted, resume
from grokfast.training.ensemble import Ensemble
from grokfast.training.forks import fitted, fork_of
from grokfast.transforms.base import Transform
from tests.training.common import StopAt, same_result
from tests.training.replays import OPTIONS

TINY = Experiment.preset("quick").override(
    {
        "task.p": 11, "model.width": 30, "schedule.steps": 40, "schedule.eval_every": 5, "schedule.stop_after": None,
        "schedule.snapshots": "13,20", "schedule.full_snapshots": True,
    }
)  # fmt: skip
AT = 13  # between two evaluations


@pytest.fixture
def store(tmp_path):
    with RunStore(tmp_path) as opened:
        yield opened


def fork(run, at=AT, **changes):
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return run.experiment.override({"origin": f"{run.run_id}@{at}", **named})


@dataclasses.dataclass(frozen=True)
class Drift(Transform):
    """Adds to the gradient how often it has been called, and how often it says that it was."""

    def state(self, layout):
        return {"calls": (1,)}

    def apply(self, grad, weights, state, hyper, layout, step):
        grad.add_(state["calls"] + step)
        state["calls"].add_(1)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("at", [13, 20])
def test_one_that_changes_nothing_equals_the_run(how, store, option, at):
    run = train(TINY.override(OPTIONS[option]), store=store)
    same_result(train(fork(run, at), store=store), run)


@pytest.mark.parametrize(
    "changes",
    [
        {"filter": Chain(Drift(), EMA(), MA(3))},
        {"precision": "float64"},
        {"schedule.changes": "warmup(steps=20),step_decay(at=[15,30],of='weight_decay')"},
        {"schedule.batch_size": 7, "filter": "ema"},
    ],
)
def test_nor_does_one_with_other_parts(store, changes):
    run = train(TINY.override(changes), store=store)
    same_result(train(fork(run), store=store), run)


def test_a_transformer_with_dropout(store):
    run = train(
        Experiment.preset("power").override(
            {
                "task.p": 7, "model.d_model": 16, "model.n_heads": 2, "model.dropout": 0.1, "schedule.steps": 9,
                "schedule.batch_size": 8, "schedule.eval_every": 4, "schedule.stop_after": None,
                "schedule.snapshots": "5", "schedule.full_snapshots": True,
            }
        ),
        store=store,
    )  # fmt: skip
    same_result(train(fork(run, 5), store=store), run)


def test_it_is_the_same_alone_as_in_company(store):
    run = train(TINY.override({"filter": "ema"}), store=store)
    arms = [fork(run, optimizer__lr=lr) for lr in (1e-4, run.experiment.optimizer.lr, 1e-2)]
    together = train(arms, store=store)
    same_result(together[1], run)
    for arm, result in zip(arms, together):
        same_result(train(arm, store=store), result)
    assert not np.array_equal(together[0].weights["w_a"], together[2].weights["w_a"])


def state_of(store, run, **changes):
    """What a fork begins with, and with which ensemble."""
    experiment = fork(run, **changes)
    ensemble = Ensemble([experiment])
    return fitted(fork_of(store, experiment.origin), ensemble), ensemble


def test_what_goes_on_and_what_begins_anew(store):
    run = train(TINY.override({"filter": "ema"}), store=store)
    parent, _ = store.snapshots.state(run.run_id, AT)

    def carried(**changes):
        state, _ = state_of(store, run, **changes)
        assert torch.equal(state.tensors["parameters"], parent["parameters"])
        return {name for name, t in state.tensors.items() if t.any()} - {"parameters"}, state.begun

    moments = {"exp_avg", "exp_avg_sq"}
    assert carried() == ({*moments, "ema"}, {})
    assert carried(optimizer="adam") == ({*moments, "ema"}, {})
    assert carried(optimizer="lion") == ({"ema"}, {"optimizer": AT})
    assert carried(optimizer="sgd") == ({"ema"}, {})
    assert carried(filter=None) == (moments, {})
    assert carried(filter=EMA(0.5, 1.0)) == ({*moments, "ema"}, {})
    assert carried(filter=MA(3)) == (moments, {"ma": AT})
    assert carried(filter=Chain(EMA(), MA(3))) == ({*moments, "0.ema"}, {"ma": AT})
    assert carried(filter=Chain(Drift(), EMA())) == ({*moments, "ema"}, {"Drift": AT})


def test_a_window_of_another_length_begins_anew(store):
    run = train(TINY.override({"filter": MA(3)}), store=store)
    assert state_of(store, run, filter=MA(4))[0].begun == {"ma": AT}
    assert state_of(store, run, filter=MA(3, ring="bfloat16"))[0].begun == {"ma": AT}
    assert state_of(store, run, filter=MA(3, lamb=1.0))[0].begun == {}
    assert state_of(store, run, filter=MA(3, start=1))[0].begun == {"ma": AT}  # another start is another history
    assert state_of(store, run, filter=MA(3, stop=99))[0].begun == {}


@pytest.mark.parametrize("backend_name", ["auto", "reference", "triton"])
@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "lion"}, {"optimizer": "sgd(lr=0.1,momentum=0.9)"}, {"filter": "ma(window_size=3)"},
        {"filter": "ma(window_size=30,warmup=false)"}, {"filter": "ema"}, {"filter": Chain(Drift(), EMA())},
        {"optimizer": "adam", "filter": "ema(alpha=0.5)+ma(window_size=2)"},
    ],
)  # fmt: skip
def test_what_begins_anew_does_what_it_would_from_step_0(store, backend_name, changes):
    """SGD without momentum has no state: all that an arm has is new, as in a run that begins with these weights."""
    if backend_name == "triton":
        pytest.importorskip("triton")
    with backend.using(backend_name):
        run = train(TINY.override({"optimizer": "sgd(lr=0.1,weight_decay=0.01)"}), store=store)
        arm = train(fork(run, **changes), store=store)
        ensemble = Ensemble([arm.experiment.override({"origin": None})])
        ensemble.flat.copy_(store.snapshots.state(run.run_id, AT)[0]["parameters"])
        for _ in range(TINY.schedule.steps - AT):
            ensemble.step()
    for name, tensor in ensemble.weights(0).items():
        assert torch.equal(arm.weights[name], tensor), name


def test_a_fork_that_was_interrupted_still_knows_what_began_when(how, store):
    run = train(TINY, store=store)
    arm = fork(run, filter="ma(window_size=30,warmup=false)", optimizer="lion")
    whole = train(arm, store=store)
    with pytest.raises(Interrupted) as stopped:
        train(arm, store=store, observers=[StopAt(26)])
    same_result(resume(stopped.value.run_ids[0], store), whole)


def test_a_fork_of_a_fork(store):
    run = train(TINY, store=store)
    second = train(fork(run, filter="ma(window_size=30,warmup=false)"), store=store)
    assert [*store.snapshots.of(second.run_id)] == [13, 20]  # its own begin where it does
    third = train(fork(second, 20), store=store)
    same_result(third, second)
    assert third.curves["step"].tolist() == list(range(0, 41, 5))


def test_evaluations_before_it_are_the_runs(store):
    run = train(TINY, store=store)
    arm = train(fork(run, schedule__eval_every=3, probes="spread"), store=store)
    assert arm.curves["step"].tolist() == [0, 5, 10, *range(15, 40, 3), 40]
    new = [name for name in arm.curves if name not in run.curves]
    assert new
    assert all(np.isnan(arm.curves[name][:3]).all() and not np.isnan(arm.curves[name][3:]).any() for name in new)
    np.testing.assert_array_equal(arm.curves["test_loss"][:3], run.curves["test_loss"][:3])
    with pytest.raises(Interrupted) as stopped:
        train(arm.experiment, store=store, observers=[StopAt(26)])
    same_result(resume(stopped.value.run_ids[0], store), arm)


def test_another_seed_decides_about_what_comes_alone(store):
    run = train(TINY, store=store)
    other = train(fork(run, seed=9), store=store)
    np.testing.assert_array_equal(other.curves["test_loss"][:3], run.curves["test_loss"][:3])
    assert not torch.equal(other.weights["w_a"], run.weights["w_a"])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model__width": 40}, ValueError, r"fork of \S+ must have its parameters: \S+ is \[11, 30\], here \[11, 40\]"),
        ({"task__p": 13}, ValueError, r"must have its parameters: w_a is \[11, 30\], here \[13, 30\]"),
        ({"model__bias": False}, ValueError, r"must have its parameters: \S+ is \[\d+\], here absent"),
        ({"at": 14}, StoreError, "has no full snapshot of step 14: those that it has are of 13, 20"),
        ({"schedule__steps": 12, "schedule__snapshots": None}, ValueError, "schedule.steps must be at least the 13 of"),
        ({"origin": "nowhere@13"}, StoreError, "has no run 'nowhere'"),
        ({"origin": "nowhere"}, ValueError, "origin must be RUN@STEP, got 'nowhere'"),
    ],
)  # fmt: skip
def test_one_that_cannot_begin_is_refused_before_anything_is_stored(store, changes, error, message):
    run = train(TINY, store=store)
    with pytest.raises(error, match=message):
        train(fork(run, **changes), store=store)
    assert len(store.list()) == 1


def test_of_weights_alone_there_are_no_forks(store):
    run = train(TINY.override({"schedule.full_snapshots": False}), store=store)
    with pytest.raises(StoreError, match="has no full snapshot of step 13: it has none"):
        train(fork(run), store=store)
    with pytest.raises(ValueError, match="origin is of a store, which must be given, got"):
        train(fork(run, schedule__snapshots=None))


def test_one_that_is_damaged_is_said(store):
    run = train(TINY, store=store)
    path = store.directory(run.run_id, "snapshots") / "13.state.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(CheckpointError, match=r"13\.state\.safetensors is damaged"):
        train(fork(run), store=store)
