"""Linear regression on features of two scales, whose test error falls, rises and falls again with the steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from grokfast import checks, parts
from grokfast.seeds import MAX_SEED, generator
from grokfast.tasks.data import Data, Split, Task

MAX_FEATURES, MAX_ROWS = 1 << 14, 1 << 20


@parts.register("two_scale")
@dataclass(frozen=True, kw_only=True)
class TwoScaleTask(Task):
    """y = β · x + noise: features [N, n_large + n_small] from N(0, 1), the last n_small of them times small_scale, and
    real targets [N, 1].

    β is N(0, 1)/√n_large, and coefficient · N(0, 1)/√n_small for the small features. Small features are learned
    1/small_scale² times slower; where noise was fitted through the large ones before that, the test error has a peak at
    some step (epoch-wise double descent: Heckel and Yilmaz 2021, arXiv 2007.10099). Test targets have no noise: the
    test MSE estimates the excess risk.

    Args:
        n_train, n_test: rows, each drawn by itself.
        n_large, n_small: features of scale 1, and of scale small_scale.
        small_scale: above 0.
        coefficient: of the small features; how much they matter is (coefficient · small_scale)² against 1.
        noise: standard deviation of the training targets' noise.
        split_seed: draws β and all features; None: the experiment's seed.
        noise_seed: draws the noise; None: the experiment's seed.

    It is learned by an MLP of depth 0 from small weights (`init_scale`) without momentum or weight decay.
    Raises TypeError or ValueError where an argument has the wrong type or is out of range.
    """

    varies: ClassVar[frozenset[str]] = frozenset({"n_train", "noise", "split_seed", "noise_seed"})

    n_train: int = 300
    n_test: int = 1000
    n_large: int = 200
    n_small: int = 20
    small_scale: float = 0.1
    coefficient: float = 15.0
    noise: float = 0.5
    split_seed: int | None = None
    noise_seed: int | None = None

    def __post_init__(self) -> None:
        fields = checks.Fields(self)
        fields.integer("n_train", "n_test", minimum=1, maximum=MAX_ROWS)
        fields.integer("n_large", "n_small", minimum=1, maximum=MAX_FEATURES)
        fields.real("small_scale", minimum=0, maximum=1e6, open_minimum=True)
        fields.real("coefficient", "noise", minimum=0, maximum=1e6)
        fields.integer("split_seed", "noise_seed", minimum=0, maximum=MAX_SEED, optional=True)

    def n_rows(self) -> int:
        return self.n_train

    def build(self, *, seed: int = 0) -> Data:
        checks.integer("seed", seed, minimum=0, maximum=MAX_SEED)
        own = seed if self.split_seed is None else self.split_seed
        noise = generator(seed if self.noise_seed is None else self.noise_seed, "noise")
        sizes = torch.tensor([self.n_large, self.n_small])

        def per_feature(large: float, small: float) -> torch.Tensor:
            return torch.tensor([large, small], dtype=torch.float64).repeat_interleave(sizes)

        scales = per_feature(1, self.small_scale)
        spread = per_feature(self.n_large**-0.5, self.coefficient * self.n_small**-0.5)
        beta = _normal(len(scales), 1, draws=generator(own, "coefficients")) * spread[:, None]
        splits = {}
        for name, rows, purpose in (("train", self.n_train, "split"), ("test", self.n_test, "test")):
            x = _normal(rows, len(scales), draws=generator(own, purpose)) * scales
            y = x @ beta
            if name == "train":
                y += self.noise * _normal(rows, 1, draws=noise)
            splits[name] = Split(x.float(), y.float())
        return Data(splits=splits, n_tokens=0, n_answers=1)


def _normal(*shape: int, draws: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=draws, dtype=torch.float64)
