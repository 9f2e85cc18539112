"""The loss around a solution: its sharpness, its learning coefficient, and the way to another solution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grokfast import checks
from grokfast.analysis.alone import Alone, alone
from grokfast.losses import Loss
from grokfast.measures.curvature import largest_eigenvalue
from grokfast.measures.learning_coefficient import LearningCoefficient, learning_coefficient
from grokfast.seeds import generator
from grokfast.tasks.data import Data, Task
from grokfast.transforms.base import Layout


def sharpness(
    model: Any,
    task: Task | Data | None = None,
    *,
    split: str = "train",
    loss: Loss | None = None,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> Tensor:
    """The largest eigenvalue of the Hessian of the loss on a split, float64 [E], without weight decay's part.

    In fp64, whatever the model's precision. Gradient descent of rate η is stable up to 2/η (Cohen et al. 2021, arXiv
    2103.00065). model, task: see `subject`. loss: None is a run's own, of a live model CrossEntropy, or MSE of real
    targets. tolerance, seed: see `measures.curvature.largest_eigenvalue`, which says what else is raised.
    """
    found = []
    for one in alone(model, task, split=split, loss=loss):
        one = one.double()
        flat, layout = _flat(one)

        def value(w: Tensor, one: Alone = one, layout: Layout = layout) -> Tensor:
            return one.measure(layout.views(w[None]))[0][0]

        found.append(largest_eigenvalue(value, flat, tolerance=tolerance, seed=seed))
    return torch.tensor(found, dtype=torch.float64)


def local_learning_coefficient(
    model: Any,
    task: Task | Data | None = None,
    *,
    split: str = "train",
    loss: Loss | None = None,
    batch_size: int | None = None,
    chains: int = 4,
    seed: int = 0,
    **options: Any,
) -> list[LearningCoefficient]:
    """`measures.learning_coefficient` of each model at its weights, on a split.

    model, task, loss: see `sharpness`. batch_size: rows of a step, drawn with replacement; None: all. options: epsilon,
    n_beta, gamma, draws and burn_in, of the measure. Its defaults are those of devinterp's example of modular addition;
    an epsilon that suits a model is to be looked for: losses that climb without end, or not at all, say which way.
    Raises as the measure and `subject` do.
    """
    checks.integer("chains", chains, minimum=1)
    if batch_size is not None:
        checks.integer("batch_size", batch_size, minimum=1)
    found = []
    for one in alone(model, task, split=split, loss=loss):
        flat, layout = _flat(one)
        many, n = one.times(chains + 1), len(one.targets)

        def losses(w: Tensor, step: int, many: Alone = many, layout: Layout = layout, n: int = n) -> Tensor:
            rows = None
            if batch_size is not None:
                rows = torch.randint(n, (batch_size,), generator=generator(seed, "batch", step)).to(w.device)
            return many.measure(layout.views(w), rows)[0]

        found.append(learning_coefficient(losses, flat, chains=chains, seed=seed, **options))
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class Segment:
    """Between two models: t [K] from 0 to 1; of each split loss and accuracy [K] at (1 − t) · a + t · b, in fp64."""

    t: Tensor
    loss: dict[str, Tensor]
    accuracy: dict[str, Tensor]

    @property
    def barrier(self) -> dict[str, float]:
        """Of each split max over t of the loss above (1 − t) · its first + t · its last value (Frankle et al. 2020,
        arXiv 1912.05671); 0 where it is nowhere above: the two are linearly connected."""
        return {
            split: float((loss - (1 - self.t) * loss[0] - self.t * loss[-1]).max()) for split, loss in self.loss.items()
        }


@torch.no_grad()
def linear_mode_connectivity(
    run_a: Any, run_b: Any, task: Task | Data | None = None, *, n_points: int = 21, loss: Loss | None = None
) -> Segment:
    """Loss and accuracy along the segment between the weights of two runs, on every split of the first one's data.

    run_a, run_b: a run, or a live model, each, of one shape. task: see `subject`. n_points: K, both ends counted.
    loss: None is the first run's own. Neurons are not permuted: two runs of other seeds differ by that, too.
    Raises as `subject` does, ValueError where one is several models, or they are not of one shape.
    """
    checks.integer("n_points", n_points, minimum=2)
    ends = []
    for name, run in (("run_a", run_a), ("run_b", run_b)):
        found = alone(run, task, loss=loss)
        if len(found) != 1:
            raise ValueError(f"{name} must be one model, got {len(found)}")
        ends.append(found[0].double())
    one, other = ends
    a, b = one.weights, other.weights
    if {n: w.shape for n, w in a.items()} != {n: w.shape for n, w in b.items()}:
        raise ValueError("run_b must have the parameters of run_a, of the same shapes")
    t = torch.linspace(0, 1, n_points, dtype=torch.float64)
    losses, accuracies = {}, {}
    for split in one.data.splits:
        here = one.of(split)
        measured = [here.measure({n: (1 - x) * w + x * b[n] for n, w in a.items()}) for x in t.tolist()]
        losses[split], accuracies[split] = (torch.cat(column).double().cpu() for column in zip(*measured))
    return Segment(t=t, loss=losses, accuracy=accuracies)


def _flat(one: Alone) -> tuple[Tensor, Layout]:
    """The parameters as one vector [P], and where they lie in it."""
    weights = one.weights
    flat = torch.cat([w[0].flatten() for w in weights.values()])
    return flat, Layout.of({name: w.shape[1:] for name, w in weights.items()})
