"""`Tensors`: a data set of one's own, from Python or a file; and `Stored`, for all tasks that are read from files."""

from __future__ import annotations

import hashlib
import re
import weakref
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from grokfast import checks, parts
from grokfast.seeds import MAX_SEED, generator
from grokfast.tasks.data import Data, Split, Task
from grokfast.tasks.split import train_size, train_test_split

_SHA256 = re.compile(r"[0-9a-f]{64}|")
_KNOWN: weakref.WeakValueDictionary[str, Contents] = weakref.WeakValueDictionary()  # by SHA-256
_PLACES: dict[str, Path] = {}  # by SHA-256 the store that has it


class Contents:
    """Named tensors, "x", "y", "x_test", ..., and their SHA-256: of names, types, shapes and bytes."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name} {tensor.dtype} {[*tensor.shape]} ".encode())
            digest.update(tensor.contiguous().numpy().data)
        self.sha256 = digest.hexdigest()

    def rows(self) -> dict[str, Split]:
        """By split: "train" is x and y."""
        names = [name for name in self.tensors if name.startswith("x")]
        return {name[2:] or "train": Split(self.tensors[name], self.tensors[f"y{name[1:]}"]) for name in names}


class Stored(Task):
    """Base of the tasks whose data are no fields but contents, read from `path` and stored with the runs by `sha256`.

    Such a kind has the fields path, sha256 and source, a remark; where it is made it calls `keep`.
    wanted: what `path` must name.
    """

    consumed: ClassVar[frozenset[str]] = frozenset({"path"})
    wanted: ClassVar[str]

    path: str
    sha256: str
    source: str

    def keep(self, contents: Contents | None) -> None:
        """These are the contents; None: those with the SHA-256, if this process has them."""
        if contents is not None:
            object.__setattr__(self, "sha256", contents.sha256)
        if not isinstance(self.sha256, str) or not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"sha256 must be 64 hexadecimal digits, got {checks.shown(self.sha256)}")
        self._take(_KNOWN.get(self.sha256) if contents is None else contents)

    def attachments(self) -> Mapping[str, Mapping[str, Tensor]]:
        return {self.sha256: self._loaded().tensors}

    def attach(self, root: Path) -> None:
        if self.sha256:
            _PLACES[self.sha256] = root

    def _loaded(self) -> Contents:
        """The contents, from the store if this process does not have them."""
        if self._contents is None:
            if not self.sha256:
                raise ValueError(f"path must name {self.wanted}, got ''")
            if (root := _PLACES.get(self.sha256)) is None:
                said = f"the tensors {self.sha256[:12]} ({self.source or 'given in Python'})"
                raise ValueError(f"{said} are not here: path must name their file")
            from grokfast.store.data import load_data  # this and SQLite only where it is wanted
            from grokfast.store.errors import StoreError

            contents = Contents(load_data(root, self.sha256))
            if contents.sha256 != self.sha256:
                raise StoreError(f"the tensors {self.sha256} in {root} are damaged: their SHA-256 is {contents.sha256}")
            self._take(contents)
            return contents
        return self._contents

    def _take(self, contents: Contents | None) -> None:
        object.__setattr__(self, "_contents", contents)
        if contents is not None:
            _KNOWN[contents.sha256] = contents

    _contents: ClassVar[Contents | None] = None


@parts.register("tensors")
@dataclass(frozen=True, init=False)
class Tensors(Stored):
    """Tensors of one's own, stored with the runs that learn them, by their SHA-256.

    `Tensors(x, y, x_test, y_test)`, tensors or arrays; or path, a file (.npz or .safetensors) with arrays of these
    names. Other splits are x_NAME and y_NAME, in a file or as keywords; x_train and y_train are x and y. Without a test
    split, train_fraction of the rows are for training, chosen by split_seed.

    Inputs are token ids, integers [N, T], or features, floating-point numbers [N, D]. Targets are classes, integers
    [N], or [N, S] for S answers a row; or real numbers, floating point [N] or [N, R].

    Args:
        path: is read once and then empty; source remembers it.
        sha256: of contents that this process, or the run's store, has already.
        n_tokens, n_answers: how many token ids and classes there are; None: as many as occur.
        train_fraction: of the rows, in (0, 1), where there is no test split; else None.
        split_seed: chooses the training rows then; None: the experiment's seed.

    Raises TypeError or ValueError naming the array, its shape and what is accepted; OSError for a file that cannot be
    read; ValueError for one with pickled objects, which are not opened.
    """

    varies: ClassVar[frozenset[str]] = frozenset({"train_fraction", "split_seed", "source"})
    wanted: ClassVar[str] = "a file, .npz or .safetensors, with x, y, x_test and y_test"

    path: str = ""
    sha256: str = ""
    n_tokens: int | None = None
    n_answers: int | None = None
    train_fraction: float | None = None
    split_seed: int | None = None
    source: str = parts.remark("")

    def __init__(
        self,
        x: Any = None,
        y: Any = None,
        x_test: Any = None,
        y_test: Any = None,
        *,
        path: str | Path = "",
        sha256: str = "",
        n_tokens: int | None = None,
        n_answers: int | None = None,
        train_fraction: float | None = None,
        split_seed: int | None = None,
        source: str = "",
        **others: Any,
    ) -> None:
        given = {"x": x, "y": y, "x_test": x_test, "y_test": y_test, **others}
        given = {name: array for name, array in given.items() if array is not None}
        if given and path:
            raise ValueError(f"path must be empty where arrays are given, got {checks.shown(str(path))}")
        if path:
            given, source = read(path), str(path)
        values = {
            "path": "", "sha256": sha256, "n_tokens": n_tokens, "n_answers": n_answers,
            "train_fraction": train_fraction, "split_seed": split_seed, "source": source,
        }  # fmt: skip
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self.keep(Contents(checked(given)) if given else None)
        fields = checks.Fields(self)
        fields.integer("n_tokens", "n_answers", minimum=1, optional=True)
        fields.integer("split_seed", minimum=0, maximum=MAX_SEED, optional=True)
        if self.train_fraction is not None:
            fields.real("train_fraction", minimum=0, maximum=1, open_minimum=True, open_maximum=True)
        if self._contents is not None:
            self.build()

    def __repr__(self) -> str:
        said = ", ".join(f"{name}={getattr(self, name)!r}" for name in ("sha256", "source") if getattr(self, name))
        return f"Tensors({said})"

    @property
    def seq_len(self) -> int | None:
        x = None if self._contents is None else self._contents.tensors["x"]
        return None if x is None or x.is_floating_point() else x.shape[1]

    def n_rows(self) -> int:
        if self._contents is None:
            return 0
        n = len(self._contents.tensors["x"])
        return n if self.train_fraction is None else train_size(n, self.train_fraction)

    def build(self, *, seed: int = 0) -> Data:
        splits = self._loaded().rows()
        if self.train_fraction is not None:
            if "test" in splits:
                raise ValueError(f"train_fraction must be None where there is a test split, got {self.train_fraction}")
            x, y = splits["train"].inputs, splits["train"].targets
            own = seed if self.split_seed is None else self.split_seed
            train, test = train_test_split(y, self.train_fraction, generator(own, "split"))
            splits |= {"train": Split(x[train], y[train]), "test": Split(x[test], y[test])}
        elif "test" not in splits:
            raise ValueError("there must be a test split, x_test and y_test, or a train_fraction, got neither")
        x, y = splits["train"].inputs, splits["train"].targets
        tokens, answers = ([getattr(s, of) for s in splits.values()] for of in ("inputs", "targets"))
        n_tokens = 0 if x.is_floating_point() else self.n_tokens or _count(tokens)
        n_answers = y.shape[1] if y.is_floating_point() else self.n_answers or _count(answers)
        ordered = {
            name: splits[name] for name in sorted(splits, key=lambda name: (name != "train", name != "test", name))
        }
        return Data(splits=ordered, n_tokens=n_tokens, n_answers=n_answers)


def read(path: str | Path) -> dict[str, Any]:
    """The arrays of a file. Pickled objects are never opened."""
    said = f"path {checks.shown(str(path))}"
    if str(path).endswith(".safetensors"):
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return dict(load(Path(path).read_bytes()))
        except SafetensorError as error:
            raise ValueError(f"{said} is no safetensors file: {error}") from error
    if not str(path).endswith(".npz"):
        raise ValueError(f"{said} must end in .npz or .safetensors")
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise ValueError("it holds one array without a name")
        with file:
            return {name: file[name] for name in file.files}
    except (ValueError, zipfile.BadZipFile, EOFError, KeyError) as error:
        why = "it holds pickled objects, which are not opened" if "pickle" in str(error) else str(error)
        raise ValueError(f"{said} is refused: {why}") from error


def tensor(name: str, array: Any) -> Tensor:
    """On the CPU, int64, float32 or float64. Raises TypeError naming the array."""
    if isinstance(array, Tensor):
        if array.layout is not torch.strided or array.is_complex():
            raise TypeError(
                f"{name} must be a dense tensor of integers or real numbers, got {array.layout} {array.dtype}"
            )
        own = array.detach().cpu()
    else:
        numbers = np.asarray(array)
        if numbers.dtype.kind not in "biuf":
            raise TypeError(f"{name} must be an array of integers or real numbers, got {numbers.dtype}")
        numbers = numbers.astype(numbers.dtype.newbyteorder("="))
        kind = np.int64 if numbers.dtype.kind in "biu" else np.float64 if numbers.dtype == np.float64 else np.float32
        own = torch.from_numpy(np.array(numbers, dtype=kind, ndmin=numbers.ndim))
    if not own.is_floating_point():
        return own.to(torch.int64, copy=True)
    return own.to(torch.float64 if own.dtype is torch.float64 else torch.float32, copy=True).contiguous()


def checked(given: Mapping[str, Any], convert: Callable[[str, Any], Tensor] = tensor) -> dict[str, Tensor]:
    """As x, y, x_test, y_test, ..., each what `convert` makes of its name and array. Raises ValueError naming an array
    without its other, or of another length."""
    found: dict[str, Tensor] = {}
    for name, array in given.items():
        at, _, split = name.partition("_")
        if at not in ("x", "y") or (split == "" and name != at):
            raise ValueError(
                f"arrays must be called x, y, x_test, y_test, or x_NAME and y_NAME, got {checks.shown(name)}"
            )
        own = at if split in ("", "train") else name
        if own in found:
            raise ValueError(f"{own} must be given once, got {own} and {name}")
        found[own] = convert(name, array)
    for name in found if found else ("x",):
        other = {"x": "y", "y": "x"}[name[0]] + name[1:]
        if other not in found or "x" not in found:
            missing = "x" if "x" not in found else other
            raise ValueError(f"{missing} is missing: there are {', '.join(sorted(found)) or 'no arrays'}")
        if found[other].shape[:1] != found[name].shape[:1]:
            shapes = (f"{one} {[*found[one].shape]}" for one in (name, other))
            raise ValueError(f"{name} and {other} must have as many rows, got {' and '.join(shapes)}")
    for name, t in found.items():
        if name[0] == "y" and t.is_floating_point() and t.ndim == 1:
            found[name] = t[:, None]
    return found


def _count(several: list[Tensor]) -> int:
    """One more than the largest."""
    return 1 + max(int(tensor.max()) if tensor.numel() else 0 for tensor in several)
