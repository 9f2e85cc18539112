"""How periodic the weights of a model of modular arithmetic are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from grokfast import checks, parts
from grokfast.measures.spectra import gini, spectrum
from grokfast.probes.base import Probe, View
from grokfast.tasks.data import Data


@parts.register("spectra")
@dataclass(frozen=True, kw_only=True)
class Spectra(Probe):
    """Spectra over the operands, or the answers, 0..p-1, of a PairMLP, TokenMLP or transformer.

    periodic_neurons: share of the neurons whose periodicity, max_k |ŵ_k| / mean_k |ŵ_k|, is at least `threshold`, which
    is more than noise has. participation: mean of their inverse participation ratios. embedding_gini: Gini coefficient
    of the embedding's norm at each frequency. See grokfast.measures.spectra.

    A neuron's w is what it reads of the first token, in an MLP's first layer, which is its embedding where it has none;
    in a transformer's last what it writes to the logits, W_U W_out (Nanda et al. 2023, arXiv 2301.05217).
    """

    threshold: float = 4.0

    def __post_init__(self) -> None:
        checks.Fields(self).real("threshold", minimum=0)

    def columns(self, data: Data) -> Sequence[str]:
        if data.is_real or data.n_answers < 3 or data.n_tokens < data.n_answers:
            raise ValueError(
                "probe spectra is of tasks whose answers are tokens 0..p-1, p at least 3, got "
                f"{data.n_tokens} tokens and {data.n_answers} answers"
            )
        return ["periodic_neurons", "participation", "embedding_gini"]

    def measure(self, view: View, out: Tensor) -> None:
        p, (of_neurons, of_embedding) = view.data.n_answers, tables(view)
        heights = spectrum(of_neurons[:, :p].mT)  # [E, N, (p-1)/2]
        powers = heights.square()
        out[:, 0] = (heights.amax(-1) >= self.threshold * heights.mean(-1)).to(out.dtype).mean(-1)
        out[:, 1] = (powers.square().sum(-1) / powers.sum(-1).square()).mean(-1)
        if of_embedding is not of_neurons:
            powers = spectrum(of_embedding[:, :p].mT).square()
        out[:, 2] = gini(powers.sum(-2).sqrt())


def tables(view: View) -> tuple[Tensor, Tensor]:
    """What neurons read of, or write to, each token [E, >= p, N], and the embedding [E, >= p, d]."""
    weights: Any = view.weights
    if hasattr(view.module, "tables"):
        first = view.module.tables()[0]
        return first, weights.get("embed_a", weights.get("embed.0", first))
    last = [name for name in weights if name.startswith("blocks.") and name.endswith(".w_out")]
    if not last or "embedding" not in weights:
        raise ValueError(f"probe spectra is of a PairMLP, TokenMLP or transformer, got {type(view.module).__name__}")
    return weights.get("unembedding", weights["embedding"]) @ weights[last[-1]], weights["embedding"]
