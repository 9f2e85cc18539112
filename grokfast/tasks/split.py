"""What tasks do to their rows: the split into training and test set, and label noise."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor


def train_size(n_rows: int, train_fraction: float) -> int:
    """floor(train_fraction · n_rows), train_fraction taken as the decimal number it prints as (0.29 of 100 is 29).

    Raises:
        ValueError: no training row is left. (A fraction below 1 always leaves a test row.)
    """
    n_train = int(exact(train_fraction) * n_rows)
    if n_train == 0:
        raise ValueError(
            f"train_fraction must leave at least one training pair, got {train_fraction} of {n_rows} pairs"
        )
    return n_train


def train_test_split(targets: Tensor, train_fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Cut rows 0..n-1 at random into train_size(n, train_fraction) training rows and the rest.

    Args:
        targets: [n] int64; only its length matters here.

    Returns:
        Training and test row numbers, each sorted: their order carries no information, and sorted rows gather locally.
    """
    n_train = train_size(len(targets), train_fraction)
    order = torch.randperm(len(targets), generator=generator)
    return order[:n_train].sort().values, order[n_train:].sort().values


def stratified_split(targets: Tensor, train_fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """As train_test_split, each class of targets [n] split separately.

    A class of m rows gives floor(train_fraction · m) training rows. What then lacks to train_size(n, train_fraction) is
    handed out one row per class, by largest remainder, ties to the lowest class.
    """
    sizes = torch.bincount(targets)
    quotas = _apportion(sizes.tolist(), exact(train_fraction), train_size(len(targets), train_fraction))
    order = torch.randperm(len(targets), generator=generator)
    order = order[targets[order].argsort(stable=True)]  # class after class, random order within each
    within = torch.arange(len(targets)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    is_train = within < torch.tensor(quotas).repeat_interleave(sizes)
    return order[is_train].sort().values, order[~is_train].sort().values


def corrupt_labels(targets: Tensor, share: float, n_answers: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Replace exactly round(share · N) of targets [N], chosen at random, each by a uniformly drawn wrong answer.

    From one generator state a larger share corrupts the same rows in the same way, and more.

    Returns:
        The new targets [N], and which of them are wrong, [N] bool.
    """
    order = torch.randperm(len(targets), generator=generator)
    offsets = torch.randint(1, n_answers, targets.shape, generator=generator)
    corrupted = torch.zeros(len(targets), dtype=torch.bool)
    corrupted[order[: round(exact(share) * len(targets))]] = True
    return torch.where(corrupted, (targets + offsets) % n_answers, targets), corrupted


def exact(number: float) -> Fraction:
    """The decimal number that it prints as."""
    return Fraction(str(float(number)))


def _apportion(sizes: Sequence[int], fraction: Fraction, total: int) -> list[int]:
    """floor(fraction · size) per class, raised to `total` by largest remainder (an empty class never gets a row)."""
    shares = [fraction * size for size in sizes]
    quotas = [int(share) for share in shares]
    by_remainder = sorted(range(len(sizes)), key=lambda c: quotas[c] - shares[c])  # stable: ties stay in class order
    for c in by_remainder[: total - sum(quotas)]:
        quotas[c] += 1
    return quotas
