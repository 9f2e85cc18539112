"""The tiles that kernels use: those that were found fastest on a GPU like this one, else each operation's own choice.

`configurations.json`, which `python -m benchmarks.tune` writes on a GPU, holds the former by compute capability,
kernel, number type, precision and class of shapes; until then there is none. Nothing is tried out at run time.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

PATH = Path(__file__).with_name("configurations.json")
MANY_ROWS = 1 << 15  # of one model: from here on small tiles are not needed to fill a GPU

# What a program may have of shared memory, by compute capability; NVIDIA, CUDA C++ programming guide, table 'technical
# specifications per compute capability'. Of one that is not named the least is expected.
SHARED_BYTES = {80: 163 << 10, 86: 99 << 10, 87: 163 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
LEAST_SHARED_BYTES = min(SHARED_BYTES.values())

_on_trial: list[Mapping[str, dict[str, int]]] = []


def tile_for(
    like: Tensor, kernel: str, precision: str, shape: Sequence[int], rows: int, own: dict[str, int]
) -> dict[str, int]:
    """The tile of a kernel on tensors like `like`: from the table of its GPU, else `own`.

    rows: of one model. A tile says in which order sums are made, and so depends on no other model.
    """
    table = _on_trial[-1] if _on_trial else _table(like.device)
    return dict(table.get(key(kernel, like.dtype, precision, shape, rows), own)) if table else own


def key(kernel: str, dtype: torch.dtype, precision: str, shape: Sequence[int], rows: int) -> str:
    """The class of a launch: sizes up to the next power of two, and few rows of one model or many."""
    sizes = "-".join(str(power_of_2(size)) for size in shape)
    many = "many" if rows >= MANY_ROWS else "few"
    return f"{kernel}, {str(dtype).removeprefix('torch.')} {precision}, {sizes}, {many}"


def power_of_2(n: int) -> int:
    """The next one, n itself included."""
    return 1 << (n - 1).bit_length()


@contextmanager
def trying(tiles: Mapping[str, dict[str, int]]) -> Iterator[None]:
    """Run a block with these tiles, by key, in the table's place."""
    _on_trial.append(tiles)
    try:
        yield
    finally:
        _on_trial.pop()


@functools.cache
def _table(device: torch.device) -> Mapping[str, dict[str, int]]:
    if device.type != "cuda":
        return {}
    major, minor = torch.cuda.get_device_capability(device)
    return read().get(f"sm_{major}{minor}", {})


def read(path: Path = PATH) -> dict[str, dict[str, dict[str, int]]]:
    """Tiles by GPU ("sm_90") and key; empty where no GPU was tuned for."""
    return json.loads(path.read_text())["tiles"] if path.exists() else {}
