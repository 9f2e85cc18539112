"""`Table`: an operation on two operands as all pairs and their answers, and how these are split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from grokfast import checks
from grokfast.seeds import MAX_SEED, generator
from grokfast.tasks.data import Data, Split, Task
from grokfast.tasks.split import corrupt_labels, stratified_split, train_size, train_test_split

Layout = Literal["pair", "equals", "operator"]
LAYOUTS: tuple[str, ...] = get_args(Layout)


@dataclass(frozen=True, kw_only=True)
class Table(Task):
    """Base of the tasks that are an operation's table: all pairs of operands, in order, with one answer each.

    Args:
        train_fraction: share of the pairs shown in training, in (0, 1).
        split_seed: chooses the training pairs; None: the experiment's seed.
        stratified: split the pairs of each answer separately.
        label_noise: share of training labels replaced by a wrong answer, in [0, 1].
        noise_seed: chooses these labels and their answers; None: the experiment's seed.
        layout: "pair" is a b (T = 2), "equals" is a b = (T = 3), "operator" is a ∘ b = (T = 4).
    """

    varies: ClassVar[frozenset[str]] = frozenset({"train_fraction", "split_seed", "noise_seed", "label_noise"})

    train_fraction: float = 0.5
    split_seed: int | None = None
    stratified: bool = False
    label_noise: float = 0.0
    noise_seed: int | None = None
    layout: Layout = "pair"

    def check_table(self) -> None:
        """For a kind's `__post_init__`, once `n_pairs` can be asked."""
        fields = checks.Fields(self)
        fields.choice(layout=LAYOUTS)
        fields.real("train_fraction", minimum=0, maximum=1, open_minimum=True, open_maximum=True)
        fields.integer("split_seed", "noise_seed", minimum=0, maximum=MAX_SEED, optional=True)
        fields.real("label_noise", minimum=0, maximum=1)
        fields.boolean("stratified")
        train_size(self.n_pairs, self.train_fraction)

    @property
    def n_symbols(self) -> int:
        """Operands are below it, and so are answers."""
        raise NotImplementedError

    @property
    def n_pairs(self) -> int:
        """How many pairs (a, b) there are, training and test together."""
        return self.n_symbols**2

    def table(self) -> tuple[Tensor, Tensor]:
        """All pairs [n_pairs, 2] in (a, b) order, and their answers [n_pairs]."""
        raise NotImplementedError

    @property
    def seq_len(self) -> int:
        return 2 + LAYOUTS.index(self.layout)

    def n_rows(self) -> int:
        return train_size(self.n_pairs, self.train_fraction)

    def build(self, *, seed: int = 0) -> Data:
        """Split the table, corrupt the training labels, lay out the tokens.

        Token ids: operands 0..n-1, "=" is n, the operator n + 1; n_tokens counts only what the layout uses.
        floor(train_fraction · n_pairs) pairs are for training (3,830 of 12,769 at p = 113, 30%); training and test rows
        are each in (a, b) order. The split depends only on the split seed, the noise on the noise seed and the training
        set. Raises TypeError or ValueError where seed is not in 0 to 2^63 - 1.
        """
        checks.integer("seed", seed, minimum=0, maximum=MAX_SEED)
        split_seed = seed if self.split_seed is None else self.split_seed
        noise_seed = seed if self.noise_seed is None else self.noise_seed
        pairs, targets = self.table()
        split = stratified_split if self.stratified else train_test_split
        train, test = split(targets, self.train_fraction, generator(split_seed, "split"))
        train_targets, corrupted = corrupt_labels(
            targets[train], self.label_noise, self.n_symbols, generator(noise_seed, "label_noise")
        )
        return Data(
            splits={
                "train": Split(self._tokens(pairs[train]), train_targets),
                "test": Split(self._tokens(pairs[test]), targets[test]),
            },
            n_tokens=self.n_symbols + LAYOUTS.index(self.layout),
            n_answers=self.n_symbols,
            corrupted=corrupted,
        )

    def _tokens(self, pairs: Tensor) -> Tensor:
        """Pairs [n, 2] laid out as token ids [n, T]."""
        a, b = pairs.unbind(1)
        equals, operator = torch.full_like(a, self.n_symbols), torch.full_like(a, self.n_symbols + 1)
        columns = {"pair": [a, b], "equals": [a, b, equals], "operator": [a, operator, b, equals]}
        return torch.stack(columns[self.layout], dim=1)
