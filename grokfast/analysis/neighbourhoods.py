"""What is near data: linear regions, and inputs that are answered wrong."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from grokfast import checks
from grokfast.analysis.alone import Alone, alone, module_of
from grokfast.losses import Hinge
from grokfast.measures import local_complexity as measure
from grokfast.tasks.data import Data, Task


def local_complexity(
    model: Any, points: Tensor, *, radius: float = 0.005, n_vertices: int = 16, seed: int = 0
) -> Tensor:
    """`measures.local_complexity` around inputs [N, ...] or [E, N, ...] of a run, several, or a live model:
    float64 [E, hidden layers]; a transformer's are its MLPs, each unit once at every position.

    points: rows of a split. Tokens are moved as their embeddings, or as one-hot vectors where the model has none.
    Exact where units are "relu" or "abs"; of others it is where their preactivations change their sign.
    Raises as the measure does; TypeError where the model does not tell its embeddings and preactivations.
    """
    if not isinstance(points, Tensor):
        raise TypeError(f"points must be inputs, a tensor, got {checks.shown(points)}")
    module = module_of(model)
    like = next(module.parameters()).detach()

    def preactivations(x: Tensor) -> list[Tensor]:
        found: list[Tensor] = []
        module.from_embedded(x, found)
        return found

    x = module.embedded(points.to(like) if points.is_floating_point() else points.to(like.device)).detach()
    return measure.local_complexity(preactivations, x, radius=radius, n_vertices=n_vertices, seed=seed)


def adversarial_accuracy(
    model: Any,
    task: Task | Data | None = None,
    *,
    epsilon: float,
    steps: int = 20,
    step_size: float | None = None,
    split: str = "test",
) -> Tensor:
    """Share of a split's rows that stay right under an L∞ attack by projected gradient descent (Madry et al. 2018,
    arXiv 1706.06083): float64 [E].

    Each step moves inputs, or tokens' embeddings (one-hot vectors where the model has none), by step_size along the
    sign of the gradient, and back to within epsilon of where they were; a row counts where it is right after each. What
    ascends is the margin max_{c ≠ y} f_c − f_y, −y f of signs: a cross entropy's gradient vanishes where logits are
    large. Inputs are kept in no range.

    model, task: see `subject`. epsilon: 0 is the accuracy itself. step_size: None is 2.5 · epsilon / steps.
    Raises TypeError or ValueError where an argument has the wrong type or is out of range, the targets are real numbers
    and the loss is not hinge, or the model does not tell its embeddings.
    """
    checks.real("epsilon", epsilon, minimum=0)
    checks.integer("steps", steps, minimum=1)
    step_size = 2.5 * epsilon / steps if step_size is None else step_size
    checks.real("step_size", step_size, minimum=0)
    return torch.stack([_attacked(one, epsilon, steps, step_size) for one in alone(model, task, split=split)])


def _attacked(one: Alone, epsilon: float, steps: int, step_size: float) -> Tensor:
    if one.data.is_real and not isinstance(one.loss, Hinge):
        raise ValueError("task must have classes as targets, or signs and the loss hinge, got real numbers")
    start = one.module.embedded(one.inputs[None]).detach()
    x, right = start, torch.ones(len(one.targets), dtype=torch.bool, device=start.device)
    for _ in range(steps):
        x = x.requires_grad_()
        margins = _margins(one, one.module.from_embedded(x)[0])
        right &= (margins.detach() < 0).flatten(1).all(1)
        (gradient,) = torch.autograd.grad(margins[margins.isfinite()].sum(), x)
        x = x.detach() + step_size * gradient.sign()
        x = start + (x - start).clamp(-epsilon, epsilon)
    with torch.no_grad():
        right &= (_margins(one, one.module.from_embedded(x)[0]) < 0).flatten(1).all(1)
    return right.double().mean()


def _margins(one: Alone, outputs: Tensor) -> Tensor:
    """[N, S], below 0 where an answer is right, −∞ where none is asked."""
    if one.data.is_real:
        return -one.targets * outputs
    targets = one.targets.view(len(one.targets), -1)  # [N, S]
    logits = outputs.view(*targets.shape, -1)
    asked = targets.clamp(min=0)[..., None]
    others = logits.scatter(-1, asked, -torch.inf).amax(-1)
    return (others - logits.gather(-1, asked)[..., 0]).where(targets >= 0, -torch.inf)
