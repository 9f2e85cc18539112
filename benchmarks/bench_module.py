"""A step of a user's own nn.Module as grokfast trains it, against an eager loop over the same module.

python -m benchmarks.bench_module [--out FILE]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.interleave import Contender, interleave, report
from grokfast import Experiment
from grokfast.models import Module
from grokfast.tasks import Data
from grokfast.training.ensemble import Ensemble

ROUNDS = 200
BASE = Experiment.preset("quick").override({"device": "cpu"})


class Net(nn.Module):
    """Embeddings of both operands, side by side, two hidden layers."""

    def __init__(self, data: Data, width: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Embedding(data.n_tokens, width)
        self.body = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.out = nn.Linear(width, data.n_answers)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.out(self.body(self.embedding(tokens).flatten(1)))
        return logits


def eager(experiment: Experiment) -> Contender:
    """The loop that anybody writes, with torch's fused AdamW."""
    data = experiment.task.build(seed=0)
    module, o = Net(data), experiment.optimizer
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=o.lr, weight_decay=o.weight_decay, betas=o.hyper["betas"], fused=True
    )
    x, y = data.train.inputs, data.train.targets
    if experiment.schedule.batch_size is not None:
        x, y = x[: experiment.schedule.batch_size], y[: experiment.schedule.batch_size]

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimizer.step()

    return Contender(step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    sections = {}
    for name, change in (("3,763 rows", {}), ("batches of 256", {"schedule.batch_size": 256})):
        experiment = BASE.override({"model": Module(factory=Net), **change})
        contenders = {"eager PyTorch": eager(experiment), "grokfast": Contender(Ensemble([experiment]).step)}
        sections[name] = interleave(contenders, baseline="eager PyTorch", rounds=ROUNDS)
    report("A module of one's own", sections, parser.parse_args().out)


if __name__ == "__main__":
    main()
