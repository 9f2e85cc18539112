"""Loss and gradient of an ensemble, written to tensors that stay: by the fused step, or as the model does it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from grokfast.nn import PairMLP
from grokfast.ops.pair_step import Layout, PairStep
from grokfast.training.choice import FUSED
from grokfast.training.ensemble import Ensemble


class Step(Protocol):
    """What a training step and an evaluation compute; nothing of it waits for the device.

    takes_padding: whether rows of a batch may be -1, no row, so that all batches have one shape.
    """

    takes_padding: bool

    def gradient(self, flat: Tensor, grad: Tensor, loss: Tensor, batch: Tensor | None) -> None:
        """Write grad [E, P] and loss [E] of the training rows `batch` [E, B], None: of all."""

    def measure(self, split: str, flat: Tensor, loss: Tensor, accuracy: Tensor) -> None:
        """Write loss and accuracy [E] over the "train" or the "test" set."""


class PairSteps:
    """PairStep's kernels."""

    takes_padding = True

    def __init__(self, ensemble: Ensemble) -> None:
        model, schedule = ensemble.model, ensemble.schedule
        assert isinstance(model, PairMLP)
        rows, models = ensemble.train_targets.shape[1], len(ensemble.experiments)
        layout = Layout.of({name: p.shape[1:] for name, p in model.named_parameters()})
        self._steps = {
            split: PairStep(
                layout, inputs, targets, n_models=models, n_tokens=model.n_tokens, n_answers=model.out.weight.shape[1],
                width=model.config.width, activation=model.config.activation, loss=ensemble.loss,
                precision=ensemble.choice.products, max_batch=largest,
            )
            for split, inputs, targets, largest in (
                ("train", ensemble.train_inputs, ensemble.train_targets, min(schedule.batch_size or rows, rows)),
                ("test", ensemble.test_inputs, ensemble.test_targets, 0),
            )
        }  # fmt: skip
        self._correct = torch.zeros(models, dtype=torch.int32, device=ensemble.device)

    def gradient(self, flat: Tensor, grad: Tensor, loss: Tensor, batch: Tensor | None) -> None:
        self._steps["train"].gradient(flat, grad, loss, self._correct, batch)

    def measure(self, split: str, flat: Tensor, loss: Tensor, accuracy: Tensor) -> None:
        step = self._steps[split]
        step.measure(flat, loss, self._correct)
        torch.div(self._correct, step.n_rows, out=accuracy)


class ModelSteps:
    """The ensemble's own model and autograd, on fused operations where it has them."""

    takes_padding = False

    def __init__(self, ensemble: Ensemble) -> None:
        self.ensemble = ensemble

    def gradient(self, flat: Tensor, grad: Tensor, loss: Tensor, batch: Tensor | None) -> None:
        loss.copy_(self.ensemble.gradient(batch, grad)[0])

    def measure(self, split: str, flat: Tensor, loss: Tensor, accuracy: Tensor) -> None:
        with torch.no_grad():
            of_loss, of_accuracy = self.ensemble.measure(split)
        loss.copy_(of_loss)
        accuracy.copy_(of_accuracy)


def step_of(ensemble: Ensemble) -> Step:
    """The step that `ensemble.choice` names."""
    return PairSteps(ensemble) if ensemble.choice.name == FUSED else ModelSteps(ensemble)
