"""Progress measures of modular addition (Nanda et al. 2023, arXiv 2301.05217)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from grokfast import checks
from grokfast.analysis import pairs
from grokfast.analysis.neurons import neuron_frequencies
from grokfast.measures.progress import at_frequencies, frequency_energies, key_frequencies
from grokfast.tasks.data import Data, Task
from grokfast.tasks.operands import sign_of_sum


@dataclass(frozen=True, eq=False)
class ProgressMeasures:
    """Of E models, see `progress_measures`. frequencies: of each its key frequencies. shares: [E, (p-1)/2], fp64, of
    the centred logits' energy, k = 1 first. The losses [E], fp64, are cross entropies."""

    frequencies: tuple[tuple[int, ...], ...]
    shares: Tensor
    restricted: Tensor
    excluded: Tensor
    train_loss: Tensor
    test_loss: Tensor


def progress_measures(
    model: Any,
    task: Task | Data | None = None,
    *,
    frequencies: Sequence[int] | None = None,
    threshold: float | None = None,
    by: Literal["logits", "neurons"] = "logits",
) -> ProgressMeasures:
    """How far a model of a + b (or a - b) mod p computes it by a few frequencies (Nanda et al. 2023, section 5.1).

    With P_k the projector of `frequency_energies` on the p²×C logits L of all pairs: restricted loss is the test cross
    entropy of Σ P_k L over the key frequencies and the mean of the remainder; excluded loss the training cross entropy
    of L - Σ P_k L. The first falls before the test loss does; the second rises while the network comes to rely on them.

    A frequency is a key frequency if it has at least `threshold` (None: .01) of the energy ‖L‖², L less the mean over
    classes and over pairs; at random weights one has about 2/p². by "neurons": if it has more than `threshold` (None:
    .85, as theirs) of the energy of a neuron's activations, see `neuron_frequencies`. Or they are given: those of the
    end, for what was before it.
    model: a run, several, or `RunResult.at(step)`; or a live model with its task.

    All p² inputs are evaluated, in pieces, and their logits kept. Raises TypeError or ValueError naming the argument:
    where the task is another, or more than 2^27 logits would be kept.
    """
    from grokfast.analysis.subject import subject

    checks.choice("by", by, ("logits", "neurons"))
    if threshold is None:
        threshold = 0.01 if by == "logits" else 0.85
    checks.real("threshold", threshold, minimum=0, maximum=1, open_minimum=True, open_maximum=True)
    found = subject(model, task)
    p = found.data[0].n_answers
    operands = torch.arange(p)
    sums = (operands[:, None] + sign_of_sum(found.data[0]) * operands) % p
    most = (p - 1) // 2
    given: Sequence[Sequence[int]] | None = None
    if frequencies is not None:
        own_ks = [checks.integer(f"frequencies[{i}]", k, minimum=1, maximum=most) for i, k in enumerate(frequencies)]
        given = [own_ks] * len(found.data)
    elif by == "neurons":
        given = neuron_frequencies(model, task).keys(threshold)
    rows, keys_of = [], []
    for e, own in enumerate(pairs.of_models(found.module, found.data, sums)):
        shares = frequency_energies(own.means) / own.energy
        keys = key_frequencies(shares, threshold)
        if given is not None:
            keys = torch.zeros_like(keys).index_fill_(0, torch.tensor(given[e], device=keys.device).long() - 1, True)
        component = at_frequencies(own.means, keys)
        keys_of.append(tuple((keys.nonzero()[:, 0] + 1).tolist()))
        losses = (own.restricted(component), own.excluded(component), own.loss("train"), own.loss("test"))
        rows.append((shares.cpu(), *(torch.tensor(loss, dtype=torch.float64) for loss in losses)))
    return ProgressMeasures(tuple(keys_of), *(torch.stack(column) for column in zip(*rows)))
