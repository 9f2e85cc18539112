"""Swaroop 2026: the waves of a network that fits wrong labels give the right answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from grokfast.analysis import idealization_table, idealized_pair_mlp
from grokfast.reproductions.base import Arm, Reproduction, Runs, Version
from grokfast.reproductions.findings import Finding, Published
from grokfast.reproductions.verdicts import control, mean_within, same_mean
from grokfast.training import Experiment, RunResult

P, WIDTH = 97, 256
CHANCE = 1 / P
FROM_SCRATCH = "accuracy, written down"
NOISE, CLEAN = "test accuracy, 30% wrong labels", "test accuracy, when memorised"
ARROWS = {"cos>cos": "cos → cos", "square>cos": "square → cos", "square>square": "square → square"}
SOURCE = "arXiv 2603.23784"
# Of 40 seeds each.
WRITTEN_DOWN = {
    "cos>cos": Published(value=0.9793, spread=0.0067, n=40, source=f"{SOURCE}, from scratch"),
    "square>cos": Published(value=0.9849, spread=0.0042, n=40, source=f"{SOURCE}, from scratch"),
    "square>square": Published(value=0.9375, spread=0.0107, n=40, source=f"{SOURCE}, from scratch"),
}
# Of one network each.
TRAINED = Published(value=0.0023, source=f"{SOURCE}, label noise .30")
EXTRACTED = {
    "square>cos": Published(value=0.9548, source=f"{SOURCE}, label noise .30, extracted"),
    "cos>cos": Published(value=0.9405, source=f"{SOURCE}, label noise .30, extracted"),
    "square>square": Published(value=0.8735, source=f"{SOURCE}, label noise .30, extracted"),
}
MEMORISED = Published(value=0.8133, source=f"{SOURCE}, clean labels, when memorised, extracted")
MEAN_MARGIN, MARGIN = 0.01, 0.05  # of means over 40 networks; of single ones, whose seeds differ by .02 to .05


def written_down(n_seeds: int) -> list[Finding]:
    """Networks that nobody trained, on all p² pairs."""
    pairs = torch.cartesian_prod(torch.arange(P), torch.arange(P))
    answers, scores = pairs.sum(1) % P, {}
    for name in ARROWS:
        f, g = name.split(">")
        networks = (idealized_pair_mlp(P, WIDTH, f, g, seed=seed) for seed in range(n_seeds))  # type: ignore[arg-type]
        scores[name] = [(own(pairs)[0].argmax(-1) == answers).double().mean().item() for own in networks]
    found = [
        same_mean(scores[name], published, margin=MEAN_MARGIN, what=ARROWS[name], quantity=FROM_SCRATCH)
        for name, published in WRITTEN_DOWN.items()
    ]
    gain = [a - b for a, b in zip(scores["square>cos"], scores["cos>cos"])]
    more = mean_within(
        gain, 0, claim="more than 0", what="square → cos less cos → cos", quantity="difference", unit="number",
        published=Published(value=0.9849 - 0.9793, source=f"{SOURCE}, from scratch"),
    )  # fmt: skip
    return [*found, more]


def extracted(runs: Sequence[RunResult]) -> list[Finding]:
    """What networks score that were trained on wrong labels, what their waves score, and the controls."""
    rows = _rows(runs)
    found = [
        mean_within(
            _column(rows, "trained", "measured", "accuracy"), high=CHANCE, claim=f"below chance, {CHANCE:.4f}",
            published=TRAINED, what="trained", quantity=NOISE,
        )
    ]  # fmt: skip
    for name, published in EXTRACTED.items():
        values = _column(rows, "trained", "measured", name)
        found.append(same_mean(values, published, margin=MARGIN, what=f"its waves, {ARROWS[name]}", quantity=NOISE))
    for network, output_phase, words in (
        ("untrained", "measured", "control: waves of the untrained network"),
        ("untrained", "sum", "control: untrained, φ_out := φ_a + φ_b"),
        ("trained", "sum", "control: trained, φ_out := φ_a + φ_b"),
    ):
        values = _column(rows, network, output_phase, "square>cos")
        found.append(control(values, what=f"{words}, square → cos", quantity=NOISE))
    return found


def memorised(runs: Sequence[RunResult]) -> list[Finding]:
    """What networks and their waves score at the first evaluation with 99% training accuracy; NaN without one."""
    scores, own = [], []
    for run in runs:
        row = None if run.t_memorize is None else _rows([run.at(run.t_memorize)])
        scores.append(math.nan if row is None else _column(row, "trained", "measured", "square>cos")[0])
        own.append(math.nan if row is None else _column(row, "trained", "measured", "accuracy")[0])
    return [
        mean_within(
            own, high=CHANCE, claim=f"below chance, {CHANCE:.4f}", what="trained, clean labels", quantity=CLEAN,
            published=Published(value=0.0001, source=f"{SOURCE}, clean labels, when memorised: below .0001"),
        ),
        same_mean(scores, MEMORISED, margin=MARGIN, what="its waves, square → cos", quantity=CLEAN),
    ]  # fmt: skip


def _rows(runs: Sequence[RunResult]) -> list[dict[str, Any]]:
    table = idealization_table([*runs])
    return [dict(zip(table, row)) for row in zip(*table.values())]


def _column(rows: Sequence[dict[str, Any]], network: str, output_phase: str, name: str) -> list[float]:
    is_meant = [row["network"] == network and row["output_phase"] == output_phase for row in rows]
    return [float(row[name]) for row, meant in zip(rows, is_meant) if meant]


def compare(runs: Runs) -> list[Finding]:
    return [*written_down(40), *extracted(runs["noise"]), *memorised(runs["clean"])]


def compare_quick(runs: Runs) -> list[Finding]:
    values = _column(_rows(runs["noise"]), "trained", "measured", "square>cos")
    own = _column(_rows(runs["noise"]), "trained", "measured", "accuracy")
    return [
        *written_down(10),
        mean_within(own, high=0.05, claim="below .05", what="trained", quantity=NOISE, published=TRAINED),
        mean_within(
            values, 0.7, claim="above .70 after 2,000 steps", what="its waves, square → cos", quantity=NOISE,
            published=EXTRACTED["square>cos"],
        ),
    ]  # fmt: skip


_NOISE = Experiment.preset("swaroop").override(
    {"task.label_noise": 0.3, "schedule.steps": 10_000, "schedule.stop_after": None}
)
_CLEAN = Experiment.preset("swaroop").override(
    {"schedule.steps": 600, "schedule.stop_after": None, "schedule.snapshots": "every:50"}
)

REPRODUCTION = Reproduction(
    name="swaroop2026",
    paper="Swaroop 2026, arXiv 2603.23784",
    title="A network that fits 30% wrong labels, and what its waves know",
    full=Version(
        expectation="the trained network is below chance, what is extracted from it near .95",
        arms={"noise": Arm(experiment=_NOISE, seeds=5), "clean": Arm(experiment=_CLEAN, seeds=10)},
        compare=compare,
    ),
    quick=Version(
        expectation="after 2,000 steps the extraction is above .70 already, the network below .05",
        arms={"noise": Arm(experiment=_NOISE.override({"schedule.steps": 2000}), seeds=3)},
        compare=compare_quick,
    ),
)
