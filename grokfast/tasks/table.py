"""`Table`: operations as all their operands and answers, and how these are split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from grokfast import checks, parts
from grokfast.seeds import MAX_SEED, generator
from grokfast.tasks.augment import AUGMENTS, augmented, check_answers
from grokfast.tasks.data import Data, Labels, Split, Task
from grokfast.tasks.split import corrupt_labels, stratified_split, train_size, train_test_split

Layout = Literal["pair", "equals", "operator"]
LAYOUTS: tuple[str, ...] = get_args(Layout)


@dataclass(frozen=True, kw_only=True)
class Table(Task):
    """Base of the tasks that are an operation's table: all pairs of operands, in order, with one answer each; or those
    of several operations, one after the other.

    Args:
        train_fraction: share of the pairs shown in training, in (0, 1); of each operation's.
        split_seed: chooses the training pairs; None: the experiment's seed.
        stratified: split the pairs of each answer separately.
        label_noise: share of training labels replaced by a wrong answer, in [0, 1].
        noise_seed: chooses these labels and their answers; None: the experiment's seed.
        layout: "pair" is a b (T = 2), "equals" is a b = (T = 3), "operator" is a ∘ b = (T = 4).
        augment: what the training pairs make is trained on, too, and taken out of the test set: "swap" makes b a of
            a b, with the same answer; "negate" makes -a -b, with the negative answer (of a group: inverses);
            "swap+negate" both. Pairs that the table leaves out are not made.
    """

    varies: ClassVar[frozenset[str]] = frozenset(
        {"train_fraction", "split_seed", "noise_seed", "label_noise", "augment"}
    )

    train_fraction: float = 0.5
    split_seed: int | None = None
    stratified: bool = False
    label_noise: float = 0.0
    noise_seed: int | None = None
    layout: Layout = "pair"
    augment: Literal["none", "swap", "negate", "swap+negate"] = parts.added("none")

    def check_table(self) -> None:
        """For a kind's `__post_init__`, once `sizes` and `tables` can be asked."""
        fields = checks.Fields(self)
        fields.choice(layout=LAYOUTS, augment=AUGMENTS)
        fields.real("train_fraction", minimum=0, maximum=1, open_minimum=True, open_maximum=True)
        fields.integer("split_seed", "noise_seed", minimum=0, maximum=MAX_SEED, optional=True)
        fields.real("label_noise", minimum=0, maximum=1)
        fields.boolean("stratified")
        for n in self.sizes().values():
            train_size(n, self.train_fraction)
        if self.augment != "none":
            for name, (operands, answers) in self.tables().items():
                check_answers(name, operands, answers, self.augment, self._images())

    @property
    def n_symbols(self) -> int:
        """Operands are below it."""
        raise NotImplementedError

    @property
    def n_answers(self) -> int:
        """Answers are below it."""
        return self.n_symbols

    @property
    def arity(self) -> int:
        """k, how many operands an operation takes."""
        return 2

    def sizes(self) -> Mapping[str, int]:
        """Of each operation, in order, how many rows it has, training and test together."""
        raise NotImplementedError

    def tables(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Of each operation all operands [n, k], ascending, and their answers [n]."""
        raise NotImplementedError

    def negatives(self) -> Tensor:
        """[n_symbols], -a of each symbol a."""
        raise NotImplementedError

    def difficulty(self, operation: str, operands: Tensor, answers: Tensor) -> Tensor | None:
        """[n], how difficult rows are, where there is a measure of it."""
        return None

    @property
    def n_pairs(self) -> int:
        """Rows of all operations, training and test together."""
        return sum(self.sizes().values())

    @property
    def seq_len(self) -> int:
        return {"pair": self.arity, "equals": self.arity + 1, "operator": 2 * self.arity}[self.layout]

    def inputs(self) -> Tensor:
        """Token ids [n_pairs, T] of all rows, in the order of `tables`."""
        operands = [operands for operands, _ in self.tables().values()]
        return torch.cat([self._tokens(own, self.n_symbols + 1 + at) for at, own in enumerate(operands)])

    def n_rows(self) -> int:
        if self.augment != "none":
            return 0
        return sum(train_size(n, self.train_fraction) for n in self.sizes().values())

    def build(self, *, seed: int = 0) -> Data:
        """Split the table, corrupt the training labels, augment, lay out the tokens.

        Token ids: operands 0..n-1, "=" is n, the operators n + 1, ...; n_tokens counts only what the layout uses.
        floor(train_fraction · n_pairs) pairs are for training (3,830 of 12,769 at p = 113, 30%); training and test rows
        are each in (a, b) order. The split depends only on the split seed, the noise on the noise seed and the training
        set. Rows that augmentation makes have the label of what they are made of, wrong where it is.

        Several operations are split one by one: an operation's split is the same in any company that it is in at this
        place. "test" has all of them, "test_<operation>" each alone.

        Raises TypeError or ValueError where seed is not in 0 to 2^63 - 1, and ValueError where augmentation leaves no
        row for the test.
        """
        checks.integer("seed", seed, minimum=0, maximum=MAX_SEED)
        found = [
            self._split(at, name, operands, answers, seed)
            for at, (name, (operands, answers)) in enumerate(self.tables().items())
        ]
        splits = {"train": _joined([one.train for one in found]), "test": _joined([one.test for one in found])}
        if len(found) > 1:
            splits |= {f"test_{name}": one.test for name, one in zip(self.sizes(), found)}
        difficulty = [one.difficulty for one in found if one.difficulty is not None]
        return Data(
            splits=splits,
            n_tokens=self.n_symbols + {"pair": 0, "equals": 1, "operator": 1 + len(found)}[self.layout],
            n_answers=self.n_answers,
            corrupted=torch.cat([one.corrupted for one in found]),
            made=None if self.augment == "none" else torch.cat([one.made for one in found]),
            coverage=None if self.augment == "none" else len(splits["train"]) / self.n_pairs,
            difficulty=torch.cat(difficulty) if len(difficulty) == len(found) else None,
        )

    def labels(self, *, seed: int = 0) -> Labels:
        operators = ["∘"] if len(self.sizes()) == 1 else self.sizes()
        return Labels({self.n_symbols: "=", **dict(enumerate(operators, self.n_symbols + 1))})

    def _split(self, at: int, name: str, operands: Tensor, answers: Tensor, seed: int) -> _Parts:
        """An operation's table, the `at`-th of those in the data set."""
        number = [at] if at else []
        split_seed = seed if self.split_seed is None else self.split_seed
        noise_seed = seed if self.noise_seed is None else self.noise_seed
        split = stratified_split if self.stratified else train_test_split
        train, test = split(answers, self.train_fraction, generator(split_seed, "split", *number))
        labels, corrupted = corrupt_labels(
            answers[train], self.label_noise, self.n_answers, generator(noise_seed, "label_noise", *number)
        )
        is_made = torch.zeros(len(train), dtype=torch.bool)
        if self.augment != "none":
            images = self._images()
            made = augmented(train, operands, self.augment, images)
            from_train = torch.searchsorted(train, made.sources)
            labels, corrupted = labels[from_train], corrupted[from_train]
            labels = torch.where(made.is_negated, images[labels], labels)
            is_made = made.rows != made.sources
            train, is_left = made.rows, torch.ones(len(answers), dtype=torch.bool)
            is_left[train] = False
            if not len(test := is_left.nonzero()[:, 0]):
                raise ValueError(
                    f"train_fraction must leave a test row, got {self.train_fraction}: with augment {self.augment!r} "
                    f"the training set covers all {len(answers):,} pairs"
                )
        tokens = self._tokens(operands, self.n_symbols + 1 + at)
        return _Parts(
            Split(tokens[train], labels), Split(tokens[test], answers[test]), corrupted, is_made,
            self.difficulty(name, operands[train], answers[train]),
        )  # fmt: skip

    def _images(self) -> Tensor:
        """[n_symbols], what augmentation makes of each symbol."""
        return self.negatives() if "negate" in self.augment else torch.arange(self.n_symbols)

    def _tokens(self, operands: Tensor, operator: int) -> Tensor:
        """Operands [n, k] laid out as token ids [n, T]."""
        columns = list(operands.unbind(1))
        if self.layout == "operator":
            columns = [own for a in columns for own in (a, torch.full_like(a, operator))][:-1]
        if self.layout != "pair":
            columns.append(torch.full_like(columns[0], self.n_symbols))
        return torch.stack(columns, dim=1)


class _Parts(NamedTuple):
    """An operation's rows. corrupted, made, difficulty: of the training rows."""

    train: Split
    test: Split
    corrupted: Tensor
    made: Tensor
    difficulty: Tensor | None


def _joined(splits: list[Split]) -> Split:
    return Split(torch.cat([one.inputs for one in splits]), torch.cat([one.targets for one in splits]))
