from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from grokfast.store import CheckpointError, StoreFullError
from grokfast.store.files import load_tensors, save_tensors, write_atomic

BASE = torch.arange(24, dtype=torch.float32).reshape(4, 6)
TENSORS = {
    "float32": BASE,
    "float64": torch.tensor([1e-310, -0.0, float("inf"), 1 / 3], dtype=torch.float64),
    "bfloat16": torch.tensor([1.5, -2.25, 3e38], dtype=torch.bfloat16),
    "int64": torch.tensor([-(2**63), 2**63 - 1]),
    "bool": torch.tensor([True, False, True]),
    "nan_payloads": torch.tensor([0x7FC00001, 0x7F800001], dtype=torch.int32).view(torch.float32),
    "scalar": torch.tensor(2.5),
    "scalar_int": torch.tensor(7),
    "empty": torch.empty(0, 3),
    "transposed": BASE.T,
    "strided": BASE[:, ::2],
    "slice": BASE[1:3],
    "same_again": BASE,
    "expanded": torch.tensor([[1.0], [2.0]]).expand(2, 5),
    "parameter": torch.nn.Parameter(torch.ones(2, 2)),
    "conjugate": torch.tensor([1 + 2j], dtype=torch.complex64).conj(),
}


def same_bits(a: Tensor, b: Tensor) -> bool:
    a, b = (t.detach().resolve_conj().contiguous() for t in (a, b))
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (a, b)))


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint.safetensors"
    save_tensors(path, {"w": torch.arange(10.0), "step": torch.tensor(3)}, {"step": 3, "note": 'a "crc32":"00000000"'})
    return path


def test_tensors_of_every_kind_come_back_with_the_same_bits(tmp_path: Path) -> None:
    path = tmp_path / "all.safetensors"
    save_tensors(path, TENSORS, {"step": 12, "nested": {"loss": 0.1, "nan": float("inf"), "none": None}})
    loaded, meta = load_tensors(path)
    assert loaded.keys() == TENSORS.keys()
    assert all(same_bits(TENSORS[name], loaded[name]) for name in TENSORS)
    assert meta == {"step": 12, "nested": {"loss": 0.1, "nan": float("inf"), "none": None}}


def test_loaded_tensors_are_independent_and_writable(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"whole": BASE, "part": BASE[0]})
    loaded, _ = load_tensors(path)
    loaded["whole"].zero_()
    assert torch.equal(loaded["part"], BASE[0])
    assert torch.equal(load_tensors(path)[0]["whole"], BASE)


def test_no_tensors_and_no_meta(tmp_path: Path) -> None:
    save_tensors(tmp_path / "empty.safetensors", {})
    assert load_tensors(tmp_path / "empty.safetensors") == ({}, {})


def test_any_safetensors_reader_opens_the_file(saved: Path) -> None:
    with safe_open(saved, framework="numpy") as file:
        assert file.get_tensor("w").tolist() == list(range(10))
        assert len(file.metadata()["crc32"]) == 8


@pytest.mark.parametrize(
    ("tensors", "meta", "message"),
    [
        ({"a": [1.0]}, {}, "dense tensors, got 'a': list"),
        ({1: torch.ones(1)}, {}, "map names"),
        ({"a": torch.eye(2).to_sparse()}, {}, "dense tensors"),
        ({"a": torch.zeros(1, dtype=torch.complex128)}, {}, "complex128"),
        ({}, {"a": torch.ones(1)}, "meta must consist of JSON values: .*Tensor"),
        ({}, [1], "meta must be a dict, got list"),
    ],
)
def test_what_cannot_be_stored_is_refused_and_the_old_file_stays(saved: Path, tensors, meta, message: str) -> None:
    before = saved.read_bytes()
    with pytest.raises(TypeError, match=message):
        save_tensors(saved, tensors, meta)
    assert saved.read_bytes() == before
    assert names(saved.parent) == [saved.name]


def test_every_truncation_is_noticed(saved: Path) -> None:
    data = saved.read_bytes()
    for length in range(len(data)):
        saved.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors (is|has) "):
            load_tensors(saved)
        assert saved.stat().st_size == length
    saved.write_bytes(data + b"\0")
    with pytest.raises(CheckpointError, match="promises"):
        load_tensors(saved)


def test_every_flipped_bit_is_noticed(saved: Path) -> None:
    data = saved.read_bytes()
    for position in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            saved.write_bytes(flipped)
            with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors"):
                load_tensors(saved)
    assert names(saved.parent) == [saved.name]


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", b"\2\0\0\0\0\0\0\0{}", b"\2\0\0\0\0\0\0\0[]"])
def test_other_files_are_refused(saved: Path, content: bytes) -> None:
    saved.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors"):
        load_tensors(saved)


def test_a_missing_file_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.safetensors does not exist"):
        load_tensors(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_temporary(saved: Path, monkeypatch, function: str, code: int) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(StoreFullError, match=r"checkpoint\.safetensors: .* remains readable"):
        save_tensors(saved, {"w": torch.ones(3)})
    assert names(saved.parent) == [saved.name]
    assert load_tensors(saved)[1]["step"] == 3


def test_other_failures_keep_their_type(saved: Path, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        save_tensors(saved, {"w": torch.ones(3)})
    assert names(saved.parent) == [saved.name]


def test_a_header_that_cannot_carry_the_checksum_is_never_written(saved: Path, monkeypatch) -> None:
    before = saved.read_bytes()
    monkeypatch.setattr("safetensors.torch.save", lambda *_: b"\x02\0\0\0\0\0\0\0{}")
    with pytest.raises(RuntimeError, match="unknown way"):
        save_tensors(saved, {"w": torch.ones(3)})
    assert saved.read_bytes() == before


def test_the_temporary_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".a.0123abcd.tmp").write_bytes(b"half")
    (tmp_path / ".b.0123abcd.tmp").write_bytes(b"of another file")
    write_atomic(tmp_path / "a", b"one ", memoryview(b"two"))
    assert (tmp_path / "a").read_bytes() == b"one two"
    assert names(tmp_path) == [".b.0123abcd.tmp", "a"]


def test_files_get_the_permissions_of_ordinary_files(tmp_path: Path) -> None:
    (tmp_path / "ordinary").touch()
    write_atomic(tmp_path / "a", b"")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "ordinary").stat().st_mode
