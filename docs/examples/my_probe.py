"""A probe: how sure the model is of its answers. grokfast run quick --probes my_probe:Confidence"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from grokfast.probes import Probe, View
from grokfast.tasks import Data


@dataclass(frozen=True)
class Confidence(Probe):
    """The mean probability of the answer that the model gives, on each split."""

    def columns(self, data: Data) -> Sequence[str]:
        return [f"{split}_confidence" for split in data.splits]

    def measure(self, view: View, out: Tensor) -> None:
        for i, split in enumerate(view.data.splits):
            out[:, i] = view.logits(split).softmax(-1).amax(-1).mean(-1)  # [E, N, C] -> [E]
