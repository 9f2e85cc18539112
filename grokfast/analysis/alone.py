"""`Alone`: one model with a split of its data and its loss, as a function of its parameters; for n of them at once."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from grokfast import checks
from grokfast.analysis.subject import runs_of, subject
from grokfast.backend import using
from grokfast.losses import MSE, CrossEntropy, Loss
from grokfast.nn.ensemble import EnsembleModule
from grokfast.tasks.data import Data, Task


@dataclass(frozen=True, eq=False)
class Alone:
    """module: n copies of one model as an ensemble, n = 1 unless `times` made it so. inputs [N, ...] and targets
    [N, ...]: a split. loss: what is computed of outputs."""

    module: Any
    seed: int
    data: Data
    inputs: Tensor
    targets: Tensor
    loss: Loss

    @property
    def weights(self) -> dict[str, Tensor]:
        """The parameters by name, [n, ...], detached."""
        return {name: p.detach() for name, p in self.module.named_parameters()}

    def times(self, n: int) -> Alone:
        """n of it."""
        return Alone(ensemble_of(self.module, 0, n), self.seed, self.data, self.inputs, self.targets, self.loss)

    def double(self) -> Alone:
        """It in fp64."""
        module = copy.deepcopy(self.module).double()
        x, y = (t.double() if t.is_floating_point() else t for t in (self.inputs, self.targets))
        return Alone(module, self.seed, self.data, x, y, self.loss)

    def of(self, split: str) -> Alone:
        """It on another split. ValueError where there is no such split."""
        return _alone(self.module, self.seed, self.data, split, self.loss)

    def outputs(self, weights: Mapping[str, Tensor] | None = None, rows: Tensor | None = None) -> Tensor:
        """[n, N, ...] of parameters [n, ...], None: its own; of the rows [B] of the split, None: of all.

        In plain PyTorch, which is differentiable any number of times."""
        x = self.inputs if rows is None else self.inputs[rows]
        x = x.expand(self.module.n_models, *x.shape)
        with using("reference"):
            found: Tensor = torch.func.functional_call(self.module, dict(weights or {}), (x,))
        return found

    def measure(
        self, weights: Mapping[str, Tensor] | None = None, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Loss [n], differentiable, and accuracy [n]; arguments as of `outputs`."""
        y = self.targets if rows is None else self.targets[rows]
        outputs = self.outputs(weights, rows)
        with using("reference"):
            return self.loss(outputs, y.expand(len(outputs), *y.shape))


def alone(
    model: Any, task: Task | Data | None = None, *, split: str = "train", loss: Loss | None = None
) -> list[Alone]:  # fmt: skip
    """Each model of `model` (see `subject`, which also says what is raised) alone.

    loss: None is a run's own, of a live model CrossEntropy, or MSE of real targets.
    Raises ValueError where there is no such split, TypeError where loss is none.
    """
    if loss is not None and not isinstance(loss, Loss):
        raise TypeError(f"loss must be a Loss or None, got {checks.shown(loss)}")
    found = subject(model, task)
    own: list[Loss | None] = [run.experiment.loss for run in runs_of(model)] or [None] * len(found.data)
    return [
        _alone(
            ensemble_of(found.module, e, 1), found.module.seeds[e], data, split,
            loss or own[e] or (MSE() if data.is_real else CrossEntropy()),
        )
        for e, data in enumerate(found.data)
    ]  # fmt: skip


def module_of(model: Any) -> Any:
    """The ensemble of runs, or a live model itself, which may then be looked at without a task; in eval mode."""
    return model.eval() if isinstance(model, EnsembleModule) else subject(model).module


def ensemble_of(module: Any, e: int, n: int) -> Any:
    """A copy of model e of an ensemble, n times."""
    own = {p: nn.Parameter(p.detach()[e : e + 1].repeat(n, *[1] * (p.ndim - 1))) for p in module.parameters()}
    made = copy.deepcopy(module, {id(p): parameter for p, parameter in own.items()})  # none of the others is copied
    made.seeds = module.seeds[e : e + 1] * n
    return made


def _alone(module: Any, seed: int, data: Data, split: str, loss: Loss) -> Alone:
    rows = data.splits[checks.choice("split", split, data.splits)]
    like = next(module.parameters())

    def typed(t: Tensor) -> Tensor:
        return t.to(like.device, like.dtype if t.is_floating_point() else t.dtype)

    return Alone(module, seed, data, typed(rows.inputs), typed(rows.targets), loss)
