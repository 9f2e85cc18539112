"""`Model` and `Step`: what learns, and the ways to compute its loss and gradient.

The first Step that takes a run is the one that runs it; what it says of itself is what `doctor`, the display and the
memory plan say.
"""

from __future__ import annotations

import fnmatch
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from grokfast import backend, checks
from grokfast.losses import Loss
from grokfast.parts import Part
from grokfast.tasks.data import Data, Task

if TYPE_CHECKING:
    from grokfast.models.runs import Runs

FUSED, OPERATIONS, PLAIN = "fused step", "fused operations", "plain PyTorch"


class Need(NamedTuple):
    """Bytes of device memory for one run: what it holds throughout, and what a step or an evaluation takes beside."""

    held: int
    passing: int

    @property
    def total(self) -> int:
        return self.held + self.passing


@dataclass(frozen=True)
class Model(Part):
    """Base of the models. One of one's own is a frozen dataclass with a `build`.

    ways: the Steps that may compute it, the fastest first, one that takes everything last; by default autograd alone.
    init_scales: multiplies initial parameters by their names, "embedding=0.5,blocks.*=2"; None: none.
    """

    family: ClassVar[str] = "model"
    ways: ClassVar[tuple[type[Step], ...]]

    init_scales: str | None = field(default=None, kw_only=True, metadata={"added": True})

    def __post_init__(self) -> None:
        self._scales()

    def _scales(self) -> list[tuple[str, float]]:
        """Patterns of names and their factors."""
        found = []
        for said in [] if self.init_scales is None else checks.text("model.init_scales", self.init_scales).split(","):
            pattern, _, factor = said.partition("=")
            try:
                found.append((pattern.strip(), float(factor)))
            except ValueError:
                factor = "nan"
            if not math.isfinite(float(factor)):
                raise ValueError(f"model.init_scales must be NAME=FACTOR with commas between, got {said!r}")
        return found

    def why_not_task(self, task: Task) -> str:
        """Why the model does not take the task's data, where that can be said before they are made; empty otherwise."""
        return ""

    def why_not(self, data: Data) -> str:
        """Why the model does not take such data, with their shapes; empty where it does."""
        return ""

    def build(self, data: Data, *, seeds: Sequence[int] = (0,), dtype: torch.dtype = torch.float32) -> Any:
        """E = len(seeds) models as a nn.ensemble.EnsembleModule: parameters [E, ...] and
        forward(inputs [E, B, ...], masks=None) -> [E, B, n_outputs]; for `RunResult.to_torch` it can `unstack`."""
        raise NotImplementedError

    def initial(self, data: Data, *, seeds: Sequence[int] = (0,), dtype: torch.dtype = torch.float32) -> Any:
        """`build`, and what `init_scales` says. ValueError where it names no parameter."""
        module = self.build(data, seeds=seeds, dtype=dtype)
        named = dict(module.named_parameters())
        for pattern, factor in self._scales():
            names = fnmatch.filter(named, pattern)
            if not names:
                known = ", ".join(map(repr, named))
                raise ValueError(f"model.init_scales must be of the parameters {known}, got {pattern!r}")
            with torch.no_grad():
                for name in names:
                    named[name].mul_(factor)
        return module

    def weights_as(self, names: str, model: Any) -> dict[str, Tensor]:
        """The weights of one `model`, unstacked, as another library calls them: see `RunResult.weights_as`."""
        raise ValueError(f"weights go by the names of {names!r} only of a transformer, got {type(self).__name__}")

    def activations(self, data: Data, *, backward: bool) -> int:
        """Numbers per row of data that are in memory together at most, in plain PyTorch.

        With `backward`, what each operation keeps and the gradients at the widest place; else the widest place alone.
        Here: twice what autograd keeps of two rows.
        """
        return 2 * kept_by_autograd(self, data)


@dataclass(frozen=True, eq=False)
class Spec:
    """What decides which Step computes a run.

    data: that of the run with the most rows. products: as they are wished for. batch_size: rows of a step, None: all.
    is_reference: plain PyTorch is asked for. changes_rows: whether rows are changed before they are shown. scheduled:
    the fields of model and loss that change with the step.
    """

    model: Model
    loss: Loss
    data: Data
    device: torch.device
    dtype: torch.dtype
    products: str
    batch_size: int | None
    is_reference: bool
    changes_rows: bool = False
    scheduled: frozenset[str] = frozenset()

    @property
    def has_dropout(self) -> bool:
        """Whether the model drops anything, at some step."""
        return "dropout" in self.scheduled or bool(getattr(self.model, "dropout", 0.0))

    @property
    def loss_op(self) -> str | None:
        """What the fused steps call the loss; None: they do not have it."""
        return None if self.scheduled & self.loss.scheduled else self.loss.op

    @property
    def kernels(self) -> str | None:
        """Which kernels the device has for fused steps: "triton", "cuda" or None."""
        return None if self.is_reference else backend.device_kernels(self.device)

    @property
    def why_no_extension(self) -> str:
        """Why the C++ extension does not compute it; empty where it may."""
        if self.is_reference:
            return "plain PyTorch is asked for"
        if self.device.type != "cpu" or self.kernels is not None:
            return "the C++ extension is a CPU's"
        if backend.extension() is None:
            return backend.why_no_extension()
        return "" if self.dtype is torch.float32 else f"the C++ extension takes no {_name(self.dtype)}"

    @property
    def why_no_triton(self) -> str:
        """Why Triton's kernels do not compute it; empty where they may."""
        if self.is_reference:
            return "plain PyTorch is asked for"
        if self.kernels == "triton":
            return ""
        return backend.why_no_device_kernels(self.device) or "the step's kernels need Triton"


class Step(ABC):
    """A way to compute the loss and gradient of `runs`; nothing of it waits for the device.

    has_products: whether it multiplies in the precision that `Spec.products` names. takes_padding: whether rows of a
    batch may be -1, no row, so that all batches have one shape. splits: S, `gradient` writes grad [E, P] where it is
    1, else [S, E, P], whose sum in their order is the gradient. is_random: whether it drops something.
    """

    has_products: ClassVar[bool] = False
    is_random: bool = False
    takes_padding: bool = True
    splits: int = 1

    def __init__(self, runs: Runs) -> None:
        self.runs = runs

    @classmethod
    @abstractmethod
    def why_not(cls, spec: Spec) -> str:
        """Why this is no way for such a run; empty where it is."""

    @classmethod
    @abstractmethod
    def words(cls, spec: Spec, obstacles: Sequence[str]) -> tuple[str, str]:
        """FUSED, OPERATIONS or PLAIN, and how or why, given what stood in the way of the faster Steps."""

    @classmethod
    @abstractmethod
    def memory(cls, spec: Spec, *, n_parameters: int, rows: Mapping[str, int], batch: int, products: str) -> Need:
        """Of a run with so many rows in each split and in a batch, beside weights, gradient, optimizer and data."""

    @classmethod
    def why_no_graph(cls, spec: Spec) -> str:
        """What of it needs the host, which a graph cannot ask; empty where nothing does."""
        return ""

    @abstractmethod
    def gradient(
        self, flat: Tensor, grad: Tensor, loss: Tensor, batch: Tensor | None, accuracy: Tensor | None = None
    ) -> None:
        """Write grad, as `splits` says, and loss and accuracy [E] of the training rows `batch` [E, B], None: of all."""

    @abstractmethod
    def measure(self, split: str, flat: Tensor, loss: Tensor, accuracy: Tensor) -> None:
        """Write loss and accuracy [E] over a split."""

    def keep(self, models: Sequence[int]) -> Step:
        """That of `runs`, of which only these models are left by now: for each of them the same bits."""
        return type(self)(self.runs)


class PerSplit(Step):
    """A step of kernels for each split; they count the right rows in whole numbers."""

    has_products = True

    def __init__(self, runs: Runs, steps: Mapping[str, Any]) -> None:
        super().__init__(runs)
        self._steps = steps
        self._correct = torch.zeros(len(runs.flat), dtype=torch.int32, device=runs.device)

    def gradient(
        self, flat: Tensor, grad: Tensor, loss: Tensor, batch: Tensor | None, accuracy: Tensor | None = None
    ) -> None:
        step = self._steps["train"]
        step.gradient(flat, grad, loss, self._correct, batch)
        if accuracy is not None:
            torch.div(self._correct, step.n_rows, out=accuracy)

    def measure(self, split: str, flat: Tensor, loss: Tensor, accuracy: Tensor) -> None:
        step = self._steps[split]
        step.measure(flat, loss, self._correct)
        torch.div(self._correct, step.n_rows, out=accuracy)


@dataclass(frozen=True)
class Choice:
    """The Step, in words, in which precision products of fp32 matrices are made, and why steps are not replayed.

    why_no_replay is empty where many steps are replayed at a time.
    """

    step: type[Step]
    name: str
    reason: str
    products: str
    why_no_replay: str

    def __str__(self) -> str:
        steps = f"one step at a time: {self.why_no_replay}" if self.why_no_replay else "evaluation to evaluation"
        return f"{self.name} ({self.reason}), {self.products} products, {steps}"


def choose(spec: Spec, why_no_graph: str = "") -> Choice:
    """The first of the model's Steps that takes the run. `why_no_graph`: what else of a step needs the host.

    Raises ValueError where products are asked for that a CPU does not have, or where the data do not fit.
    """
    wish, device = spec.products, spec.device
    if device.type == "cpu" and wish != "ieee" and spec.kernels is None:
        raise ValueError(f"products must be 'ieee' on a CPU, which has no others, got {wish!r}")
    if why := spec.model.why_not(spec.data) or spec.loss.why_not(spec.data):
        raise ValueError(why)
    obstacles: list[str] = []
    for step in spec.model.ways:
        why = step.why_not(spec)
        if not why:
            break
        obstacles.append(why)
    else:
        raise ValueError(f"{type(spec.model).__name__} has no way to compute it: {'; '.join(obstacles)}")
    name, reason = step.words(spec, obstacles)
    if wish != "ieee" and not step.has_products:
        reason = f"{reason}; no {wish} products"
    if device.type != "cuda" and spec.kernels is None:
        why_no_graph = "a CPU has no graphs" if device.type == "cpu" else f"no graphs on {device.type}"
    else:
        why_no_graph = step.why_no_graph(spec) or why_no_graph
    return Choice(step, name, reason, wish if step.has_products else "ieee", why_no_graph)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def kept_by_autograd(model: Model, data: Data) -> int:
    """Numbers of a row that the backward pass of a model of plain PyTorch needs, counted on two rows."""
    module: Any = model.build(data)
    ours, kept = {p.untyped_storage().data_ptr() for p in module.parameters()}, 0

    def count(t: Tensor) -> Tensor:
        nonlocal kept
        if t.untyped_storage().data_ptr() not in ours:
            kept += t.numel()
        return t

    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        x = data.train.inputs[None, :2]
        module(x.float() if x.is_floating_point() else x)
    return kept // min(2, len(data.train)) + 2 * data.n_answers
