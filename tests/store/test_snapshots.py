"""The store's snapshots: whole or absent, listed, and not taken away from those who need them."""

import os

import pytest
import torch

from grokfast.store import CheckpointError, NewRun, RunStore, StoreError
from tests.store.common import new_run

WEIGHTS = {"w": torch.arange(6.0).reshape(2, 3)}
STATE = {"parameters": torch.arange(8.0), "exp_avg": torch.ones(8)}
META = {"steps": 3, "seconds": 0.5}


def test_weights_and_state_come_back(store):
    run = new_run(store)
    assert store.snapshots.of(run) == {}
    store.snapshots.save(run, 100, WEIGHTS, META)
    store.snapshots.save(run, 3, WEIGHTS, META, STATE)
    store.snapshots.save(run, 20, WEIGHTS, META, STATE)
    assert list(store.snapshots.of(run).items()) == [(3, True), (20, True), (100, False)]
    weights, meta = store.snapshots.weights(run, 3)
    assert torch.equal(weights["w"], WEIGHTS["w"])
    assert meta == META
    tensors, meta = store.snapshots.state(run, 3)
    assert all(torch.equal(tensors[name], STATE[name]) for name in STATE)
    assert meta == META
    assert sorted(os.listdir(store.directory(run, "snapshots")))[0] == "100.safetensors"


def test_a_later_one_replaces_it(store):
    run = new_run(store)
    for value in (1.0, 2.0):
        store.snapshots.save(run, 3, {"w": torch.tensor([value])}, META)
    assert store.snapshots.weights(run, 3)[0]["w"].item() == 2


def test_what_is_not_there_is_named(store):
    run = new_run(store)
    with pytest.raises(StoreError, match=f"run {run} has no snapshot of step 3: it has none"):
        store.snapshots.weights(run, 3)
    store.snapshots.save(run, 3, WEIGHTS, META, STATE)
    store.snapshots.save(run, 7, WEIGHTS, META)
    with pytest.raises(StoreError, match=f"run {run} has no snapshot of step 4: those that it has are of 3, 7"):
        store.snapshots.weights(run, 4)
    with pytest.raises(StoreError, match=f"run {run} has no full snapshot of step 7: those that it has are of 3"):
        store.snapshots.state(run, 7)
    with pytest.raises(StoreError, match="has no run 'nobody'"):
        store.snapshots.of("nobody")
    with pytest.raises(ValueError, match="step must be at least 0, got -1"):
        store.snapshots.save(run, -1, WEIGHTS, META)


def test_what_is_no_snapshot_is_not_one(store):
    run = new_run(store)
    store.snapshots.save(run, 3, WEIGHTS, META)
    folder = store.directory(run, "snapshots")
    for name in ("03.safetensors", "x.safetensors", "5.state.safetensors", ".4.safetensors.12345678.tmp"):
        (folder / name).write_bytes(b"")
    assert store.snapshots.of(run) == {3: False}


def test_a_damaged_one_is_said(store):
    run = new_run(store)
    store.snapshots.save(run, 3, WEIGHTS, META)
    path = store.directory(run, "snapshots") / "3.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"3\.safetensors has \d+ bytes where its header promises"):
        store.snapshots.weights(run, 3)


def test_a_link_in_its_place_leads_nowhere(store, tmp_path):
    run, other = new_run(store), tmp_path / "elsewhere"
    other.mkdir()
    (store.directory(run) / "snapshots").symlink_to(other)
    for action in (lambda: store.snapshots.of(run), lambda: store.snapshots.save(run, 3, WEIGHTS, META)):
        with pytest.raises(StoreError, match="is a symbolic link"):
            action()


def test_halves_of_a_killed_process_go_with_the_next_write(tmp_path):
    with RunStore(tmp_path) as store:
        run = new_run(store)
        store.snapshots.save(run, 3, WEIGHTS, META, STATE)
        folder = store.directory(run, "snapshots")
        for name in (".4.safetensors.0123abcd.tmp", ".4.state.safetensors.0123abcd.tmp"):
            (folder / name).write_bytes(b"half")
        (folder / "notes.tmp").write_bytes(b"somebody's")
    with RunStore(tmp_path) as store:
        new_run(store)
        assert sorted(os.listdir(folder)) == ["3.safetensors", "3.state.safetensors", "notes.tmp"]


def test_they_go_with_the_run(store):
    run = new_run(store)
    store.snapshots.save(run, 3, WEIGHTS, META)
    store.remove(run)
    assert [path.name for path in store.root.iterdir() if path.is_dir()] == [".owners"]


def test_a_run_is_kept_while_a_fork_of_it_has_yet_to_end(store):
    run, other = new_run(store), new_run(store)
    fork = NewRun({"seed": 1, "origin": f"{run}@3"}, "f" * 64, "0.1.0", "cpu")
    sweep = store.sweeps.create("quick", {}, {"axes": {}}, [fork])
    (arm,) = store.sweeps.statuses(sweep)
    store.remove(other)
    with pytest.raises(StoreError, match=f"run {run} is needed: run {arm}, a fork of {run}, has not ended"):
        store.remove(run)
    assert store.has(run)
    store.update(arm, status="finished")
    store.remove(run)


def test_a_sweep_is_kept_while_a_fork_of_its_runs_has_yet_to_end(store):
    parents = [NewRun({"seed": seed}, str(seed) * 64, "0.1.0", "cpu") for seed in (1, 2)]
    sweep = store.sweeps.create("quick", {}, {"axes": {}}, parents)
    fork = NewRun({"seed": 1, "origin": f"quick-{'2' * 12}@3"}, "f" * 64, "0.1.0", "cpu")
    arms = store.sweeps.create("quick", {"seed": 9}, {"axes": {}}, [fork])
    with pytest.raises(StoreError, match=f"sweep {sweep} is needed"):
        store.sweeps.remove(sweep)
    store.sweeps.remove(arms)
    assert store.sweeps.remove(sweep) == 2


def test_a_sweep_that_has_its_own_forks_goes_with_them(store):
    runs = [NewRun({"seed": 1}, "1" * 64, "0.1.0", "cpu")]
    runs.append(NewRun({"seed": 1, "origin": f"quick-{'1' * 12}@3"}, "f" * 64, "0.1.0", "cpu"))
    assert store.sweeps.remove(store.sweeps.create("quick", {}, {"axes": {}}, runs)) == 2
