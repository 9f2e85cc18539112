"""Random ReLU features of the digits, on which a linear model is learned."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch

from grokfast import checks, parts
from grokfast.seeds import MAX_SEED, generator
from grokfast.tasks.data import Data, Split
from grokfast.tasks.digits import DigitsTask

MAX_WIDTH = 1 << 16


@parts.register("random_features")
@dataclass(frozen=True, kw_only=True)
class RandomFeaturesTask(DigitsTask):
    """relu(W (x - mean) + b) / √width of scikit-learn's digits x [N, 64] as features [N, width], and their digits.

    W is N(0, 1)/8 and b is 0.1 · N(0, 1), never learned; the mean is that of the training images. The test error of the
    least squares solution of smallest norm falls with the width, rises towards width = n_train and falls again
    (Belkin et al. 2019, arXiv 1812.11118): an MLP of depth 0, from small weights, with MSE.

    Args:
        width: how many features, 1 to 65,536.
        feature_seed: draws W and b; None: the experiment's seed.
        n_train, n_test, split_seed, label_noise, noise_seed, targets: see DigitsTask.

    Raises as DigitsTask does.
    """

    varies: ClassVar[frozenset[str]] = DigitsTask.varies | {"feature_seed"}

    n_train: int = 300
    label_noise: float = 0.1
    width: int = 1200
    feature_seed: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        fields = checks.Fields(self)
        fields.integer("width", minimum=1, maximum=MAX_WIDTH)
        fields.integer("feature_seed", minimum=0, maximum=MAX_SEED, optional=True)

    def build(self, *, seed: int = 0) -> Data:
        data = super().build(seed=seed)
        draws = generator(seed if self.feature_seed is None else self.feature_seed, "features")
        weight = torch.randn(self.width, data.seq_len, generator=draws, dtype=torch.float64) / 8
        bias = 0.1 * torch.randn(self.width, generator=draws, dtype=torch.float64)
        mean = data.train.inputs.double().mean(0)

        def of(x: torch.Tensor) -> torch.Tensor:
            return (((x.double() - mean) @ weight.T + bias).relu() / self.width**0.5).float()

        splits = {name: Split(of(split.inputs), split.targets) for name, split in data.splits.items()}
        return dataclasses.replace(data, splits=splits)
