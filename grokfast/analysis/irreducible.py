"""The irreducible representations of a group that logits are made of (Chughtai et al. 2023, arXiv 2302.03025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grokfast import checks
from grokfast.analysis import pairs
from grokfast.measures.characters import characters
from grokfast.tasks.data import Data, Task
from grokfast.tasks.group import GroupTask, composition
from grokfast.tasks.modular import ModularTask


@dataclass(frozen=True, eq=False)
class Representations:
    """Of E models and R representations, see `representations`. names: "degree.number", with a "c" where it is one with
    its complex conjugate; degrees [R], of each one's own. All else fp64 [E, R]; train_loss, test_loss [E]."""

    names: tuple[str, ...]
    degrees: tuple[int, ...]
    similarity: Tensor
    variance: Tensor
    restricted: Tensor
    excluded: Tensor
    train_loss: Tensor
    test_loss: Tensor


def representations(model: Any, group: str | None = None, task: Task | Data | None = None) -> Representations:
    """What the logits L [n², n] of a∘b have of each irreducible representation ρ of the group, but the trivial one.

    similarity: cosine of L and χ_ρ(a b c⁻¹), c the answer: its trace similarity. variance: share of the energy ‖L‖² in
    P_ρ L, the functions of ab with values among ρ's matrix elements, (P_ρ L)(s) = χ_ρ(1)/n Σ_t χ_ρ(st⁻¹) L(t) for the
    means L(t) over the pairs of product t; similarity² is the part of it along the character. L is taken less its means
    over answers and pairs. restricted: test cross entropy of P_ρ L and the mean of the rest; excluded: training cross
    entropy of L - P_ρ L. Of a cyclic group it is `progress_measures`, with ρ and ρ̄ one frequency.

    group: as GroupTask names it; None: the task's, of addition mod p C<p>. model: a run, several, or
    `RunResult.at(step)`; or a live model with its task. Logits of all pairs are kept: for one model n is at most 511
    (A6, of 360, is 0.19 GB). Raises TypeError or ValueError naming the argument.
    """
    from grokfast.analysis.subject import subject

    found = subject(model, task)
    name = _group_of(model, task) if group is None else checks.text("group", group)
    products = torch.from_numpy(composition(name).copy())  # [n, n]
    names, degrees, real = _real_characters(products)
    n = len(products)
    inverse = (products == 0).int().argmax(1)
    quotients = products[:, inverse]  # [s, t], s t⁻¹
    rows = []
    for own in pairs.of_models(found.module, found.data, products):
        device = own.means.device
        constant, measures = own.means.mean(0), []
        for degree, chi in zip(degrees, real.to(device)):
            kernel = chi[quotients.to(device)]  # [n, n]
            component = degree / n * (kernel @ (own.means - constant))
            along = n * (own.means[:, :n] * kernel).sum() / (own.energy * n * kernel.square().sum()) ** 0.5
            variance = n * component.square().sum() / own.energy
            measures.append((along.item(), variance.item(), own.restricted(component), own.excluded(component)))
        of_all = torch.tensor(measures, dtype=torch.float64).reshape(-1, 4).T
        rows.append((*of_all, *(torch.tensor(own.loss(split), dtype=torch.float64) for split in ("train", "test"))))
    return Representations(names, degrees, *(torch.stack(column) for column in zip(*rows)))


def _group_of(model: Any, task: Task | Data | None) -> str:
    """The group that a task names."""
    if task is None:
        task = (model if hasattr(model, "experiment") else model[0]).experiment.task
    if isinstance(task, GroupTask):
        return task.group
    if isinstance(task, ModularTask) and task.operation == "add":
        return f"C{task.p}"
    raise ValueError(f"group must be named, as 'S5': task names none, {checks.shown(task)}")


def _real_characters(products: Tensor) -> tuple[tuple[str, ...], tuple[int, ...], Tensor]:
    """Names, degrees and characters [R, n], fp64, of the irreducible representations but the trivial one; χ + χ̄ of
    complex ones."""
    found = characters(products)
    names, degrees, real, numbers = [], [], [], dict[int, int]()
    for chi, degree in zip(found.values[1:], found.degrees[1:].tolist()):
        is_complex = bool(chi.imag.abs().max() > 1e-6)
        if is_complex and chi.imag[chi.imag.abs() > 1e-6][0] < 0:
            continue  # that of its conjugate
        numbers[degree] = numbers.get(degree, 0) + 1
        names.append(f"{degree}.{numbers[degree]}{'c' if is_complex else ''}")
        degrees.append(degree)
        real.append(2 * chi.real if is_complex else chi.real)
    if not real:
        raise ValueError("group must have more than one element, got one of 1")
    return tuple(names), tuple(degrees), torch.stack(real)
