"""Davies et al. 2023: patterns learned one after the other make grokking and double descent, in steps and in width."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grokfast.analysis import fit_patterns
from grokfast.reproductions.base import Arm, Reproduction, Runs, Version
from grokfast.reproductions.findings import Finding, Published
from grokfast.reproductions.verdicts import control, mean_within, same_mean
from grokfast.tasks import RandomFeaturesTask, TwoScaleTask
from grokfast.tasks.data import Data
from grokfast.training import Experiment, RunResult

SOURCE = "arXiv 2303.06173"
TOY = "its toy model: b = 50 when overfitted, 200 when generalised, γ = 1"
# Sizes of network, all after the same number of steps.
WIDTHS, STEPS, THRESHOLD = (32, 64, 128, 256), 1500, 0.99
# Where double descent is looked for, set beforehand: before the peak, at it, and after it.
FEATURES, MOMENTS = (100, 300, 6000), (0.5, 31.0, 1400.0)
AROUND = (150, 200, 250, 300, 350, 400, 600)  # widths among which the peak is searched; there are 300 rows
TIMES = np.geomspace(0.03, 3000, 40)
EPOCHS, GROKKING = "log10 of a quotient of risks by steps", "a sum of patterns, R²"


def smallest_norm_error(data: Data) -> float:
    """Share of test rows that the least squares solution of smallest norm has wrong."""
    targets = torch.eye(data.n_answers, dtype=torch.float64)[data.train.targets]
    weights = torch.linalg.pinv(data.train.inputs.double(), rtol=1e-10) @ targets
    return ((data.test.inputs.double() @ weights).argmax(1) != data.test.targets).double().mean().item()


def flow(data: Data, times: Sequence[float]) -> Tensor:
    """Test errors at `times` of gradient flow on half the mean squared training error, from 0, by the SVD."""
    x, y = data.train.inputs.double(), data.train.targets.double()
    u, s, v = torch.linalg.svd(x / len(x) ** 0.5, full_matrices=False)
    own = u.T @ y / len(x) ** 0.5
    found = [v.T @ ((1 - (-t * s**2).exp()) / s)[:, None].mul(own) for t in times]
    return torch.stack([(data.test.inputs.double() @ w - data.test.targets).square().mean() for w in found])


def by_width(n_seeds: int) -> list[Finding]:
    """Random features of the digits; more wrong labels are the control: their second minimum stays above the first."""

    def errors(widths: Sequence[int], noise: float) -> np.ndarray:
        tasks = [RandomFeaturesTask(width=width, label_noise=noise) for width in widths]
        return np.array([[smallest_norm_error(task.build(seed=seed)) for task in tasks] for seed in range(n_seeds)])

    first, peak, second = errors(FEATURES, 0.1).T
    noisy = errors(FEATURES[::2], 0.2)
    words: dict[str, Any] = {"quantity": "difference of test errors by width", "unit": "number"}
    highest = np.array(AROUND)[errors(AROUND, 0.1).argmax(1)]
    return [
        mean_within(
            highest.tolist(), 250, 350, claim="from 250 to 350", what="width of the highest test error, 300 rows",
            quantity="width", unit="number",
            published=Published(value=300, source="arXiv 1812.11118: the peak is where the width is the rows'"),
        ),
        mean_within((peak - first).tolist(), 0, claim="more than 0", what="at 300 less at 100", **words),
        mean_within((first - second).tolist(), 0, claim="more than 0", what="at 100 less at 6,000", **words),
        control((noisy[:, 0] - noisy[:, 1]).tolist(), what="control: the same, 20% wrong labels", **words),
    ]  # fmt: skip


def by_steps(n_seeds: int) -> list[Finding]:
    """Regression on two scales; without a pattern that harms, the sum is the control."""
    data = [TwoScaleTask().build(seed=seed) for seed in range(n_seeds)]
    first, peak, second = torch.stack([flow(own, MOMENTS) for own in data]).log10().T
    explained = [1 - flow(own, TIMES.tolist()) / own.test.targets.double().square().mean() for own in data]

    def fits(*signs: int) -> list[float]:
        return [fit_patterns(np.log(TIMES), own.numpy(), signs=signs).r2 for own in explained]

    return [
        mean_within(
            fits(1, -1, 1), 0.9, claim="at least .9", what="double descent: helps, harms, helps", quantity=GROKKING
        ),
        control(fits(1, 1), what="control: two that help", quantity=GROKKING),
        mean_within(
            (peak - first).tolist(), 0, claim="more than 0", what="at 31 / at .5", quantity=EPOCHS, unit="number"
        ),
        mean_within(
            (second - first).tolist(), high=0, claim="less than 0", what="at 1,400 / at .5", quantity=EPOCHS,
            unit="number",
        ),
    ]  # fmt: skip


def grokking(runs: Sequence[RunResult]) -> list[Finding]:
    """Each accuracy as one pattern; a parabola, of as many parameters, is the control."""
    t = [run.curves["step"].astype(np.float64) for run in runs]
    test = [fit_patterns(at, run.curves["test_accuracy"]) for at, run in zip(t, runs)]
    train = [fit_patterns(at, run.curves["train_accuracy"]) for at, run in zip(t, runs)]
    delays = [math.log10(slow.b[0] / max(fast.b[0], 1.0)) for slow, fast in zip(test, train)]
    return [
        same_mean(
            [own.gamma[0] for own in test], Published(value=1, source=f"{SOURCE}, {TOY}"), margin=0.05,
            what="of the test accuracy's pattern", quantity="γ, what a pattern explains",
        ),
        mean_within(
            delays, math.log10(2), claim="more than doubled", what="log10 of b, test / training accuracy",
            quantity="delay", unit="number", published=Published(value=math.log10(4), source=f"{SOURCE}, {TOY}"),
        ),
        mean_within(
            [own.r2 for own in test], 0.98, claim="at least .98", what="grokking: test accuracy, one that helps",
            quantity=GROKKING,
        ),
        control(
            [_parabola(at, run.curves["test_accuracy"]) for at, run in zip(t, runs)], what="control: a parabola",
            quantity=GROKKING,
        ),
    ]  # fmt: skip


def by_size(runs: Runs) -> list[Finding]:
    """Of a seed the smallest network that is right on the training set, and on the test set."""
    own = [runs[_arm(width)] for width in WIDTHS]
    train, test = (
        [_smallest([found[i].final[column] for found in own]) for i in range(len(own[0]))]
        for column in ("train_accuracy", "test_accuracy")
    )
    return [
        mean_within(
            [math.log2(large / small) for small, large in zip(train, test)], 1, claim="at least twice as wide",
            what=f"log2 of width, {THRESHOLD:.0%} of the test / training set", quantity="model-wise grokking",
            unit="number",
        ),
    ]  # fmt: skip


def _smallest(accuracies: Sequence[float]) -> float:
    """The first of WIDTHS from which on the accuracy is high; NaN where not even the last one's is."""
    low = [i for i, accuracy in enumerate(accuracies) if accuracy < THRESHOLD]
    return math.nan if low and low[-1] == len(WIDTHS) - 1 else float(WIDTHS[low[-1] + 1 if low else 0])


def _parabola(t: np.ndarray, y: np.ndarray) -> float:
    """The share of variance that it explains."""
    rest = y - np.polynomial.Polynomial.fit(t, y, 2)(t)
    return float(1 - np.square(rest).sum() / np.square(y - y.mean()).sum())


def _compare(runs: Runs, n_seeds: int) -> list[Finding]:
    return [*grokking(runs[_arm(WIDTHS[-1])]), *by_steps(n_seeds), *by_width(n_seeds), *by_size(runs)]


def _arm(width: int) -> str:
    return f"width {width}"


def _version(expectation: str, seeds: int, linear: int) -> Version:
    base = Experiment.preset("quick").override({"schedule.steps": STEPS, "schedule.stop_after": None})
    arms = {_arm(width): Arm(experiment=base.override({"model.width": width}), seeds=seeds) for width in WIDTHS}
    compare: Callable[[Runs], list[Finding]] = partial(_compare, n_seeds=linear)
    return Version(expectation=expectation, arms=arms, compare=compare)


REPRODUCTION = Reproduction(
    name="davies2023",
    paper="Davies et al. 2023, arXiv 2303.06173, with an MLP for their transformer and linear models",
    title="Patterns that are learned one after the other: grokking and double descent",
    full=_version("one late pattern fits grokking, a harmful one makes double descent, in steps and in width", 5, 20),
    quick=_version("the same of three seeds, linear models of five", 3, 5),
)
