"""Ids, owners and links of a store that somebody else made: nothing outside of its root is touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from grokfast.cli import main
from grokfast.store import DamagedError, DamagedWarning, NewRun, RunStore, StoreError
from grokfast.store.places import checked_id, checked_name
from grokfast.store.sweeps import digest
from tests.store.common import new_run, records, snapshot

NO_IDS = ["../victim", "..", ".", "", "a/b", "a\\b", "/tmp/victim", "a\0b", "a\nb", ".owners", "grokfast.sqlite", "-rf"]
NO_IDS += ["C:x", "x" * 201, "\udcff", "grokfast.sqlite-wal", "\x1b[31m"]


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder beside the store, with a file; it must stay as it is."""
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "checkpoint.safetensors").write_bytes(b"precious")
    return folder


@pytest.fixture(autouse=True)
def stays(victim: Path):
    before = snapshot(victim)
    yield
    assert snapshot(victim) == before


def forge(store: RunStore, run_id: str, /, **changes: object) -> None:
    """Change a run's row behind the store's back, with the seal that fits."""
    row = store._rows.get(run_id)
    with store._db.transaction():
        store._rows.change(row, **changes)


@pytest.mark.parametrize("value", NO_IDS)
def test_what_is_no_id_is_refused(value: str) -> None:
    with pytest.raises(StoreError, match="is no id of a run or a sweep"):
        checked_id(value)
    with pytest.raises(ValueError, match=r"name .* must be"):
        checked_name(value)


@pytest.mark.parametrize("value", ["quick-3fa9c1", "my sweep-sweep-0123abcd", "größe-123456789abc"])
def test_ids_of_older_versions_are_taken(value: str) -> None:
    assert checked_id(value) == value


@pytest.mark.parametrize("name", [*NO_IDS, "a b", 3, None])
def test_no_door_takes_a_name_that_is_none(store: RunStore, name: str) -> None:
    before = sorted(store.root.iterdir())
    with pytest.raises(ValueError, match=r"name .* must be"):
        new_run(store, name)
    with pytest.raises(ValueError, match=r"name .* must be"):
        store.sweeps.create(name, {}, {}, [NewRun({}, digest({}), "v", "cpu")])
    with pytest.raises(ValueError, match="hash must be"):
        store.sweeps.create("quick", {}, {}, [NewRun({}, "../../../../../victim", "v", "cpu")])
    assert (sorted(store.root.iterdir()), store.list()) == (before, [])


@pytest.mark.parametrize("bad", ["../victim", "absolute", ".", ".owners"])
def test_a_row_with_a_path_for_an_id_is_refused(store: RunStore, victim: Path, bad: str) -> None:
    bad = str(victim) if bad == "absolute" else bad
    whole, run_id = new_run(store), new_run(store)
    forge(store, run_id, run_id=bad, status="interrupted")
    doors = [
        store.get, store.curves, store.directory, store.has_checkpoint, store.load_checkpoint, store.drop_checkpoint,
        store.load_weights, store.remove, lambda run_id: store.save_checkpoint(run_id, {"w": torch.ones(1)}, {}),
        lambda run_id: store.save_weights(run_id, {}), lambda run_id: store.sweeps.claim_all([run_id]),
        lambda run_id: store.append(run_id, records(0)), lambda run_id: store.update(run_id, status="finished"),
    ]  # fmt: skip
    for door in doors:
        with pytest.raises(StoreError, match="is no id of a run or a sweep"):
            door(bad)
    with pytest.warns(DamagedWarning, match="is no id"):
        assert [run.run_id for run in store.list()] == [whole]


def test_a_sweep_with_such_a_run_is_removed_without_it(store: RunStore, victim: Path) -> None:
    sweep_id = store.sweeps.create("quick", {}, {}, [NewRun({"seed": s}, digest(s), "v", "cpu") for s in range(2)])
    good, bad = store.sweeps.statuses(sweep_id)
    store.sweeps.claim([good])
    forge(store, bad, run_id="../victim", status="finished")
    with pytest.raises(DamagedError, match="is no id"):
        store.sweeps.statuses(sweep_id)
    assert store.sweeps.remove(sweep_id) == 2
    assert store.list() == []
    assert not (store.root / good).exists()


def test_a_sweep_that_is_a_path_is_refused(store: RunStore) -> None:
    sweep_id = store.sweeps.create("quick", {}, {}, [NewRun({}, digest(0), "v", "cpu")])
    store._db.execute("UPDATE sweeps SET sweep_id = '../victim' WHERE sweep_id = ?", (sweep_id,))
    for door in (store.sweeps.get, store.sweeps.remove):
        with pytest.raises(StoreError, match=r"damaged|is no id"):
            door("../victim")


@pytest.mark.parametrize("owner", ["../../victim/checkpoint.safetensors", "../../victim/x", "", "0123"])
def test_an_owner_that_is_a_path_is_refused(store: RunStore, owner: str) -> None:
    run_id = new_run(store)
    forge(store, run_id, owner=owner)
    for door in (store.get, lambda run_id: store.sweeps.claim([run_id])):
        with pytest.raises(StoreError, match="is no owner"):
            door(run_id)
    store.remove(run_id)


def test_links_are_not_followed(store: RunStore, victim: Path) -> None:
    run_id = new_run(store)
    store.directory(run_id).rmdir()
    (store.root / run_id).symlink_to(victim, target_is_directory=True)
    store.update(run_id, status="interrupted")
    doors = [
        store.directory, store.has_checkpoint, store.load_checkpoint, store.drop_checkpoint, store.load_weights,
        lambda run_id: store.save_checkpoint(run_id, {"w": torch.ones(1)}, {}),
        lambda run_id: store.save_weights(run_id, {}), lambda run_id: store.sweeps.claim_all([run_id]),
        lambda run_id: store.update(run_id, status="diverged"),
    ]  # fmt: skip
    for door in doors:
        with pytest.raises(StoreError, match="is a symbolic link"):
            door(run_id)
    assert store.size() < 1_000_000
    store.remove(run_id)  # of the link
    assert not (store.root / run_id).is_symlink()


def test_links_in_a_runs_folder_are_not_followed(store: RunStore, victim: Path) -> None:
    run_id = new_run(store)
    link = store.directory(run_id) / "checkpoint.safetensors"
    link.symlink_to(victim / "checkpoint.safetensors")
    (store.directory(run_id) / "tensorboard").symlink_to(victim, target_is_directory=True)
    for door in (store.load_checkpoint, lambda run_id: store.save_checkpoint(run_id, {}, {})):
        with pytest.raises(StoreError, match="is a symbolic link"):
            door(run_id)
    with pytest.raises(StoreError, match="is a symbolic link"):
        store.directory(run_id, "tensorboard")
    store.remove(run_id)


@pytest.mark.parametrize("name", ["grokfast.sqlite", ".owners"])
def test_a_database_or_locks_that_are_links_are_refused(store: RunStore, victim: Path, name: str) -> None:
    new_run(store)
    store.close()
    (store.root / name).rename(victim.parent / "elsewhere")
    (store.root / name).symlink_to(victim.parent / "elsewhere")
    before = snapshot(victim.parent / "elsewhere")
    with pytest.raises(StoreError, match="is a symbolic link"), RunStore(store.root) as opened:
        new_run(opened)
    assert snapshot(victim.parent / "elsewhere") == before


def test_a_root_that_is_a_link_is_its_users_wish(tmp_path: Path) -> None:
    (tmp_path / "big disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "big disk", target_is_directory=True)
    with RunStore(tmp_path / "runs") as store:
        run_id = new_run(store)
        store.save_checkpoint(run_id, {"w": torch.ones(1)}, {})
        store.remove(run_id)


@pytest.mark.parametrize("name", ["absolute", "../../x", "a/b", "..", ".hidden", "[/red]", "a\nb"])
@pytest.mark.parametrize("door", ["run", "sweep", "toml"])
def test_no_command_takes_a_name_that_leads_out_of_its_directory(
    tmp_path: Path, capsys, monkeypatch, door: str, name: str
) -> None:
    name = str(tmp_path / "pwn") if name == "absolute" else name
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    (inside / "sweep.toml").write_text(f"preset = 'quick'\nname = {json.dumps(name)}\n[grid]\nseed = [0, 1]\n")
    commands = {
        "run": ["run", "quick", "--steps", "1", "--name", name],
        "sweep": ["sweep", "quick", "--steps", "1", "--seeds", "1", "--name", name],
        "toml": ["sweep", "sweep.toml", "--steps", "1"],
    }
    before = set(tmp_path.rglob("*"))
    assert main([*commands[door], "--out", "runs"]) == 2
    assert "name" in capsys.readouterr().err
    assert {path for path in set(tmp_path.rglob("*")) - before if inside / "runs" not in (path, *path.parents)} == set()
    assert not any(path.is_dir() for path in (inside / "runs").rglob("*"))
