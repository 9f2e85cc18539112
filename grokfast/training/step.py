"""Loss and gradient of an ensemble, written to tensors that stay: by the fused step, or as the model does it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from grokfast.models import GrokTransformer
from grokfast.models.transformer.planned_step import TransformerStep
from grokfast.ops.pair_step import PairStep
from grokfast.training.ensemble import Ensemble


class Step(Protocol):
    """What a training step and an evaluation compute; nothing of it waits for the device."""

    @property
    def takes_padding(self) -> bool:
        """Whether rows of a batch may be -1, no row, so that all batches have one shape."""

    @property
    def splits(self) -> int:
        """S: `gradient` writes grad [E, P] where it is 1, else [S, E, P], whose sum in their order is the gradient."""

    def gradient(
        self, flat: Tensor, grad: Tensor, loss: Tensor, batch: Tensor | None, accuracy: Tensor | None = None
    ) -> None:
        """Write grad, as `splits` says, and loss and accuracy [E] of the training rows `batch` [E, B], None: of all."""

    def measure(self, split: str, flat: Tensor, loss: Tensor, accuracy: Tensor) -> None:
        """Write loss and accuracy [E] over the "train" or the "test" set."""

    def keep(self, ensemble: Ensemble, models: Sequence[int]) -> Step:
        """That of `ensemble`, of which only these models are left: for each of them the same bits."""


class KernelSteps:
    """PairStep or TransformerStep, one for each split."""

    takes_padding = True

    def __init__(
        self, train: PairStep | TransformerStep, test: PairStep | TransformerStep, device: torch.device
    ) -> None:
        self._steps = {"train": train, "test": test}
        self._correct = torch.zeros(train.n_models, dtype=torch.int32, device=device)
        self.splits = train.splits if isinstance(train, PairStep) else 1

    def keep(self, ensemble: Ensemble, models: Sequence[int]) -> Step:
        train, test = self._steps.values()
        if not (isinstance(train, TransformerStep) and isinstance(test, TransformerStep)):
            return step_of(ensemble)
        return KernelSteps(train.keep(models), test.keep(models), ensemble.device)

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


class ModelSteps:
    """The ensemble's own model and autograd, on fused operations where it has them."""

    splits = 1

    def __init__(self, ensemble: Ensemble) -> None:
        self.ensemble = ensemble

    @property
    def takes_padding(self) -> bool:
        return self.ensemble.is_ragged

    def keep(self, ensemble: Ensemble, models: Sequence[int]) -> Step:
        return ModelSteps(ensemble)

    def gradient(
        self, flat: Tensor, grad: Tensor, loss: Tensor, batch: Tensor | None, accuracy: Tensor | None = None
    ) -> None:
        of_loss, of_accuracy, _ = self.ensemble.gradient(batch, grad)
        loss.copy_(of_loss)
        if accuracy is not None:
            accuracy.copy_(of_accuracy)

    def measure(self, split: str, flat: Tensor, loss: Tensor, accuracy: Tensor) -> None:
        with torch.no_grad():
            of_loss, of_accuracy = self.ensemble.measure(split)
        loss.copy_(of_loss)
        accuracy.copy_(of_accuracy)


def step_of(ensemble: Ensemble) -> Step:
    """The step that `ensemble.choice` names."""
    if not ensemble.choice.has_kernels:
        return ModelSteps(ensemble)
    model, loss, precision = ensemble.model, ensemble.loss, ensemble.choice.products

    def step(split: str, largest: int | None) -> PairStep | TransformerStep:
        data = getattr(ensemble, f"{split}_inputs"), getattr(ensemble, f"{split}_targets")
        n_rows = ensemble.n_rows[split]
        if isinstance(model, GrokTransformer):
            return TransformerStep(model, *data, n_rows=n_rows, loss=loss, precision=precision)
        assert ensemble.layout is not None
        return PairStep(
            ensemble.layout, *data, n_models=len(ensemble.flat), activation=model.config.activation, loss=loss,
            precision=precision, n_rows=n_rows, max_batch=largest, **ensemble.sizes,
        )  # fmt: skip

    largest = None if ensemble.orders is None else ensemble.orders.size
    return KernelSteps(step("train", largest), step("test", 0), ensemble.device)
