"""The Step that takes every model: its own forward pass and autograd, on fused operations where it has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from grokfast.models.base import PLAIN, Model, Need, Spec, Step
from grokfast.models.runs import Runs


class Autograd(Step):
    """On a CPU one model after the other, each of which keeps its processor busy and has the bits that it has alone."""

    def __init__(self, runs: Runs) -> None:
        super().__init__(runs)
        self.takes_padding = runs.is_ragged
        self.is_random = runs.spec.has_dropout
        self.one_by_one = runs.device.type == "cpu"
        self.loss, self._n_parameters = runs.spec.loss, runs.layout.size

    @classmethod
    def why_not(cls, spec: Spec) -> str:
        return ""

    @classmethod
    def words(cls, spec: Spec, obstacles: Sequence[str]) -> tuple[str, str]:
        if spec.is_reference:
            return PLAIN, "asked for"
        return PLAIN, obstacles[0] if obstacles else "the model's own forward pass, and autograd"

    @classmethod
    def memory(cls, spec: Spec, *, n_parameters: int, rows: Mapping[str, int], batch: int, products: str) -> Need:
        size = spec.dtype.itemsize
        forward, both = (spec.model.activations(spec.data, backward=backward) for backward in (False, True))
        return Need(0, max(size * batch * both + n_parameters * size, size * max(rows.values()) * forward))

    def gradient(
        self, flat: Tensor, grad: Tensor, loss: Tensor, batch: Tensor | None, accuracy: Tensor | None = None
    ) -> None:
        if not self.runs.module.training:
            self.runs.module.train()
        with torch.enable_grad():
            self._losses("train", batch, grad, loss, accuracy)

    def measure(self, split: str, flat: Tensor, loss: Tensor, accuracy: Tensor) -> None:
        if self.runs.module.training:
            self.runs.module.eval()
        with torch.no_grad():
            self._losses(split, None, None, loss, accuracy)

    def _losses(
        self, split: str, batch: Tensor | None, grad: Tensor | None, loss: Tensor, accuracy: Tensor | None
    ) -> None:
        """Write losses and accuracies [E]; `grad` [E, P] receives the gradients."""
        # as large as a run's own batch
        has_own_masks = self.is_random and self.runs.is_ragged and not self.runs.has_keys
        if not self.one_by_one and not has_own_masks:
            of_models = [self._at_once(split, batch, grad)]
        else:
            if grad is not None:
                grad[:, self._n_parameters :].zero_()
            of_models = [self.of_model(e, split, batch, grad) for e in range(len(self.runs.flat))]
        for to, values in zip((loss, accuracy), zip(*of_models)):
            if to is not None:
                torch.cat(values, out=to)

    def _at_once(self, split: str, batch: Tensor | None, grad: Tensor | None) -> tuple[Tensor, Tensor]:
        runs = self.runs
        x, y, exists = runs.chosen(split, batch)
        if runs.augment is not None and grad is not None:
            x, y = runs.augment(x, y, slice(None))
        outputs = runs.module(x, runs.masks() if self.is_random else None)
        loss, accuracy = self.loss(outputs, y, exists, **self._of_loss(slice(None)))
        if grad is not None:
            runs.flatten(torch.autograd.grad(loss.sum(), list(runs.module.parameters())), grad)
        return loss.detach(), accuracy

    def of_model(self, e: int, split: str, batch: Tensor | None, grad: Tensor | None) -> tuple[Tensor, Tensor]:
        """Loss [1] and accuracy [1] of model e, which computes bit for bit what it computes alone."""
        inputs, targets = self._shown(e, split, batch, trains=grad is not None)
        model, masks = self.runs.alone(e), self.runs.masks(slice(e, e + 1)) if self.is_random else None
        return self._backward(e, model(inputs[None], masks), targets, list(model.parameters()), grad)

    def _shown(self, e: int, split: str, batch: Tensor | None, *, trains: bool) -> tuple[Tensor, Tensor]:
        """Inputs and targets of model e, in training as this step shows them."""
        inputs, targets, _ = self.runs.chosen_of(e, split, batch)
        if self.runs.augment is None or not trains:
            return inputs, targets
        inputs, targets = self.runs.augment(inputs[None], targets[None], slice(e, e + 1))
        return inputs[0], targets[0]

    def _of_loss(self, models: slice) -> dict[str, Tensor]:
        """The fields of the loss that change with the step, of these models."""
        return {name: values[models] for name, values in self.runs.scheduled.items() if name in self.loss.scheduled}

    def _backward(
        self, e: int, outputs: Tensor, targets: Tensor, parameters: Sequence[Tensor], grad: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        loss, accuracy = self.loss(outputs, targets[None], **self._of_loss(slice(e, e + 1)))
        if grad is not None:
            grads = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
            torch.cat([g.flatten() for g in grads], out=grad[e, : self._n_parameters])
        return loss.detach(), accuracy


Model.ways = (Autograd,)
