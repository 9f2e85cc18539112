"""Idealised pair networks, made from nothing or of a trained one's frequencies and phases, and what they score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from grokfast import checks
from grokfast.measures.idealized import OUTPUT_PHASES, Waves, idealized_weights, measured_waves
from grokfast.models.pair_mlp.model import PairMLP, PairMLPConfig
from grokfast.seeds import generator
from grokfast.tasks.data import Data, Split, Task

Wave = Literal["cos", "square"]
PAIRS_OF_WAVES: tuple[tuple[Wave, Wave], ...] = (("cos", "cos"), ("square", "cos"), ("square", "square"))
PIECE = 4096  # rows evaluated at a time


def idealized_pair_mlp(
    p: int = 97,
    width: int = 256,
    input_wave: Wave = "square",
    output_wave: Wave = "cos",
    activation: str = "relu",
    seed: int | Sequence[int] = 0,
) -> PairMLP:
    """A network that adds mod p, written down, not trained (Swaroop 2026, arXiv 2603.23784): a PairMLP without biases.

    w_a[j] = f(2πνj/p - φ_a), w_b likewise, out[j] = g(2πνj/p - φ_a - φ_b); neuron i has ν = i mod (p-1)/2 + 1, and φ_a
    and φ_b uniform in [0, 2π). f, g by name: "cos" or "square", sign∘cos. With activation "square", cos and cos it is
    Gromov's analytic solution (2023, arXiv 2301.02679).

    p: odd, at least 3. seed: of the phases; several make an ensemble [E, ...] of networks.
    At p = 97, 256 units and a relu the mean accuracy over all pairs is .977 for cos → cos, .984 for square → cos, .938
    for square → square (40 seeds). Raises TypeError or ValueError naming the argument.
    """
    checks.integer("p", p, minimum=3)
    if p % 2 == 0:
        raise ValueError(f"p must be odd, got {p}")
    config = PairMLPConfig(width=width, activation=activation, bias=False)  # type: ignore[arg-type]
    seeds = tuple(seed) if isinstance(seed, Sequence) and not isinstance(seed, str) else (seed,)
    model = PairMLP(config, n_tokens=p, n_answers=p, seeds=seeds)
    draws = [torch.rand(2, width, dtype=torch.float64, generator=generator(own, "idealized")) for own in model.seeds]
    a, b = (2 * math.pi * torch.stack(draws)).to(model.w_a.device).unbind(1)  # [E, N]
    frequency = (torch.arange(width, device=a.device) % ((p - 1) // 2) + 1).expand_as(a)
    weights = idealized_weights(Waves(frequency, a, b, a + b), p, input_wave=input_wave, output_wave=output_wave)
    return _filled(model, *weights)


def extract_idealized(
    model: Any,
    input_wave: Wave = "square",
    output_wave: Wave = "cos",
    output_phase: Literal["measured", "sum"] = "measured",
    *,
    activation: str = "relu",
) -> PairMLP:
    """A trained network with its weights replaced by pure waves of its own frequencies and phases: a PairMLP without
    biases, of unit amplitude, that computes with the activation of the network (Swaroop 2026, arXiv 2603.23784).

    ν of a neuron is the dominant frequency of what it reads of a; φ_a, φ_b and φ_out are each measured at ν.
    output_phase: "sum" has φ_out = φ_a + φ_b instead. That is a control: it makes *any* weights right, .98 at p = 97
    and 256 units even of an untrained network, and says nothing of this one. Measured phases score below .01 there.

    model: a run, several, or `RunResult.at(step)`; a PairMLP of one hidden layer; or its tables (w_a, w_b, w_out), each
    [p, N] or [E, p, N], which do not say the `activation`. Raises TypeError or ValueError naming the argument, and for
    another model, or one whose answers are not as many as its operands.
    """
    w_a, w_b, w_out, seeds, activation = _neurons(model, activation)
    waves = measured_waves(w_a.double(), w_b.double(), w_out.double(), output_phase=output_phase)
    p = w_a.shape[-1]
    config = PairMLPConfig(width=w_a.shape[-2], activation=activation, bias=False)  # type: ignore[arg-type]
    made = PairMLP(config, n_tokens=p, n_answers=p, seeds=seeds, dtype=w_a.dtype).to(w_a.device)
    return _filled(made, *idealized_weights(waves, p, input_wave=input_wave, output_wave=output_wave))


def idealization_table(model: Any, task: Task | Data | None = None, *, split: str = "test") -> dict[str, list[Any]]:
    """Accuracies on a split of networks, of what is extracted from them, and of the controls, as columns.

    For each of the E models four rows: its network "trained" and "untrained", as its seed starts it; each with
    output_phase "measured" and "sum". Columns: seed, network, output_phase, accuracy (the network's own), and of the
    extractions "cos>cos", "square>cos", "square>square". Only "trained", "measured" says something of what was
    learned, and only beside "untrained", "measured": with "sum" the untrained network scores as well as any.

    model: a run or several, or a live PairMLP with its task; see `extract_idealized`.
    Raises TypeError or ValueError naming the argument.
    """
    from grokfast.analysis.subject import subject

    found = subject(model, task)
    trained = _checked(found.module)
    for data in found.data:
        checks.choice("split", split, data.splits)
    splits = [data.splits[split] for data in found.data]
    untrained = PairMLP(
        trained.config, n_tokens=trained.n_tokens, n_answers=trained.out.weight.shape[1], seeds=trained.seeds,
        dtype=trained.out.weight.dtype,
    ).to(trained.out.weight.device)  # fmt: skip
    rows = []
    for network, module in (("trained", trained), ("untrained", untrained)):
        own = _accuracies(module, splits)
        for output_phase in OUTPUT_PHASES:
            extracted = {
                f"{f}>{g}": _accuracies(extract_idealized(module, f, g, output_phase), splits)  # type: ignore[arg-type]
                for f, g in PAIRS_OF_WAVES
            }
            for e, seed in enumerate(module.seeds):
                scores = {name: values[e] for name, values in extracted.items()}
                rows.append(
                    {"seed": seed, "network": network, "output_phase": output_phase, "accuracy": own[e], **scores}
                )
    return {name: [row[name] for row in rows] for name in rows[0]}


def _neurons(model: Any, activation: str) -> tuple[Tensor, Tensor, Tensor, tuple[int, ...], str]:
    """w_a, w_b, w_out [E, N, p], seeds and activation."""
    if isinstance(model, tuple) and len(model) == 3 and all(isinstance(w, Tensor) for w in model):
        w_a, w_b, w_out = (w.detach()[None] if w.ndim == 2 else w.detach() for w in model)
        seeds = tuple(range(len(w_a)))
    else:
        if not isinstance(model, PairMLP):
            from grokfast.analysis.subject import subject

            model = subject(model).module
        module = _checked(model)
        with torch.no_grad():
            w_a, w_b = (w.detach() for w in module.tables())
        w_out, seeds, activation = module.out.weight.detach(), module.seeds, module.config.activation
    if w_a.ndim != 3 or not w_a.shape == w_b.shape == w_out.shape:
        raise ValueError(
            "model must have tables w_a, w_b and w_out of one shape, [E, p, N]: as many answers as operands, got "
            f"{list(w_a.shape)}, {list(w_b.shape)} and {list(w_out.shape)}"
        )
    return w_a.mT, w_b.mT, w_out.mT, seeds, activation


def _checked(module: Any) -> PairMLP:
    if not isinstance(module, PairMLP) or module.config.depth != 1:
        got = f"depth {module.config.depth}" if isinstance(module, PairMLP) else type(module).__name__
        raise ValueError(f"model must be a PairMLP of one hidden layer, got {got}")
    return module


def _filled(model: PairMLP, w_a: Tensor, w_b: Tensor, w_out: Tensor) -> PairMLP:
    """The model with these weights [E, N, p]."""
    with torch.no_grad():
        for to, w in ((model.w_a, w_a.mT), (model.w_b, w_b.mT), (model.out.weight, w_out.mT)):
            to.copy_(w)
    return model.eval()


@torch.no_grad()
def _accuracies(module: PairMLP, splits: Sequence[Split]) -> list[float]:
    """Of each model the share of its own split's rows whose answer is right."""
    device = module.out.weight.device
    inputs = pad_sequence([split.inputs for split in splits], batch_first=True).to(device)  # [E, N, 2]
    targets = pad_sequence([split.targets for split in splits], batch_first=True, padding_value=-1).to(device)
    right = torch.zeros(module.n_models, dtype=torch.int64, device=device)
    for pairs, answers in zip(inputs.split(PIECE, 1), targets.split(PIECE, 1)):
        right += (module(pairs).argmax(-1) == answers).sum(-1)
    return [count / len(split) for count, split in zip(right.tolist(), splits)]
