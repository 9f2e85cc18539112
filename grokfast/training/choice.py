"""Which implementation of the training step an experiment gets on a device, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from grokfast import backend
from grokfast.models import PairMLPConfig, TransformerConfig
from grokfast.models.transformer.planned_step import TransformerStep
from grokfast.ops.pair_step import PairStep
from grokfast.ops.pair_step import cpu as pair_rows
from grokfast.schedules.batches import is_augmented
from grokfast.tasks import Data
from grokfast.training.experiment import Experiment
from grokfast.transforms.flat import why_no_graph

FUSED, OPERATIONS, PLAIN = "fused step", "fused operations", "plain PyTorch"


@dataclass(frozen=True)
class Choice:
    """The step's name (FUSED, OPERATIONS or PLAIN), why that one, and why many steps are not replayed at a time.

    `products` is the precision in which products of fp32 matrices are made; `has_kernels` says whether the step is
    PairStep's or TransformerStep's, which Triton runs; `why_no_replay` is empty where steps are replayed.
    """

    name: str
    reason: str
    products: str
    has_kernels: bool
    why_no_replay: str

    def __str__(self) -> str:
        steps = f"one step at a time: {self.why_no_replay}" if self.why_no_replay else "evaluation to evaluation"
        return f"{self.name} ({self.reason}), {self.products} products, {steps}"


def choose(experiment: Experiment, device: torch.device, data: Data) -> Choice:
    """The fused step where its kernels take the experiment with its data, else fused operations, else plain PyTorch.

    Raises ValueError where products are asked for that a CPU does not have.
    """
    wish, is_plain = experiment.products, experiment.engine == "reference" or backend.current() == "reference"
    kernels = None if is_plain else backend.device_kernels(device)
    if device.type == "cpu" and wish != "ieee" and kernels is None:
        raise ValueError(f"products must be 'ieee' on a CPU, which has no others, got {wish!r}")
    name, reason = (PLAIN, "asked for") if is_plain else _ladder(experiment, device, kernels, data)
    if name == FUSED and is_augmented(experiment.schedule.changes):
        has_first = kernels is None or (
            isinstance(experiment.model, PairMLPConfig) and experiment.precision == "float32"
        )
        name, reason = (OPERATIONS if has_first else PLAIN), "rows are changed before they are shown"
    has_kernels = kernels == "triton" and name == FUSED
    if wish != "ieee" and not has_kernels:
        reason = f"{reason}; no {wish} products"
    return Choice(
        name, reason, wish if has_kernels else "ieee", has_kernels, _why_no_replay(experiment, device, kernels)
    )


def _why_no_replay(experiment: Experiment, device: torch.device, kernels: str | None) -> str:
    """What of a step would need the host, which a graph cannot ask."""
    if device.type != "cuda" and kernels is None:
        return "a CPU has no graphs" if device.type == "cpu" else f"no graphs on {device.type}"
    if isinstance(experiment.model, TransformerConfig) and experiment.model.dropout:
        return "dropout draws its masks on the host"
    return why_no_graph(experiment.filter, device, getattr(torch, experiment.precision))


def _ladder(experiment: Experiment, device: torch.device, kernels: str | None, data: Data) -> tuple[str, str]:
    if device.type == "cpu" and kernels is None:
        if backend.extension() is None:
            return PLAIN, backend.why_no_extension()
        if experiment.precision != "float32":
            return PLAIN, f"the C++ extension takes no {experiment.precision}"
        model = experiment.model
        if not isinstance(model, PairMLPConfig):
            return OPERATIONS, "C++ extension, each distinct prefix once"
        if model.depth == 1 and pair_rows.only_active(model.activation, data.n_answers):
            return FUSED, "C++ extension, only where a unit is active"
        return OPERATIONS, "C++ extension"
    if kernels != "triton":
        return PLAIN, backend.why_no_device_kernels(device) or "the step's kernels need Triton"
    config: Any = experiment.model
    dtype = getattr(torch, experiment.precision)
    if isinstance(config, PairMLPConfig):
        sizes = {"n_tokens": data.n_tokens, "n_answers": data.n_answers}
        obstacle = PairStep.fits(config, experiment.loss.op or "", **sizes, dtype=dtype)
        if obstacle:  # its first layer has a kernel by itself
            return (OPERATIONS if dtype is torch.float32 else PLAIN), obstacle
        return FUSED, "Triton"
    obstacle = TransformerStep.fits(config, seq_len=data.seq_len, device=device, dtype=dtype)
    return (PLAIN, obstacle) if obstacle else (FUSED, "Triton, each distinct prefix once")
