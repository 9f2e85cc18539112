"""scikit-learn's bundled 8×8 images of handwritten digits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch

from grokfast import checks, parts
from grokfast.seeds import MAX_SEED, generator
from grokfast.tasks.data import Data, Split, Task
from grokfast.tasks.split import corrupt_labels

Targets = Literal["class", "real"]
N_IMAGES = 1797


@parts.register("digits")
@dataclass(frozen=True, kw_only=True)
class DigitsTask(Task):
    """1,797 images as features [N, 64], pixels in 0..1, and their digits. Needs scikit-learn (the extra `data`).

    Args:
        n_train: images for training, drawn at random.
        n_test: others for testing; both together at most 1,797.
        split_seed: chooses them; None: the experiment's seed.
        label_noise: share of training labels replaced by a wrong digit, in [0, 1].
        noise_seed: chooses these and their digits; None: the experiment's seed.
        targets: "class", or "real": the digit as a number, see `with_targets`.

    With large initial weights generalising comes late, as Liu et al. (2022, arXiv 2210.01117) have it for MNIST.
    Raises TypeError or ValueError where an argument has the wrong type or is out of range, ImportError when it is built
    without scikit-learn.
    """

    varies: ClassVar[frozenset[str]] = frozenset({"n_train", "split_seed", "label_noise", "noise_seed"})

    n_train: int = 200
    n_test: int = 797
    split_seed: int | None = None
    label_noise: float = 0.0
    noise_seed: int | None = None
    targets: Literal["class", "real"] = parts.added("class")

    def __post_init__(self) -> None:
        fields = checks.Fields(self)
        fields.integer("n_train", "n_test", minimum=1, maximum=N_IMAGES)
        if self.n_train + self.n_test > N_IMAGES:
            raise ValueError(
                f"n_train and n_test must be at most {N_IMAGES:,} together, got {self.n_train + self.n_test:,}"
            )
        fields.integer("split_seed", "noise_seed", minimum=0, maximum=MAX_SEED, optional=True)
        fields.real("label_noise", minimum=0, maximum=1)
        fields.choice(targets=get_args(Targets))

    def n_rows(self) -> int:
        return self.n_train

    def missing(self) -> str:
        try:
            import sklearn.datasets  # noqa: F401
        except ImportError:
            return "scikit-learn: pip install 'grokfast[data]'"
        return ""

    def build(self, *, seed: int = 0) -> Data:
        if missing := self.missing():
            raise ImportError(f"the task {parts.name_of(self)} needs {missing}")
        from sklearn.datasets import load_digits

        found = load_digits()
        images, digits = torch.from_numpy(found.data).float() / 16, torch.from_numpy(found.target).long()
        own = seed if self.split_seed is None else self.split_seed
        order = torch.randperm(N_IMAGES, generator=generator(own, "split"))
        train, test = order[: self.n_train], order[self.n_train : self.n_train + self.n_test]
        noise = generator(seed if self.noise_seed is None else self.noise_seed, "label_noise")
        splits = {"train": Split(images[train], digits[train]), "test": Split(images[test], digits[test])}
        return with_targets(splits, 10, self.targets, self.label_noise, noise)


def with_targets(
    splits: dict[str, Split], n_classes: int, targets: Targets, share: float, noise: torch.Generator
) -> Data:
    """Splits of features and classes as Data, a share of the training labels wrong.

    "real" makes of class y the number (y - (C - 1)/2) / sqrt((C² - 1)/12), targets [N, 1]: of C classes that are all as
    frequent, mean 0 and variance 1.
    """
    train = splits["train"]
    labels, corrupted = corrupt_labels(train.targets, share, n_classes, noise)
    splits = {**splits, "train": Split(train.inputs, labels)}
    if targets == "class":
        return Data(splits=splits, n_tokens=0, n_answers=n_classes, corrupted=corrupted)
    middle, deviation = (n_classes - 1) / 2, ((n_classes**2 - 1) / 12) ** 0.5
    real = {
        name: Split(own.inputs, (own.targets[:, None].float() - middle) / deviation) for name, own in splits.items()
    }
    return Data(splits=real, n_tokens=0, n_answers=1, corrupted=corrupted)
