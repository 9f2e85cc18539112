"""Every scheduler of torch drives the wrapper as it drives the optimizer inside, and says nothing."""

import warnings

import pytest
import torch
from torch.optim import lr_scheduler, swa_utils

from grokfast import EMA, GrokFast

SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda k: 0.9**k),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda k: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 3),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 7),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 1e-3, 1e-1, 3),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 1e-1, total_steps=20),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1, 2), lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, 2), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "SWALR": lambda o: swa_utils.SWALR(o, 1e-3, anneal_epochs=3),
}


def follow(name, wrap):
    p = torch.nn.Parameter(torch.ones(5))
    inner = torch.optim.AdamW([p], lr=1e-2)
    optimizer = wrap(inner)
    scheduler = SCHEDULERS[name](optimizer)
    seen = []
    for step in range(8):
        p.grad = torch.full((5,), 1.0 + step)
        optimizer.step()
        scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
        group = inner.param_groups[0]
        seen.append((group["lr"], group["betas"]))
    return seen, p.detach().clone()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_scheduler(name):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        plain, by_itself = follow(name, lambda inner: inner)
    with warnings.catch_warnings(record=True) as also_said:
        warnings.simplefilter("always")
        wrapped, filtered = follow(name, lambda inner: GrokFast(inner, EMA()))
    assert wrapped == plain
    assert len({lr for lr, _ in plain}) > 1
    assert not torch.equal(filtered, by_itself)
    assert [str(w.message) for w in also_said] == [str(w.message) for w in said]


def test_there_is_no_other_scheduler():
    """A new one in torch belongs into the list above."""
    known = {name for name, kind in vars(lr_scheduler).items() if isinstance(kind, type) and name[0] != "_"}
    base = {
        "LRScheduler",
        "Optimizer",
        "Counter",
        "Tensor",
        "Any",
        "SupportsFloat",
        "TypedDict",
        "Callable",
        "Iterable",
    }
    schedulers = {name for name in known if name.endswith(("LR", "Restarts", "Plateau", "Scheduler"))} - base
    assert schedulers <= {*SCHEDULERS}


def test_averaged_model():
    model = torch.nn.Linear(4, 2)
    optimizer = GrokFast(torch.optim.SGD(model.parameters(), lr=0.1), EMA())
    averaged = swa_utils.AveragedModel(model)
    seen = []
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
        averaged.update_parameters(model)
        seen.append(model.weight.detach().clone())
    torch.testing.assert_close(averaged.module.weight, sum(seen) / 3)
