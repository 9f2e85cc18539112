"""A task: is the sum of three below a threshold? grokfast run quick --task my_task:Below --model my_model:Net."""

from dataclasses import dataclass

import torch

from grokfast.seeds import generator
from grokfast.tasks import Data, Split, Task


@dataclass(frozen=True, kw_only=True)
class Below(Task):
    """a + b + c < threshold, for a, b and c below n; a third of the triples for training, chosen by the seed."""

    n: int = 12
    threshold: int = 16
    varies = frozenset({"threshold"})

    def build(self, *, seed: int = 0) -> Data:
        numbers = torch.arange(self.n)
        inputs = torch.cartesian_prod(numbers, numbers, numbers)  # [n³, 3]
        targets = (inputs.sum(1) < self.threshold).long()  # [n³]
        order = torch.randperm(len(inputs), generator=generator(seed, "split"))
        train, test = order.tensor_split([len(inputs) // 3])
        splits = {"train": Split(inputs[train], targets[train]), "test": Split(inputs[test], targets[test])}
        return Data(splits=splits, n_tokens=self.n, n_answers=2)
