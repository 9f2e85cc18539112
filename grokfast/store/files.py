"""Files that are either whole or absent: atomic writing, and dictionaries of tensors with a checksum.

A file of tensors is a safetensors file; any safetensors reader opens it. Its `__metadata__` holds two strings: `meta`,
a JSON object, and `crc32`, the CRC-32 (zlib) of the whole file in 8 hexadecimal digits, taken with zeros in place of
those digits. safetensors by itself notices a file that is cut short, but not a flipped bit.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import re
import secrets
import stat
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import safetensors

from grokfast.store.errors import CheckpointError, DamagedError, StoreFullError

if TYPE_CHECKING:  # who only reads runs and curves need not wait for torch
    from torch import Tensor

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # the last: a limit of the process or of the file system
_NAME = 200  # letters of a file's name in that of its temporary
_CHECKSUM = re.compile(rb'"crc32":"[0-9a-f]{8}"')
_LENGTH_BYTES = 8  # a safetensors file: the length of its header (little-endian), the header (JSON), the data


@contextmanager
def full_disk_as_store_error(path: Path) -> Iterator[None]:
    """Turn an OSError that means "no space left" or "over quota" into StoreFullError naming `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise StoreFullError(f"{path}: {error.strerror}; what was stored before remains readable") from error


def to_json(name: str, value: Any) -> str:
    """Return the dictionary `value` as JSON (NaN and infinities as Python writes them).

    Raises TypeError naming `name` if it is no dictionary or holds something that JSON cannot.
    """
    if not isinstance(value, dict):
        raise TypeError(f"{name} must be a dict, got {type(value).__name__}")
    try:
        return json.dumps(value, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must consist of JSON values: {error}") from error


def from_json(name: str, text: str) -> dict[str, Any]:
    """The dictionary that `to_json` wrote. Raises DamagedError naming `name` if `text` is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{name} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise DamagedError(f"{name} is damaged: it is no JSON object")
    return value


def write_atomic(path: Path, *parts: bytes | memoryview) -> None:
    """Write `parts` one after the other as the file `path`, as `replacing` does.

    Raises StoreFullError if there is no room, OSError naming `path` for other failures.
    """
    with full_disk_as_store_error(path), replacing(path) as file:
        for part in parts:
            file.write(part)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to be written, which then takes the place of `path`; on any failure that stays what it was.

    A temporary that a killed process left beside `path` is removed, so one process at a time may write a path. What is
    no ordinary file (a device, a pipe) is written to as it is.

    Raises OSError naming `path`; the temporary is removed.
    """
    with _named(path):
        if path.exists() and not path.is_symlink() and not path.is_file():
            with path.open("wb") as file:
                yield file
            return
        begin = f".{path.name[-_NAME:]}."
        for stale in path.parent.glob(f"{glob.escape(begin)}*.tmp"):
            stale.unlink(missing_ok=True)
        temporary = path.with_name(f"{begin}{secrets.token_hex(4)}.tmp")
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                if path.is_file() and not path.is_symlink():
                    temporary.chmod(stat.S_IMODE(path.stat().st_mode))
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _sync_directory(path.parent)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Let an OSError say whose it is: that of a write names no file, that of the temporary one that nobody knows."""
    try:
        yield
    except OSError as error:
        if error.filename is None or str(error.filename).endswith(".tmp"):
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise


def _sync_directory(directory: Path) -> None:
    """Make a rename in `directory` durable; Windows neither allows nor needs it."""
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], meta: dict[str, Any] | None = None) -> None:
    """Write `tensors` (any shape, stride and device) and the JSON object `meta` to `path`, atomically.

    Raises TypeError for a value that is no dense tensor, for a dtype that safetensors lacks and for a `meta` that is
    not JSON, StoreFullError if there is no room.
    """
    data = _serialize(tensors, {"meta": to_json("meta", meta or {}), "crc32": "0" * 8})
    body = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    checksum = f'"crc32":"{zlib.crc32(data):08x}"'.encode()
    head, found = _CHECKSUM.subn(checksum, data[:body])
    if found != 1:
        raise RuntimeError(f"this safetensors ({safetensors.__version__}) lays its header out in an unknown way")
    write_atomic(path, head, memoryview(data)[body:])


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of `save_tensors`: the tensors, on the CPU with the same bits, and `meta`. The file is only read.

    Raises CheckpointError naming `path` if it is missing, cut short, or not what was written.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    body = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    if len(data) < _LENGTH_BYTES or len(data) < body:
        raise CheckpointError(f"{path} is cut short or garbled: its header does not fit in its {len(data)} bytes")
    try:
        header = json.loads(data[_LENGTH_BYTES:body])
        metadata = header.pop("__metadata__")
        stored = int(metadata["crc32"], 16)
        end = body + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} has a garbled header, or was not written by grokfast ({error!r})") from error
    if len(data) != end:
        raise CheckpointError(f"{path} has {len(data)} bytes where its header promises {end}: cut short or garbled")
    blank = _CHECKSUM.sub(b'"crc32":"00000000"', data[:body])
    actual = zlib.crc32(memoryview(data)[body:], zlib.crc32(blank))
    if actual != stored:
        raise CheckpointError(f"{path} is damaged: its checksum is {actual:08x}, {stored:08x} was written")
    from safetensors.torch import load

    return load(data), json.loads(metadata["meta"])


def _serialize(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> bytes:
    """`tensors` as a safetensors file in memory, each tensor made plain first: on the CPU, contiguous, unshared."""
    import safetensors.torch
    import torch

    plain: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
            raise TypeError(f"tensors must map names to dense tensors, got {name!r}: {type(tensor).__name__}")
        value = tensor.detach().resolve_conj().resolve_neg().to("cpu").contiguous()
        storage = value.untyped_storage().data_ptr()
        plain[name] = value.clone() if storage in storages else value
        storages.add(storage)
    try:
        return safetensors.torch.save(plain, metadata)
    except KeyError as error:
        raise TypeError(f"tensors must have a dtype that safetensors knows, got {error.args[0]}") from error
