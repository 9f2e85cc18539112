"""Groups: orders, Latin squares, associativity, and products against sympy's own."""

import math

import numpy as np
import pytest
import torch

from grokfast.tasks import GroupTask
from grokfast.tasks.group import composition, elements

ORDERS = {
    "C1": 1, "C12": 12, "D1": 2, "D2": 4, "D30": 60, "D59": 118, "S2": 2, "S5": 120, "S6": 720, "A4": 12, "A5": 60,
    "A6": 360, "Q8": 8, "C2xC3": 6, "C2xS3": 12, "C2xC2xC2": 8, "(0 1 2);(0 1)": 6, "(0 1 2 3 4)": 5,
}  # fmt: skip


@pytest.mark.parametrize(("name", "order"), ORDERS.items())
def test_it_is_a_group_of_that_order(name, order):
    permutations, _ = elements(name)
    table = composition(name)
    assert len(permutations) == order
    everything = np.arange(order)
    assert (np.sort(table, 0) == everything[:, None]).all()  # a Latin square
    assert (np.sort(table, 1) == everything).all()
    assert (table[0] == everything).all()  # the identity is 0
    a, b, c = np.random.default_rng(0).integers(0, order, (3, 500))
    np.testing.assert_array_equal(table[table[a, b], c], table[a, table[b, c]])


@pytest.mark.parametrize("name", ["S5", "A5", "D30", "Q8", "C2xS3"])
def test_products_are_those_of_permutations(name):
    """Independently: (a∘b)(x) = a(b(x)), looked up among the elements."""
    permutations, _ = elements(name)
    known = {tuple(p): i for i, p in enumerate(permutations.tolist())}
    rng = np.random.default_rng(1)
    for a, b in rng.integers(0, len(permutations), (200, 2)).tolist():
        product = tuple(permutations[a][x] for x in permutations[b])
        assert composition(name)[a, b] == known[product]
    assert [*known] == sorted(known)


def test_what_kind_of_group_it_is():
    def is_abelian(name):
        return (composition(name) == composition(name).T).all()

    assert is_abelian("C12")
    assert is_abelian("C2xC3")
    assert not is_abelian("S3")
    assert not is_abelian("Q8")
    squares = [int(composition("Q8")[i, i]) for i in range(8)]
    assert squares.count(0) == 2  # 1 and -1; six elements have the square -1
    assert len(set(squares)) == 2
    assert [int(composition("D4")[i, i]) for i in range(8)].count(0) == 6


@pytest.mark.parametrize("operation", ["composition", "conjugation", "aba"])
def test_operations_by_their_definition(operation):
    name = "S4"
    table, n = composition(name), 24
    inverse = [int(np.nonzero(table[a] == 0)[0][0]) for a in range(n)]
    ((pairs, answers),) = GroupTask(group=name, operation=operation).tables().values()
    assert pairs.tolist() == [[a, b] for a in range(n) for b in range(n)]
    third = {"composition": None, "conjugation": inverse, "aba": list(range(n))}[operation]
    for (a, b), answer in zip(pairs.tolist(), answers.tolist()):
        product = table[a, b] if third is None else table[table[a, b], third[a]]
        assert answer == product


def test_conjugation_keeps_the_cycles():
    permutations, _ = elements("S5")

    def cycles(p):
        left, lengths = set(range(5)), []
        while left:
            x, n = left.pop(), 1
            y = p[x]
            while y in left:
                left.remove(y)
                y, n = p[y], n + 1
            lengths.append(n)
        return sorted(lengths)

    shapes = [cycles(p) for p in permutations.tolist()]
    ((pairs, answers),) = GroupTask(group="S5", operation="conjugation").tables().values()
    assert all(shapes[b] == shapes[c] for (_, b), c in zip(pairs.tolist()[:3000], answers.tolist()[:3000]))


@pytest.mark.parametrize("layout", ["pair", "equals", "operator"])
def test_the_data(layout):
    task = GroupTask(group="A5", train_fraction=0.3, layout=layout)
    data, again = task.build(seed=3), task.build(seed=3)
    assert len(data.train) == task.n_rows() == math.floor(0.3 * 3600)
    assert len(data.train) + len(data.test) == 3600
    assert torch.equal(data.train.inputs, again.train.inputs)
    assert not torch.equal(data.train.inputs, task.build(seed=4).train.inputs)
    rows = {tuple(r) for r in data.train.inputs.tolist()}
    assert not rows & {tuple(r) for r in data.test.inputs.tolist()}
    assert (data.seq_len, data.n_tokens, data.n_answers) == (
        {"pair": (2, 60), "equals": (3, 61), "operator": (4, 62)}[layout] + (60,)
    )
    columns = {"pair": (0, 1), "equals": (0, 1), "operator": (0, 2)}[layout]
    table = composition("A5")
    for split in data.splits.values():
        a, b = (split.inputs[:, column].numpy() for column in columns)
        np.testing.assert_array_equal(table[a, b], split.targets.numpy())


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ("Z3", "group must be C<n>, D<n>, S<n>, A<n>, Q8, a product such as C2xS3, or generators"),
        ("Q16", "group must be C<n>"),
        ("C0", "group must be C<n>"),
        ("C2x", "group must be C<n>"),
        ("S7", r"at most 2,048 elements, 'S7' has 5,040: its table would have 25,401,600 pairs, 0\.61 GB"),
        ("S13", "at most 2,048 elements, S13 has more"),
        ("D2000", "at most 2,048 elements, D2000 has more"),
        ("S6xS6", "at most 2,048 elements, 'S6xS6' has 518,400"),
        ("(0 1)(1 2)", "generators of disjoint cycles of points below 4096"),
        ("(0 5000)", "generators of disjoint cycles of points below 4096"),
        ("(0 1", r"generators written '\(0 1 2\)\(3 4\);\(0 1\)'"),
        ("()", "generators written"),
        ("(0 1 2 3 4 5 6 7 8 9);(0 1)", "at most 2,048 elements"),
        ("", "group must have 1 to 200 printable characters"),
    ],
)
def test_what_is_no_group_is_refused(group, message):
    with pytest.raises(ValueError, match=message):
        GroupTask(group=group)


def test_other_bad_arguments():
    with pytest.raises(ValueError, match="operation must be one of 'composition', 'conjugation', 'aba', got 'product'"):
        GroupTask(operation="product")
    with pytest.raises(ValueError, match="train_fraction must leave at least one training pair"):
        GroupTask(group="C1", train_fraction=0.5)
    with pytest.raises(TypeError, match="group must be a string, got 5"):
        GroupTask(group=5)
