"""Facts and what follows from two of them: reasoning that generalises late (Wang et al. 2024, arXiv 2405.15071)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from grokfast import checks, parts
from grokfast.seeds import MAX_SEED, generator
from grokfast.tasks.data import Data, Labels, Split, Task
from grokfast.tasks.split import exact

Reasoning = Literal["composition", "comparison"]
MAX_ENTITIES, MAX_INFERRED = 1 << 16, 1 << 25
LESS, EQUAL, GREATER = range(3)


@parts.register("multihop")
@dataclass(frozen=True, kw_only=True)
class MultihopTask(Task):
    """Atomic facts, all of them trained, and facts that are inferred from two of them, of which some are.

    "composition": atomic (h, r) -> t, inferred (h, r1, r2) -> t2 where (h, r1) -> b and (b, r2) -> t2. "comparison":
    atomic (e, attribute) -> value, inferred (attribute, e1, e2) -> whether e1's value is less, equal or greater.

    A share of the atomic facts is out of distribution: nothing that follows from them is trained. Splits: "train", all
    atomic and the chosen inferred facts; "atomic" and "inferred", its two parts; "test", inferred of two facts in
    distribution; "test_ood", of two out of it. (What follows from one of each is in none.)

    Rows are three tokens, h r1 r2, or e attribute and a filler, with targets [N, 2]: an atomic fact is asked after its
    second token, an inferred one after its third. Entities are tokens 0..n_entities-1, then come relations (or
    attributes), then the filler. Answers are entities; or values, then less, equal, greater.

    Published: composition is learned in distribution long after the training set is, the sooner the larger φ, and not
    at all out of distribution; comparison generalises to both.

    Args:
        operation: "composition" or "comparison".
        n_entities, n_relations: how many; of a comparison its attributes.
        out_degree: relations that an entity has, drawn at random; None: all. Of a comparison all attributes.
        n_values: of an attribute, in a comparison.
        ood_fraction: share of the atomic facts that is out of distribution, in (0, 1).
        phi: inferred facts that are trained for each atomic one in distribution.
        n_test: rows of each test split at most.
        split_seed: draws the facts and what is trained; None: the experiment's seed.

    Raises TypeError or ValueError where an argument has the wrong type or is out of range; ValueError where it is built
    and there are not so many inferred facts, or none is left to test.
    """

    varies: ClassVar[frozenset[str]] = frozenset({"phi", "split_seed"})

    operation: Reasoning = "composition"
    n_entities: int = 64
    n_relations: int = 16
    out_degree: int | None = None
    n_values: int = 20
    ood_fraction: float = 0.2
    phi: float = 9.0
    n_test: int = 5000
    split_seed: int | None = None

    def __post_init__(self) -> None:
        fields = checks.Fields(self)
        fields.choice(operation=get_args(Reasoning))
        fields.integer("n_entities", minimum=2, maximum=MAX_ENTITIES)
        fields.integer("n_relations", "n_values", minimum=1, maximum=MAX_ENTITIES)
        fields.integer("out_degree", minimum=1, maximum=self.n_relations, optional=True)
        if self.out_degree is not None and self.operation == "comparison":
            raise ValueError(f"out_degree must be None for a comparison, got {self.out_degree}")
        fields.real("ood_fraction", minimum=0, maximum=1, open_minimum=True, open_maximum=True)
        fields.real("phi", minimum=0, open_minimum=True)
        fields.integer("n_test", minimum=1)
        fields.integer("split_seed", minimum=0, maximum=MAX_SEED, optional=True)
        if self.n_inferred > MAX_INFERRED:
            raise ValueError(
                f"n_entities and n_relations must give at most {MAX_INFERRED:,} inferred facts, got {self.n_inferred:,}"
            )
        for what, n in (("in", self.n_known), ("out of", self.n_atomic - self.n_known)):
            if n < 1:
                raise ValueError(f"ood_fraction must leave an atomic fact {what} distribution, got {self.ood_fraction}")

    @property
    def n_atomic(self) -> int:
        return self.n_entities * (self.out_degree or self.n_relations)

    @property
    def n_known(self) -> int:
        """Atomic facts in distribution."""
        return self.n_atomic - int(exact(self.ood_fraction) * self.n_atomic)

    @property
    def n_inferred(self) -> int:
        """All inferred facts, trained or not."""
        return self.n_atomic * (
            self.n_entities - 1 if self.operation == "comparison" else self.n_atomic // self.n_entities
        )

    @property
    def seq_len(self) -> int:
        return 3

    @property
    def _n_trained(self) -> int:
        return int(exact(self.phi) * self.n_known)

    def n_rows(self) -> int:
        return self.n_atomic + self._n_trained

    def build(self, *, seed: int = 0) -> Data:
        checks.integer("seed", seed, minimum=0, maximum=MAX_SEED)
        own = seed if self.split_seed is None else self.split_seed
        facts, split = generator(own, "facts"), generator(own, "split")
        atomic = self._atomic(facts)
        is_known = torch.ones(len(atomic), dtype=torch.bool)
        is_known[torch.randperm(len(atomic), generator=facts)[self.n_known :]] = False
        inferred, first, second = self._inferred(atomic)
        known = (is_known[first] & is_known[second]).nonzero()[:, 0]
        others = (~is_known[first] & ~is_known[second]).nonzero()[:, 0]
        known = known[torch.randperm(len(known), generator=split)]
        others = others[torch.randperm(len(others), generator=split)]
        if len(known) <= self._n_trained:
            raise ValueError(
                f"phi must leave an inferred fact in distribution to test: below {len(known) / self.n_known:.4g}, "
                f"got {self.phi}"
            )
        if len(others) == 0:
            raise ValueError(
                f"ood_fraction must give two facts out of distribution to infer from, got {self.ood_fraction}"
            )
        filler = torch.full_like(atomic[:, 0], self.n_entities + self.n_relations)
        tokens = torch.stack([atomic[:, 0], self.n_entities + atomic[:, 1], filler], 1)
        of_atomic = Split(tokens, torch.stack([atomic[:, 2], torch.full_like(filler, -1)], 1))
        chosen, tested = known[: self._n_trained].sort().values, known[self._n_trained :][: self.n_test].sort().values
        of_inferred, test, ood = (
            Split(inferred[rows, :3], torch.stack([torch.full_like(rows, -1), inferred[rows, 3]], 1))
            for rows in (chosen, tested, others[: self.n_test].sort().values)
        )
        train = Split(
            torch.cat([of_atomic.inputs, of_inferred.inputs]), torch.cat([of_atomic.targets, of_inferred.targets])
        )
        return Data(
            splits={"train": train, "test": test, "test_ood": ood, "atomic": of_atomic, "inferred": of_inferred},
            n_tokens=self.n_entities + self.n_relations + 1,
            n_answers=self.n_entities if self.operation == "composition" else self.n_values + 3,
        )  # fmt: skip

    def labels(self, *, seed: int = 0) -> Labels:
        n = self.n_entities
        tokens = {n + i: f"r{i}" for i in range(self.n_relations)} | {n + self.n_relations: "·"}
        order = {self.n_values + LESS: "<", self.n_values + EQUAL: "=", self.n_values + GREATER: ">"}
        return Labels(tokens, order if self.operation == "comparison" else {})

    def _atomic(self, draws: torch.Generator) -> Tensor:
        """[n_atomic, 3]: entity, relation and tail, or value; entities and their relations in ascending order."""
        entities, relations = torch.arange(self.n_entities), torch.arange(self.n_relations)
        has = torch.cartesian_prod(entities, relations)
        if self.out_degree is not None:
            keys = torch.rand(self.n_entities, self.n_relations, generator=draws)
            own = keys.argsort(1)[:, : self.out_degree].sort(1).values  # [n_entities, out_degree]
            has = torch.stack([entities.repeat_interleave(self.out_degree), own.flatten()], 1)
        n_tails = self.n_entities if self.operation == "composition" else self.n_values
        return torch.cat([has, torch.randint(n_tails, (len(has), 1), generator=draws)], 1)

    def _inferred(self, atomic: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[n_inferred, 4], three tokens and the answer, and the rows of the two atomic facts that each follows from."""
        degree, facts = len(atomic) // self.n_entities, torch.arange(len(atomic))
        if self.operation == "composition":
            first = facts.repeat_interleave(degree)
            second = (atomic[:, 2:] * degree + torch.arange(degree)).flatten()
            tokens = [atomic[first, 0], self.n_entities + atomic[first, 1], self.n_entities + atomic[second, 1]]
            return torch.stack([*tokens, atomic[second, 2]], 1), first, second
        n = self.n_entities
        attribute, one, other = torch.cartesian_prod(torch.arange(degree), torch.arange(n), torch.arange(n)).T
        pairs = one != other
        attribute, one, other = attribute[pairs], one[pairs], other[pairs]
        first, second = one * degree + attribute, other * degree + attribute
        order = (atomic[first, 2] - atomic[second, 2]).sign() + EQUAL
        return torch.stack([n + attribute, one, other, self.n_values + order], 1), first, second
