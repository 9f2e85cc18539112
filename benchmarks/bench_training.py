"""One training step of recipes without a transformer, against the recipe as anybody would write it in eager PyTorch.

python -m benchmarks.bench_training [--recipes quick,a5,...] [--out FILE]     # interleaved: the ratios to quote
pytest benchmarks/bench_training.py                   # the steps of quick under pytest-benchmark
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.interleave import Contender, interleave, report
from grokfast import Experiment, backend
from grokfast.models import MLPConfig, PairMLPConfig, TokenMLPConfig
from grokfast.tasks import Data
from grokfast.training.ensemble import Ensemble

ROUNDS = 200
RECIPES = {
    "quick": "p 97, 3,763 rows, width 256",
    "gromov": "p 97, 4,704 rows, width 500, x², MSE",
    "chughtai-s5": "5,760 rows, embeddings 2 x 256, width 128",
    "s5": "8,640 rows, embeddings 2 x 256, width 128",
    "a5": "2,160 rows, embeddings 2 x 128, width 128",
    "parity": "batches of 32 rows, 40 features, width 1,000, SGD",
    "digits": "200 rows, 64 features, 200-200",
    "prieto": "p 113, 5,107 rows, 200-200",
    "quick-tokens": "quick's task, a TokenMLP",
}


class Embedded(nn.Module):
    """Two embeddings, concatenated, and a hidden layer: Chughtai et al.'s network."""

    def __init__(self, data: Data, config: PairMLPConfig) -> None:
        super().__init__()
        d = config.embed or 0
        self.a, self.b = nn.Embedding(data.n_tokens, d), nn.Embedding(data.n_tokens, d)
        self.hidden = nn.Linear(2 * d, config.width, bias=config.bias)
        self.out = nn.Linear(config.width, data.n_answers, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.a(x[:, 0]), self.b(x[:, 1])], 1)
        out: Tensor = self.out(self.hidden(both).relu())
        return out


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.square()


def network(data: Data, experiment: Experiment) -> tuple[nn.Module, Tensor]:
    """The network, and what it is shown."""
    config, x = experiment.model, data.train.inputs
    if isinstance(config, PairMLPConfig) and config.embed:
        return Embedded(data, config), x
    assert isinstance(config, (PairMLPConfig, MLPConfig))
    if data.n_tokens:
        x = F.one_hot(x, data.n_tokens).flatten(1).float()
    sizes = [x.shape[1], *[config.width] * config.depth]
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out, bias=config.bias), Square() if config.activation == "square" else nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(config.width, data.n_answers, bias=config.bias)), x


def loss_of(experiment: Experiment, data: Data) -> Callable[[Tensor, Tensor], Tensor]:
    name = type(experiment.loss).__name__
    if name == "Hinge":
        return lambda out, y: (1 - y * out).clamp(min=0).mean()
    if name == "MSE":
        return lambda out, y: F.mse_loss(out, F.one_hot(y, data.n_answers).float())
    return F.cross_entropy


def eager(experiment: Experiment) -> Contender:
    """nn modules, torch's losses, optimizers and randperm: the faithful loop."""
    data = experiment.task.build(seed=0)
    net, x = network(data, experiment)
    y, loss, o = data.train.targets, loss_of(experiment, data), experiment.optimizer
    optimizer: torch.optim.Optimizer
    if o.rule == "sgd":
        optimizer = torch.optim.SGD(net.parameters(), lr=o.lr, weight_decay=o.weight_decay)
    else:
        optimizer = torch.optim.AdamW(net.parameters(), lr=o.lr, weight_decay=o.weight_decay, betas=o.betas)
    size, batches = experiment.schedule.batch_size, list[Tensor]()

    def step() -> None:
        rows: Tensor | slice = slice(None)
        if size is not None:
            if not batches:
                batches.extend(torch.randperm(len(x)).split(size))
            rows = batches.pop()
        optimizer.zero_grad()
        loss(net(x[rows]), y[rows]).backward()
        optimizer.step()

    return Contender(step)


def grokfast_step(experiment: Experiment, engine: str) -> Contender:
    with backend.using(engine):
        ensemble = Ensemble([experiment])

    def step() -> None:
        with backend.using(engine):
            ensemble.step()

    return Contender(step)


CONTENDERS: dict[str, Callable[[Experiment], Contender]] = {
    "eager PyTorch": eager,
    "grokfast --engine reference": partial(grokfast_step, engine="reference"),
    "grokfast": partial(grokfast_step, engine="auto"),
}
QUICK = Experiment.preset("quick").override({"device": "cpu"})


def recipe(name: str) -> Experiment:
    if name == "quick-tokens":
        return QUICK.override({"model": TokenMLPConfig()})
    return Experiment.preset(name).override({"device": "cpu"})


@pytest.mark.parametrize("name", CONTENDERS)
@pytest.mark.parametrize("preset", RECIPES)
def test_training_step(benchmark, preset, name):  # type: ignore[no-untyped-def]
    benchmark.group = f"training step, {preset}"
    benchmark.pedantic(CONTENDERS[name](recipe(preset)).step, rounds=20, warmup_rounds=3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default=",".join(RECIPES), help=f"of {', '.join(RECIPES)}; default: all")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    args = parser.parse_args()
    tables = {}
    for name in args.recipes.split(","):
        experiment = recipe(name)
        contenders = {who: make(experiment) for who, make in CONTENDERS.items()}
        tables[f"{name}: {RECIPES[name]}"] = interleave(contenders, baseline="eager PyTorch", rounds=args.rounds)
    report("Training step", tables, args.out)


if __name__ == "__main__":
    main()
