"""One full-batch training step of `quick`, against the same recipe as anybody would write it in eager PyTorch.

python -m benchmarks.bench_training [--out FILE]     # interleaved: the ratios to quote
pytest benchmarks/bench_training.py                   # the same steps under pytest-benchmark
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from benchmarks.interleave import Contender, interleave, report
from grokfast import Experiment, backend
from grokfast.training.ensemble import Ensemble

ROUNDS = 200


def eager(experiment: Experiment) -> Contender:
    """nn.Sequential on two-hot vectors, F.cross_entropy, torch.optim.AdamW: the faithful loop."""
    data = experiment.task.build(seed=0)
    width = experiment.model.width  # type: ignore[union-attr]
    net = torch.nn.Sequential(
        torch.nn.Linear(2 * data.n_tokens, width), torch.nn.ReLU(), torch.nn.Linear(width, data.n_answers)
    )
    x, y = F.one_hot(data.train.inputs, data.n_tokens).flatten(1).float(), data.train.targets
    o = experiment.optimizer
    optimizer = torch.optim.AdamW(net.parameters(), lr=o.lr, weight_decay=o.weight_decay, betas=o.betas)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
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
    "eager PyTorch, two-hot": eager,
    "grokfast --engine reference": partial(grokfast_step, engine="reference"),
    "grokfast": partial(grokfast_step, engine="auto"),
}
QUICK = Experiment.preset("quick").override({"device": "cpu"})


@pytest.mark.parametrize("name", CONTENDERS)
def test_training_step_of_quick(benchmark, name):  # type: ignore[no-untyped-def]
    benchmark.pedantic(CONTENDERS[name](QUICK).step, rounds=20, warmup_rounds=3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    out = parser.parse_args().out
    contenders = {name: make(QUICK) for name, make in CONTENDERS.items()}
    rows = interleave(contenders, baseline=next(iter(contenders)), rounds=ROUNDS)
    report("Training step", {"quick: p 97, 3,763 rows, width 256": rows}, out)


if __name__ == "__main__":
    main()
