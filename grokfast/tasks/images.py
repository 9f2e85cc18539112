"""Images and their classes from a file that the user has, such as MNIST's; nothing is downloaded."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import torch
from torch import Tensor

from grokfast import checks, parts
from grokfast.seeds import MAX_SEED, generator
from grokfast.tasks.data import Data, Split
from grokfast.tasks.digits import Targets, with_targets
from grokfast.tasks.tensors import Contents, Stored, checked, read, tensor

MAX_ROWS, MAX_CLASSES, MAX_BYTES = 1 << 24, 1000, 1 << 32
_IDX = {"x_train": "train-images", "y_train": "train-labels", "x_test": "t10k-images", "y_test": "t10k-labels"}
_NAMES = ("x", "y", "x_train", "y_train", "x_test", "y_test")


@parts.register("images")
@dataclass(frozen=True, kw_only=True)
class ImagesTask(Stored):
    """Images as features [N, D] and their classes, from a file, stored with the runs by their SHA-256.

    Whole numbers are pixels 0..255, which become 0..1; floating-point numbers stay as they are.

    Args:
        path: an .npz or .safetensors with x_train, y_train, x_test and y_test, as Keras' mnist.npz: images [N, ...],
            classes [N] (x and y are x_train and y_train; other arrays are not looked at); or a directory with MNIST's
            four idx files, plain or .gz. Without x_test, as in MNIST-1D's x and y, test images are others of x. It is
            read once and then empty; source remembers it.
        sha256: of contents that this process, or the run's store, has already.
        n_train: images for training, drawn at random.
        n_test: images for testing, drawn at random; None: all that there are.
        split_seed: chooses both; None: the experiment's seed.
        label_noise: share of training labels replaced by a wrong class, in [0, 1].
        noise_seed: chooses these and their classes; None: the experiment's seed.
        targets: "class", or "real": the class as a number, see `with_targets`.

    Raises TypeError or ValueError naming the argument or the array and what is accepted; OSError for a file that cannot
    be read; ValueError for one with pickled objects, which are not opened.
    """

    varies: ClassVar[frozenset[str]] = frozenset({"n_train", "split_seed", "label_noise", "noise_seed", "source"})
    wanted: ClassVar[str] = "an .npz with x_train, y_train, x_test and y_test, or a directory with MNIST's idx files"

    path: str = ""
    sha256: str = ""
    n_train: int = 1000
    n_test: int | None = None
    split_seed: int | None = None
    label_noise: float = 0.0
    noise_seed: int | None = None
    targets: Targets = "class"
    source: str = parts.remark("")

    def __post_init__(self) -> None:
        fields = checks.Fields(self)
        fields.integer("n_train", minimum=1, maximum=MAX_ROWS)
        fields.integer("n_test", minimum=1, maximum=MAX_ROWS, optional=True)
        fields.integer("split_seed", "noise_seed", minimum=0, maximum=MAX_SEED, optional=True)
        fields.real("label_noise", minimum=0, maximum=1)
        fields.choice(targets=get_args(Targets))
        if not isinstance(self.path, (str, Path)):
            raise TypeError(f"path must be a string, got {checks.shown(self.path)} ({type(self.path).__name__})")
        path = str(self.path)
        object.__setattr__(self, "path", "")
        if path:
            object.__setattr__(self, "source", path)
        self.keep(_contents(path) if path else None)
        if self._contents is not None:
            self._sizes(self._contents.tensors)

    def missing(self) -> str:
        return "" if self._contents or self.sha256 else "a file of yours: --task.path FILE"

    def n_rows(self) -> int:
        return self.n_train

    def build(self, *, seed: int = 0) -> Data:
        checks.integer("seed", seed, minimum=0, maximum=MAX_SEED)
        arrays = self._loaded().tensors
        n_test = self._sizes(arrays)
        own = seed if self.split_seed is None else self.split_seed
        order = torch.randperm(len(arrays["x"]), generator=generator(own, "split"))
        splits, others = {"train": _split(arrays, "", order[: self.n_train])}, order[self.n_train :]
        if "x_test" in arrays:
            others = torch.randperm(len(arrays["x_test"]), generator=generator(own, "test"))
        splits["test"] = _split(arrays, "_test" if "x_test" in arrays else "", others[:n_test])
        noise = generator(seed if self.noise_seed is None else self.noise_seed, "label_noise")
        return with_targets(splits, _n_classes(arrays), self.targets, self.label_noise, noise)

    def _sizes(self, arrays: dict[str, Tensor]) -> int:
        """How many images are for testing. Raises ValueError where there are not so many."""
        there, own = len(arrays["x"]), "x_test" in arrays
        most = there if own else there - 1
        if self.n_train > most:
            left = "" if own else ", and one for testing"
            raise ValueError(
                f"n_train must be at most {most:,}: there are {there:,} images{left}, got {self.n_train:,}"
            )
        most = len(arrays["x_test"]) if own else there - self.n_train
        if self.n_test is not None and self.n_test > most:
            raise ValueError(f"n_test must be at most {most:,}, the images for testing, got {self.n_test:,}")
        return self.n_test or most


def _split(arrays: dict[str, Tensor], suffix: str, rows: Tensor) -> Split:
    x = arrays[f"x{suffix}"][rows]
    return Split(x if x.is_floating_point() else x.float() / 255, arrays[f"y{suffix}"][rows])


def _n_classes(arrays: dict[str, Tensor]) -> int:
    return 1 + max(int(t.max()) for name, t in arrays.items() if name[0] == "y")


def _contents(path: str) -> Contents:
    """What is at `path`: "x", "y", and perhaps "x_test", "y_test"; images [N, D] uint8 or floating point."""
    said = f"path {checks.shown(path)}"
    if Path(path).is_dir():
        found: dict[str, Any] = {
            name: _idx(Path(path), stem, 3 if name[0] == "x" else 1) for name, stem in _IDX.items()
        }
    elif path.endswith((".npz", ".safetensors")):
        found = read(path)
    else:
        raise ValueError(f"{said} must be a directory with MNIST's four idx files, or end in .npz or .safetensors")
    try:
        arrays = checked({name: array for name, array in found.items() if name in _NAMES}, _own)
        if "x_test" in arrays and _like(arrays["x_test"]) != _like(arrays["x"]):
            shapes = " and ".join(
                f"{name} [N, {_like(arrays[name])[0]}] {arrays[name].dtype}" for name in ("x", "x_test")
            )
            raise ValueError(f"x_test must have images like those of x, got {shapes}")
        if _n_classes(arrays) < 2:
            raise ValueError("y must have at least two classes, got only 0")
    except (TypeError, ValueError) as error:
        like = TypeError if isinstance(error, TypeError) else ValueError
        raise like(f"{said}: {error} (it holds {', '.join(found) or 'nothing'})") from error
    return Contents(arrays)


def _like(x: Tensor) -> tuple[int, torch.dtype]:
    return x.shape[1], x.dtype


def _own(name: str, array: Any) -> Tensor:
    """An array of the file: pixels as bytes [N, D], other images as they are, [N, D], classes int64 [N]."""
    is_bytes = str(getattr(array, "dtype", "")).endswith("uint8")
    own = torch.from_numpy(np.array(array)) if is_bytes and name[0] == "x" else tensor(name, array)
    shape = f"{[*own.shape]} {own.dtype}".replace("torch.", "")
    if name[0] == "y":
        if own.is_floating_point() or own.ndim != 1 or not len(own):
            raise TypeError(f"{name} must be classes, integers [N], got {shape}")
        if not 0 <= int(own.min()) <= int(own.max()) < MAX_CLASSES:
            raise ValueError(f"{name} must be classes 0..{MAX_CLASSES - 1}, got {int(own.min())} to {int(own.max())}")
        return own
    if own.ndim < 2 or not own.numel():
        raise ValueError(f"{name} must be images [N, D] or [N, height, width], got {shape}")
    if own.is_floating_point():
        if not torch.isfinite(own).all():
            raise ValueError(f"{name} must have finite numbers, got NaN or infinity")
    elif not 0 <= int(own.min()) <= int(own.max()) <= 255:
        raise ValueError(f"{name} must have pixels 0..255, got {int(own.min())} to {int(own.max())}")
    else:
        own = own.to(torch.uint8)
    return own.flatten(1)


def _idx(directory: Path, stem: str, n_axes: int) -> np.ndarray:
    """The bytes of an idx file: a magic number, its sizes, big-endian, and nothing else."""
    names = [f"{stem}{dot}idx{n_axes}-ubyte{end}" for dot in "-." for end in ("", ".gz")]
    path = next((directory / name for name in names if (directory / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"path {checks.shown(str(directory))} has no {names[0]}, plain or .gz")
    said = f"path {checks.shown(str(path))} is refused:"
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            magic, *sizes = struct.unpack(f">{1 + n_axes}I", file.read(4 + 4 * n_axes))
            n = math.prod(sizes)
            if magic != 0x800 + n_axes or n > MAX_BYTES:
                raise ValueError(f"{said} it is no idx file of bytes with {n_axes} axes")
            data = file.read(n + 1)
    except (gzip.BadGzipFile, zlib.error, struct.error, EOFError) as error:
        raise ValueError(f"{said} {error}") from error
    if len(data) != n:
        raise ValueError(
            f"{said} its sizes {sizes} promise {n:,} bytes, there are {'more' if len(data) > n else 'less'}"
        )
    return np.frombuffer(data, np.uint8).reshape(sizes)
