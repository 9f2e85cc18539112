"""Waves in weights: spectra of embeddings and neurons, the sharpest neurons beside pure waves, sums of phases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grokfast.analysis import (
    dominant_frequency,
    extract_idealized,
    idealization_table,
    periodicity,
    phase_sum,
    spectrum,
)
from grokfast.analysis.subject import subject
from grokfast.measures.idealized import idealized_weights, measured_waves
from grokfast.plots.axes import COLORS
from grokfast.probes.base import View
from grokfast.probes.spectra import tables
from grokfast.report.figures import Axis, csv, heat_map, matrix_csv, slider, svg, table
from grokfast.report.happened import figure_of_columns
from grokfast.report.material import Chapter, Material
from grokfast.report.page import Figure
from grokfast.tasks.operands import sign_of_sum
from grokfast.training.result import RunResult

SHARPEST = 4  # neurons whose waves are drawn
ROWS = 512  # neurons, or dimensions, in a picture
PERIODIC = 4.0  # periodicity from which a neuron counts as periodic, as in `phase_sum`
FRAMES = 6  # of the slider of spectra


def recorded(material: Material) -> list[Figure]:
    """The probe's columns."""
    own = material.columns("spectra")
    about = (
        "Share of periodic neurons, mean inverse participation ratio, Gini coefficient of the embedding's frequencies."
    )
    return [figure_of_columns(material, [own], "Periodicity while it trained", about)] if own else []


def spectra(material: Material) -> list[Figure]:
    """Heat maps: of the neurons over snapshots, in the order of the end, and of the embedding."""
    sign_of_sum(material.data)  # over whose operands there are frequencies
    stages = material.some_stages(FRAMES)
    neurons, embedding = _tables(stages)  # [E, N, p], [E, d, p]
    heights = spectrum(neurons)
    order = _by_frequency(heights[-1])
    name, k = "frequency", heights.shape[-1]
    high = float(np.quantile(heights[-1].numpy(), 0.999))
    frames = [
        (
            f"{stage.steps:,}",
            heat_map(
                own[order].T.numpy(), x=Axis("neuron", 1, len(order)), y=Axis(name, 1, k), value="|ŵ|", low=0, high=high
            ),
        )
        for stage, own in zip(stages, heights)
    ]
    sharp = periodicity(neurons[-1]) >= PERIODIC
    n_frequencies = len(dominant_frequency(neurons[-1])[sharp].unique())
    found = [
        Figure(
            "Spectra of the neurons",
            slider(frames),
            f"A heat map of {len(order)} neurons by {k} frequencies: {int(sharp.sum())} neurons of {len(sharp)} are "
            f"periodic, at {n_frequencies} frequencies.",
            _matrix(heights[-1][order], "neuron", order),
            f"{_what(material.run)} Neurons in the order of their strongest frequency at the end. Periodic are "
            f"{int(sharp.sum()):,} of {len(sharp):,}, at {n_frequencies} frequencies."
            + _some(len(order), len(sharp), "neurons"),
        )
    ]
    if embedding is not None:
        own = spectrum(embedding[-1])
        order = _by_frequency(own)
        strongest = (own.square().sum(0).sqrt().argsort(descending=True)[:5] + 1).tolist()
        found.append(
            Figure(
                "Spectrum of the embedding",
                heat_map(own[order].T.numpy(), x=Axis("dimension", 1, len(order)), y=Axis(name, 1, k), value="|ŵ|"),
                f"A heat map of {len(order)} dimensions by {k} frequencies; the strongest are "
                f"{', '.join(map(str, strongest))}.",
                _matrix(own[order], "dimension", order),
                "Dimensions of the embedding over the operands, in the order of their strongest frequency. Strongest "
                f"over all: {', '.join(map(str, strongest))}.{_some(len(order), len(own), 'dimensions')}",
            )
        )
    return found


def sharpest_neurons(material: Material) -> list[Figure]:
    """The weights of the most periodic neurons over the operands, beside pure waves of their frequency and phase."""
    sign_of_sum(material.data)
    vectors = _of_pairs(material.run)
    if vectors is None:
        (w,) = _tables([material.run])[0]
        vectors = {"write": w.double()}
        waves = measured_waves(vectors["write"], vectors["write"], vectors["write"])
        ideal = dict(zip(vectors, idealized_weights(waves, w.shape[-1], input_wave="cos", output_wave="cos")))
    else:
        module = extract_idealized(material.run)
        a, b = module.tables()
        ideal = {name: w[0].mT.detach().double() for name, w in zip(vectors, (a, b, module.out.weight))}
    first = next(iter(vectors.values()))
    chosen = periodicity(first).nan_to_num().topk(min(SHARPEST, len(first))).indices.tolist()
    frequency = dominant_frequency(first)
    columns: dict[str, Any] = {"operand": np.arange(first.shape[-1])}
    for i in chosen:
        for name, w in vectors.items():
            pure = ideal[name][i]
            columns[f"neuron {i + 1} {name}"] = w[i].numpy()
            columns[f"neuron {i + 1} {name} idealised"] = (w[i] @ pure / (pure @ pure) * pure).numpy()
    said = ", ".join(f"neuron {i + 1} at frequency {frequency[i]}" for i in chosen)
    what, waves_of = _what(material.run), "cosines"
    if len(vectors) > 1:
        what = "What each neuron reads of both operands, w_a and w_b, and what it writes to the answers, w_out."
        waves_of = "square in, cosine out"
    return [
        Figure(
            "Waves of the sharpest neurons",
            svg(_drawn_waves(columns, chosen, [*vectors], frequency)),
            f"Weights of the {len(chosen)} most periodic neurons over the operands, beside pure waves: {said}.",
            csv(columns),
            f"{what} Dots: trained weights; lines: the idealised wave of the same frequency and phase ({waves_of}), at "
            "the amplitude that fits best. Operands, and answers, j are in the order of k · j mod p, k the neuron's "
            "frequency, so that a wave of any frequency is one period.",
        )
    ]


def sums_of_phases(material: Material) -> list[Figure]:
    """φ_out against φ_a + φ_b."""
    sign_of_sum(material.data)
    vectors = _of_pairs(material.run)
    if vectors is None:
        extract_idealized(material.run)  # which says what it needs
        raise ValueError("model must have as many answers as operands")
    found = phase_sum(*vectors.values())
    waves = measured_waves(*vectors.values())
    total, out = (_turned(phases) for phases in (waves.phase_a + waves.phase_b, waves.phase_out))
    structured = found.structured.numpy()
    columns = {
        "neuron": np.arange(1, len(structured) + 1), "frequency": found.frequency.numpy(),
        "phase a": waves.phase_a.numpy(), "phase b": waves.phase_b.numpy(), "phase out": out.numpy(),
        "structured": structured.astype(int),
    }  # fmt: skip
    n = int(structured.sum())
    r = f"{found.r:.3f}" if n > 1 else "none"
    return [
        Figure(
            "Sum of phases",
            svg(_drawn_phases(total.numpy(), out.numpy(), structured)),
            f"A scatter of the output's phase against the sum of the inputs' phases: {n} of {len(structured)} neurons "
            f"are structured, circular correlation {r}.",
            csv(columns),
            f"Dark: {n:,} of {len(structured):,} neurons with one frequency in all three of their vectors; circular "
            f"correlation {r}. On the diagonal φ_out = φ_a + φ_b (Swaroop 2026, arXiv 2603.23784).",
        )
    ]


def idealised(material: Material) -> list[Figure]:
    """What networks of pure waves score, and the controls."""
    sign_of_sum(material.data)
    columns = idealization_table(material.run)
    del columns["seed"]
    best = columns["square>cos"][0]
    return [
        Figure(
            "Idealised networks",
            table({name.replace(">", " → ").replace("_", " "): own for name, own in columns.items()}),
            f"A table of test accuracies: trained {columns['accuracy'][0]:.3g}, of pure waves with its frequencies and "
            f"phases {best:.3g}, and the same of the untrained network as a control.",
            csv(columns),
            "Test accuracy of the network, and of pure waves with its frequencies and phases. Only “trained, measured” "
            "says what was learned: with the output's phase taken as φ_a + φ_b even an untrained network is right.",
        )
    ]


@torch.no_grad()
def _tables(stages: Sequence[RunResult]) -> tuple[Tensor, Tensor | None]:
    """[E, N, p] of the neurons, and of the embedding [E, d, p], None where it is the neurons'."""
    found = subject(stages)
    data = found.data[0]
    view = View(found.weights, data, {}, lambda split: torch.empty(0), found.module)
    neurons, embedding = (w.detach() for w in tables(view))
    is_own = embedding is not neurons and embedding.data_ptr() != neurons.data_ptr()
    return neurons[:, : data.n_answers].mT, embedding[:, : data.n_answers].mT if is_own else None


def _of_pairs(run: RunResult) -> dict[str, Tensor] | None:
    """w_a, w_b and w_out [N, p] of a PairMLP of one hidden layer, None of another model."""
    try:
        extract_idealized(run)
    except ValueError:
        return None
    module = subject(run).module
    a, b = module.tables()
    return {name: w[0].mT.detach().double() for name, w in zip(("w_a", "w_b", "w_out"), (a, b, module.out.weight))}


def _by_frequency(heights: Tensor) -> Tensor:
    """Of [N, K] the order by dominant frequency, the highest of each first; of more than ROWS the highest."""
    top, at = heights.max(-1)
    kept = top.topk(min(ROWS, len(top))).indices
    keys = at[kept].double() - top[kept].double() / (1 + top.max().double())
    return kept[keys.argsort()]


def _matrix(heights: Tensor, name: str, order: Tensor) -> str:
    ks = range(1, heights.shape[-1] + 1)
    return matrix_csv(heights.numpy(), y=name, x="frequency", ys=[i + 1 for i in order.tolist()], xs=ks)


def _what(run: RunResult) -> str:
    """What a neuron's vector is: see the probe `spectra`."""
    has_layers = any(name.startswith("blocks.") for name in run.weights)
    return "What each neuron writes to the logits." if has_layers else "What each neuron reads of the first operand."


def _some(n: int, of: int, what: str) -> str:
    return f" The strongest {n:,} of {of:,} {what}." if n < of else ""


def _turned(angle: Tensor) -> Tensor:
    """The same angle in (-π, π]."""
    return math.pi - torch.remainder(math.pi - angle, 2 * math.pi)


def _drawn_waves(columns: dict[str, Any], chosen: Sequence[int], names: Sequence[str], frequency: Tensor) -> Any:
    from grokfast.plots.picture import Picture

    figure = Picture(10, 0.6 + 1.6 * len(names) if len(names) > 1 else 2.6)
    grid = figure.subplots(len(names), len(chosen), sharex=True, squeeze=False)
    for column, i in zip(grid.T, chosen):
        column[0].set_title(f"neuron {i + 1}, k = {frequency[i]}", fontsize=11, loc="left")
        turned = int(frequency[i]) * columns["operand"] % len(columns["operand"])
        order = turned.argsort()
        for axes, name in zip(column, names):
            axes.plot(turned[order], columns[f"neuron {i + 1} {name} idealised"][order], color=COLORS[1], lw=1.4)
            axes.plot(turned, columns[f"neuron {i + 1} {name}"], ".", color=COLORS[0], ms=3.5)
            axes.axhline(0, color="0.85", lw=0.8, zorder=0)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=9)
    for axes, name in zip(grid[:, 0], names):
        axes.set_ylabel(name.replace("_", " "), fontsize=11)
    for axes in grid[-1]:
        axes.set_xlabel("k · j mod p", fontsize=10)
    return figure


def _drawn_phases(total: np.ndarray, out: np.ndarray, structured: np.ndarray) -> Any:
    from grokfast.plots.picture import Picture

    figure = Picture(5, 4.8)
    axes = figure.subplots()
    axes.plot([-math.pi, math.pi], [-math.pi, math.pi], color="0.8", lw=1, zorder=1)
    axes.scatter(total[~structured], out[~structured], s=10, color="0.75", label="other neurons", zorder=2)
    axes.scatter(total[structured], out[structured], s=14, color=COLORS[0], label="structured neurons", zorder=3)
    ticks = [-math.pi, -math.pi / 2, 0, math.pi / 2, math.pi]
    for set_ticks in (axes.set_xticks, axes.set_yticks):
        set_ticks(ticks, ["−π", "−π/2", "0", "π/2", "π"])
    axes.set_xlabel("φ_a + φ_b", fontsize=12)
    axes.set_ylabel("φ_out", fontsize=12)
    axes.set_aspect("equal")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=11)
    return figure


CHAPTER = Chapter(
    "waves", "Waves", "Networks that add modulo p keep waves over the operands in their weights: few frequencies, each "
    "with a phase.",
    {
        "periodicity while it trained": recorded, "spectra": spectra, "waves of neurons": sharpest_neurons,
        "sum of phases": sums_of_phases, "idealised networks": idealised,
    },
)  # fmt: skip
