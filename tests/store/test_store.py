"""Runs in the store: made, read, listed, changed, removed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from grokfast.store import CheckpointError, RunStore, StoreError, UnknownRunError
from tests.store.common import chunk_sizes, new_run, records, snapshot, steps


def test_a_run_comes_back_as_it_was_stored(tmp_path: Path) -> None:
    config = {"task": {"name": "modular", "p": 97}, "lr": 1e-3, "betas": [0.9, 0.98], "filter": None}
    with RunStore(tmp_path) as store:
        run_id = store.create(config, preset="nanda", version="0.1.0", device="cuda:0")
        assert store.get(run_id).status == "running"
        store.update(run_id, status="diverged", result={"t_memorize": 100, "loss": float("inf")})
    with RunStore(str(tmp_path), create=False) as store:
        run = store.get(run_id)
    assert run_id.startswith("nanda-")
    assert len(run_id) == len("nanda-") + 6
    assert (run.run_id, run.preset, run.version, run.device) == (run_id, "nanda", "0.1.0", "cuda:0")
    assert (run.status, run.config, run.result) == ("diverged", config, {"t_memorize": 100, "loss": float("inf")})
    assert run.directory == tmp_path / run_id == store.root / run_id
    assert run.directory.is_dir()
    assert run.created <= run.updated
    assert run.created.endswith("+00:00")


def test_configs_are_stored_as_json_text(store: RunStore) -> None:
    store.create({"α": "café", "n": (1, 2)}, preset="quick", version="", device="")
    [(text,)] = store._db.execute("SELECT config FROM runs")
    assert json.loads(text) == {"α": "café", "n": [1, 2]} == store.list()[0].config


def test_runs_are_listed_newest_first_and_filtered(store: RunStore) -> None:
    ids = [new_run(store, preset) for preset in ("quick", "nanda", "quick", "s5")]
    store.update(ids[2], status="finished")
    assert [run.run_id for run in store.list()] == ids[::-1]
    assert [run.run_id for run in store.list(preset="quick")] == [ids[2], ids[0]]
    assert [run.run_id for run in store.list(preset="quick", status="running")] == [ids[0]]
    assert store.list(status="failed") == []
    assert len(set(ids)) == 4


def test_update_leaves_what_is_not_given(store: RunStore) -> None:
    run_id = new_run(store)
    store.update(run_id, result={"a": 1})
    store.update(run_id, status="interrupted")
    assert (store.get(run_id).status, store.get(run_id).result) == ("interrupted", {"a": 1})


def test_bad_arguments_are_named(store: RunStore) -> None:
    run_id = new_run(store)
    with pytest.raises(ValueError, match=r"status must be one of .*'finishd'.*did you mean 'finished'"):
        store.update(run_id, status="finishd")
    with pytest.raises(ValueError, match="status"):
        store.list(status="done")
    with pytest.raises(TypeError, match="config must be a dict"):
        store.create([1], preset="quick", version="", device="")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="result must consist of JSON values"):
        store.update(run_id, result={"curve": np.zeros(2)})
    for preset in ("", "../elsewhere", "a/b", ".hidden"):
        with pytest.raises(ValueError, match="preset"):
            new_run(store, preset)
    assert [run.run_id for run in store.list()] == [run_id]


def test_an_unknown_id_is_answered_with_the_nearest(store: RunStore) -> None:
    run_id = new_run(store)
    typo = run_id[:-1] + "x"
    calls = [
        lambda: store.get(typo),
        lambda: store.curves(typo),
        lambda: store.append(typo, records(1)),
        lambda: store.append(typo, []),
        lambda: store.truncate(typo, 0),
        lambda: store.update(typo, status="failed"),
        lambda: store.directory(typo),
        lambda: store.remove(typo),
        lambda: store.save_checkpoint(typo, {}, {}),
        lambda: store.load_checkpoint(typo),
        lambda: store.has_checkpoint(typo),
        lambda: store.load_weights(typo),
    ]
    for call in calls:
        with pytest.raises(UnknownRunError, match=rf"no run '{typo}' \(did you mean '{run_id}'\?\)$"):
            call()
    with pytest.raises(KeyError):
        store.get("")
    assert isinstance(UnknownRunError(), StoreError)


def test_removing_a_run_leaves_nothing_of_it(store: RunStore) -> None:
    kept, removed = new_run(store), new_run(store)
    for run_id in (kept, removed):
        store.append(run_id, records(0, 1))
        store.save_checkpoint(run_id, {"w": torch.ones(1)}, {})
    store.remove(removed)
    assert [run.run_id for run in store.list()] == [kept]
    assert not (store.root / removed).exists()
    assert chunk_sizes(store) == [2]
    assert steps(store, kept) == [0, 1]


def test_checkpoints_and_weights_are_separate(store: RunStore) -> None:
    run_id = new_run(store)
    assert not store.has_checkpoint(run_id)
    with pytest.raises(CheckpointError, match="does not exist"):
        store.load_checkpoint(run_id)
    store.save_checkpoint(run_id, {"w": torch.zeros(3)}, {"step": 1})
    store.save_checkpoint(run_id, {"w": torch.ones(3)}, {"step": 2})
    store.save_weights(run_id, {"w": torch.full((3,), 5.0)})
    tensors, meta = store.load_checkpoint(run_id)
    assert store.has_checkpoint(run_id)
    assert (tensors["w"].tolist(), meta) == ([1, 1, 1], {"step": 2})
    assert store.load_weights(run_id)["w"].tolist() == [5, 5, 5]
    assert sorted(snapshot(store.directory(run_id))) == ["checkpoint.safetensors", "weights.safetensors"]
