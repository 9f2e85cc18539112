"""The Step of transformers on a CPU without kernels of their own: each distinct prefix once (plan.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from grokfast import backend
from grokfast.models.autograd import Autograd
from grokfast.models.base import OPERATIONS, PLAIN, Spec
from grokfast.models.runs import Runs
from grokfast.models.transformer.model import TransformerConfig
from grokfast.models.transformer.plan import Plan
from grokfast.models.transformer.planned import logits_of
from grokfast.ops.classify import UNASKED
from grokfast.ops.classify.reference import LOSSES
from grokfast.ops.rows import threads_for

ATTENTION = "an attention rate below 1"


class Planned(Autograd):
    """On a CPU: each distinct prefix once. A step with dropout computes every position of every row after all."""

    def __init__(self, runs: Runs, plans: dict[str, list[Plan]] | None = None) -> None:
        super().__init__(runs)
        config: Any = runs.spec.model
        self.plans = plans or {
            split: [
                Plan(config, rows.inputs[e, :n].cpu(), asked(rows.targets[e, :n])) for e, n in enumerate(rows.counts)
            ]
            for split, rows in runs.rows.items()
        }

    def keep(self, models: Sequence[int]) -> Planned:
        return Planned(self.runs, {split: [plans[i] for i in models] for split, plans in self.plans.items()})

    @classmethod
    def why_not(cls, spec: Spec) -> str:
        if spec.is_reference:
            return "plain PyTorch is asked for"
        if spec.device.type != "cpu":
            return "plans without kernels are a CPU's"
        if spec.model.attention_rate != 1:  # type: ignore[attr-defined]
            return ATTENTION
        if not spec.why_no_extension:
            return ""
        config: Any = spec.model
        n = len(spec.data.train)
        shares = Plan(config, spec.data.train.inputs, asked(spec.data.train.targets)).shares(
            min(spec.batch_size or n, n)
        )
        return "" if shares else f"{spec.why_no_extension}; no two rows have a prefix in common"

    @classmethod
    def words(cls, spec: Spec, obstacles: Sequence[str]) -> tuple[str, str]:
        once = "each distinct prefix once"
        if spec.has_dropout or spec.changes_rows:
            once += f", but for {'dropout' if spec.has_dropout else 'rows that are changed'}"
        if spec.why_no_extension:
            return PLAIN, f"{once}; {spec.why_no_extension}"
        return OPERATIONS, f"C++ extension, {once}"

    def of_model(self, e: int, split: str, batch: Tensor | None, grad: Tensor | None) -> tuple[Tensor, Tensor]:
        runs = self.runs
        if ((self.is_random or runs.augment is not None) and runs.module.training) or backend.current() == "reference":
            return super().of_model(e, split, batch, grad)
        _, targets, own = runs.chosen_of(e, split, batch)
        weights = runs.own[e]
        logits = logits_of(runs.module, weights, self.plans[split][e].rows(own))[None]
        if (those := asked(targets)) is None:
            return self._backward(e, logits, targets, list(weights.values()), grad)
        answers = targets[those]  # each as a row of its own
        loss, accuracy = self._backward(e, logits, answers, list(weights.values()), grad)
        if len(answers) > len(targets):  # a row is right where all are
            accuracy = row_accuracy(logits[0].detach(), answers, those)
        return loss, accuracy


class Written(Planned):
    """With forward and backward written out: one model after the other, each with the bits that it has alone; gradients
    are written where they belong, without autograd."""

    prefix = ""  # of the layers' names, that `weights` are without

    def __init__(self, runs: Runs, plans: dict[str, list[Plan]] | None = None) -> None:
        super().__init__(runs, plans)
        config: Any = runs.spec.model
        self.config: TransformerConfig = config
        self.n_outputs = config.n_outputs(runs.spec.data)
        sizes = [shape.numel() for shape in runs.layout.shapes]
        self.sizes = [*sizes, runs.flat.shape[1] - sum(sizes)]
        self.names = [name.removeprefix(self.prefix) for name in runs.layout.names]
        self.weights = [self._named(row) for row in runs.flat]
        for own in self.weights:
            own.setdefault("positions", runs.module.positions[0])
            own.setdefault("unembedding", own["embedding"][: self.n_outputs])

    def gradient(
        self, flat: Tensor, grad: Tensor, loss: Tensor, batch: Tensor | None, accuracy: Tensor | None = None
    ) -> None:
        with torch.no_grad():
            self._losses("train", batch, grad, loss, accuracy)

    def _named(self, row: Tensor) -> dict[str, Tensor]:
        """Views of a model's row [P]."""
        parts = zip(self.names, row.split(self.sizes), self.runs.layout.shapes)
        return {name: t.view(shape) for name, t, shape in parts}

    def _classify(self, e: int, logits: Tensor, targets: Tensor, of_logits: Tensor | None) -> tuple[Tensor, Tensor]:
        """Loss and accuracy [1]; of_logits, unless None, receives the gradient of logits [R, C], C perhaps padded."""
        if self.runs.spec.loss_op is not None:
            found = logits.new_empty(2, 1)
            loss, n, threads = LOSSES.index(self.runs.spec.loss_op), len(logits), threads_for(logits, 16)
            of_logits = None if of_logits is None else of_logits[None]
            backend.load_extension().classify(
                loss, logits[None], targets[None], of_logits, *found, n, threads, self.n_outputs
            )
            return found[0], found[1]
        scheduled = self._of_loss(slice(e, e + 1))
        logits = logits[None, :, : self.n_outputs].contiguous()
        if of_logits is None:
            return self.loss(logits, targets[None], **scheduled)
        value, accuracy, g = self.loss.gradient(logits, targets[None], **scheduled)
        of_logits[:, : self.n_outputs] = g[0]
        return value, accuracy


def row_accuracy(logits: Tensor, answers: Tensor, those: Tensor) -> Tensor:
    """Share of rows whose asked answers are all right, [1]: logits [M, C] and answers [M] of `those`, bool [N, S]."""
    right = torch.ones_like(those)
    right[those] = logits.argmax(-1) == answers
    return right.all(-1).to(logits.dtype).mean()[None]


def asked(targets: Tensor) -> Tensor | None:
    """Of targets [N, S] which are asked for; None where they are one class each."""
    return targets != UNASKED if targets.ndim == 2 else None
