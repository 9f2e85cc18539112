"""Data sets in a store: once each, whole, and gone when no run has them."""

import os
import time

import pytest
import torch

from grokfast.store import CheckpointError, RunStore, StoreError
from grokfast.store.data import load_data
from tests.store.common import new_run

SHA = "0123456789abcdef" * 4
SET = {"x": torch.arange(6), "y": torch.zeros(6)}


def age(path, days=2):
    before = time.time() - days * 24 * 3600
    os.utime(path, (before, before))


def test_it_comes_back_and_is_written_once(store):
    store.data.save(SHA, SET)
    path = store.root / ".data" / f"{SHA}.safetensors"
    age(path)
    inode = path.stat().st_ino
    store.data.save(SHA, SET)
    assert path.stat().st_ino == inode
    assert time.time() - path.stat().st_mtime < 3600  # it is needed again
    assert all(torch.equal(load_data(store.root, SHA)[name], SET[name]) for name in SET)


def test_what_is_not_there_or_damaged_is_said(store):
    with pytest.raises(CheckpointError, match="does not exist"):
        load_data(store.root, SHA)
    store.data.save(SHA, SET)
    path = store.root / ".data" / f"{SHA}.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(CheckpointError, match="is damaged"):
        load_data(store.root, SHA)


@pytest.mark.parametrize("name", ["", "../x", SHA[:-1], SHA.upper(), None])
def test_only_a_sha_256_is_a_name(store, name):
    with pytest.raises(StoreError, match=r"is no SHA-256 of a data set"):
        store.data.save(name, SET)


def test_a_link_leads_nowhere(store, tmp_path_factory):
    (store.root / ".data").symlink_to(tmp_path_factory.mktemp("elsewhere"))
    with pytest.raises(StoreError, match="is a symbolic link"):
        store.data.save(SHA, SET)


def test_old_ones_that_no_run_has_go_with_the_next_write(tmp_path):
    other = SHA[::-1]
    with RunStore(tmp_path) as store:
        for sha in (SHA, other):
            store.data.save(sha, SET)
        run = store.create({"task": {"sha256": SHA}}, preset="quick", version="", device="cpu")
        folder = tmp_path / ".data"
        (folder / f".{SHA}.safetensors.0123abcd.tmp").write_bytes(b"half")
    with RunStore(tmp_path) as store:
        new_run(store)
        assert len(list(folder.iterdir())) == 3  # they are young: whoever wrote them may be about to store a run
    for path in folder.iterdir():
        age(path)
    with RunStore(tmp_path) as store:
        new_run(store)
        assert [path.name for path in folder.iterdir()] == [f"{SHA}.safetensors"]
        store.remove(run)
    with RunStore(tmp_path) as store:
        new_run(store)
        assert list(folder.iterdir()) == []
