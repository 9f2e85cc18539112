"""Loss and gradient of an ensemble, written to tensors that stay: by the fused step, or as the model does it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from grokfast.nn import GrokTransformer
from grokfast.nn.transformer_step import TransformerStep
from grokfast.ops.pair_step import Layout, PairStep
from grokfast.training.ensemble import Ensemble


class Step(Protocol):
    """What a training step and an evaluation compute; nothing of it waits for the device.

    takes_padding: whether rows of a batch may be -1, no row, so that all batches have one shape.
    """

    takes_padding: bool

    @property
    def splits(self) -> int:
        """S: `gradient` writes grad [E, P] where it is 1, else [S, E, P], whose sum in their order is the gradient."""

    def gradient(self, flat: Tensor, grad: Tensor, loss: Tensor, batch: Tensor | None) -> None:
        """Write grad, as `splits` says, and loss [E] of the training rows `batch` [E, B], None: of all."""

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

    def gradient(self, flat: Tensor, grad: Tensor, loss: Tensor, batch: Tensor | None) -> None:
        self._steps["train"].gradient(flat, grad, loss, self._correct, batch)

    def measure(self, split: str, flat: Tensor, loss: Tensor, accuracy: Tensor) -> None:
        step = self._steps[split]
        step.measure(flat, loss, self._correct)
        torch.div(self._correct, step.n_rows, out=accuracy)


class ModelSteps:
    """The ensemble's own model and autograd, on fused operations where it has them."""

    takes_padding = False
    splits = 1

    def __init__(self, ensemble: Ensemble) -> None:
        self.ensemble = ensemble

    def keep(self, ensemble: Ensemble, models: Sequence[int]) -> Step:
        return ModelSteps(ensemble)

    def gradient(self, flat: Tensor, grad: Tensor, loss: Tensor, batch: Tensor | None) -> None:
        loss.copy_(self.ensemble.gradient(batch, grad)[0])

    def measure(self, split: str, flat: Tensor, loss: Tensor, accuracy: Tensor) -> None:
        with torch.no_grad():
            of_loss, of_accuracy = self.ensemble.measure(split)
        loss.copy_(of_loss)
        accuracy.copy_(of_accuracy)


def step_of(ensemble: Ensemble) -> Step:
    """The step that `ensemble.choice` names."""
    if not ensemble.choice.has_kernels:
        return ModelSteps(ensemble)
    model, schedule, precision = ensemble.model, ensemble.schedule, ensemble.choice.products
    train, test = (ensemble.train_inputs, ensemble.train_targets), (ensemble.test_inputs, ensemble.test_targets)
    if isinstance(model, GrokTransformer):
        of_train, of_test = (
            TransformerStep(model, *data, loss=ensemble.loss, precision=precision) for data in (train, test)
        )
        return KernelSteps(of_train, of_test, ensemble.device)
    layout = Layout.of({name: p.shape[1:] for name, p in model.named_parameters()})
    rows = train[1].shape[1]

    def pair_step(data: tuple[Tensor, Tensor], largest: int) -> PairStep:
        return PairStep(
            layout, *data, n_models=len(data[0]), n_tokens=model.n_tokens, n_answers=model.out.weight.shape[1],
            width=model.config.width, activation=model.config.activation, loss=ensemble.loss, precision=precision,
            max_batch=largest,
        )  # fmt: skip

    return KernelSteps(pair_step(train, min(schedule.batch_size or rows, rows)), pair_step(test, 0), ensemble.device)
