"""The ways to compute a transformer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from grokfast import backend
from grokfast.models.autograd import Autograd
from grokfast.models.base import FUSED, OPERATIONS, PLAIN, Need, PerSplit, Spec
from grokfast.models.runs import Runs
from grokfast.models.transformer.memory import memory
from grokfast.models.transformer.model import TransformerConfig
from grokfast.models.transformer.plan import Plan
from grokfast.models.transformer.planned import logits_of
from grokfast.models.transformer.planned_step import TransformerStep
from grokfast.ops.classify import UNASKED

SEVERAL = "several answers a row: every position counts"
ATTENTION = "an attention rate below 1"


class Kernels(PerSplit):
    """Triton's kernels: the planned step of a whole ensemble."""

    def __init__(self, runs: Runs, steps: dict[str, TransformerStep] | None = None) -> None:
        steps = steps or {
            split: TransformerStep(
                runs.module, rows.inputs, rows.targets, n_rows=rows.counts, loss=runs.spec.loss_op or "",
                precision=runs.products,
            )
            for split, rows in runs.rows.items()
        }  # fmt: skip
        super().__init__(runs, steps)

    def keep(self, models: Sequence[int]) -> Kernels:
        return Kernels(self.runs, {split: step.keep(models) for split, step in self._steps.items()})

    @classmethod
    def why_not(cls, spec: Spec) -> str:
        config: Any = spec.model
        if why := spec.why_no_triton:
            return why
        if spec.changes_rows:
            return "rows are changed before they are shown"
        if spec.loss_op is None:
            return "the loss is not in the kernels"
        if spec.has_dropout:
            return "dropout has other masks for equal prefixes"
        if spec.data.n_positions:
            return SEVERAL
        if config.attention_rate != 1:
            return ATTENTION
        return TransformerStep.fits(config, seq_len=spec.data.seq_len, device=spec.device, dtype=spec.dtype)

    @classmethod
    def words(cls, spec: Spec, obstacles: Sequence[str]) -> tuple[str, str]:
        return FUSED, "Triton, each distinct prefix once"

    @classmethod
    def memory(cls, spec: Spec, *, n_parameters: int, rows: Mapping[str, int], batch: int, products: str) -> Need:
        config: Any = spec.model
        data, outputs = spec.data, config.n_outputs(spec.data)
        taken = partial(
            memory, config, n_tokens=data.n_tokens, n_outputs=outputs, n_parameters=n_parameters, precision=products
        )
        train = taken(tokens=data.train.inputs, n_batch=batch if batch < rows["train"] else None)
        tests = [taken(tokens=s.inputs, n_batch=None, trains=False) for n, s in data.splits.items() if n != "train"]
        passing = max(train.gradient, train.measure, *(test.measure for test in tests))
        return Need(train.held + sum(test.held for test in tests), passing)


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
            right = torch.ones_like(those)
            right[those] = logits[0].detach().argmax(-1) == answers
            accuracy = right.all(-1).to(logits.dtype).mean()[None]
        return loss, accuracy


def asked(targets: Tensor) -> Tensor | None:
    """Of targets [N, S] which are asked for; None where they are one class each."""
    return targets != UNASKED if targets.ndim == 2 else None


class Plain(Autograd):
    """Every position of every row."""

    @classmethod
    def words(cls, spec: Spec, obstacles: Sequence[str]) -> tuple[str, str]:
        on_cpu = spec.device.type == "cpu" and spec.kernels is None
        return super().words(spec, obstacles[1:] if on_cpu else obstacles)


TransformerConfig.ways = (Kernels, Planned, Plain)
