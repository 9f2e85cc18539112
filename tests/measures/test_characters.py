"""Characters: known tables, orthogonality, and what is no group."""

import math

import pytest
import torch

from grokfast.measures.characters import characters
from grokfast.tasks.group import composition, elements


def table(name):
    return torch.from_numpy(composition(name).copy())


def by_cycles(name):
    """The character table's columns: of each cycle type, (or class,) the characters by degree."""
    found, permutations = characters(table(name)), elements(name)[0]
    columns = {}
    for values, permutation in zip(found.values.T.tolist(), permutations):
        seen, lengths = set(), []
        for start in range(len(permutation)):
            length = 0
            while start not in seen:
                seen.add(start)
                start, length = permutation[start], length + 1
            lengths += [length] * (length > 1)
        columns.setdefault(tuple(sorted(lengths)), set()).add(tuple(round(v.real, 6) + 0.0 for v in values))
        assert max(abs(v.imag) for v in values) < 1e-9
    return columns


def test_the_table_of_s3():
    assert by_cycles("S3") == {(): {(1, 1, 2)}, (2,): {(1, -1, 0)}, (3,): {(1, 1, -1)}}


def test_the_table_of_a5_has_the_golden_ratio():
    golden, other = round((1 + math.sqrt(5)) / 2, 6), round((1 - math.sqrt(5)) / 2, 6)
    columns = by_cycles("A5")
    assert columns[()] == {(1, 3, 3, 4, 5)}
    assert columns[(2, 2)] == {(1, -1, -1, 0, 1)}
    assert columns[(3,)] == {(1, 0, 0, 1, -1)}
    assert columns[(5,)] == {(1, golden, other, -1, 0), (1, other, golden, -1, 0)}


def test_the_table_of_d5():
    columns, two = by_cycles("D5"), [round(2 * math.cos(2 * math.pi * k / 5), 6) for k in (1, 2)]
    assert columns[()] == {(1, 1, 2, 2)}
    assert columns[(2, 2)] == {(1, -1, 0, 0)}
    assert columns[(5,)] == {(1, 1, *two), (1, 1, *two[::-1])}


def test_those_of_a_cyclic_group_are_its_roots_of_unity():
    n = 9
    found = characters(table("C9")).values
    powers = torch.outer(torch.arange(n), torch.arange(n)) % n
    roots = torch.exp(2j * math.pi * powers.double() / n)
    distances = (found[:, None] - roots).abs().amax(-1)  # [n, n]
    assert distances.amin(1).max() < 1e-9
    assert distances.argmin(1).sort().values.tolist() == list(range(n))


@pytest.mark.parametrize("name", ["C1", "C12", "D6", "S4", "S5", "A4", "A6", "Q8", "C2xS3"])
def test_rows_and_columns_are_orthogonal_and_characters_are_class_functions(name):
    product, found = table(name), characters(table(name))
    n, values = len(product), found.values
    one = torch.eye(len(values), dtype=values.dtype)
    assert torch.allclose(values @ values.mH / n, one, atol=1e-9)
    conjugates = values.mH @ values  # n / |class of g| where g, h are conjugate, else 0
    sizes = found.classes.bincount()
    same = found.classes[:, None] == found.classes
    expected = torch.where(same, n / sizes[found.classes], 0).to(values.dtype)
    assert torch.allclose(conjugates, expected, atol=1e-8)
    assert torch.allclose(values[:, product], values[:, product.T], atol=1e-9)  # χ(gh) = χ(hg)
    assert int(found.degrees.square().sum()) == n
    assert torch.allclose(values[0], torch.ones_like(values[0]))
    assert torch.equal(values, characters(product).values)


def test_what_is_no_group_is_refused():
    with pytest.raises(TypeError, match="table must be an int64 tensor, got ndarray"):
        characters(composition("S3"))
    with pytest.raises(ValueError, match=r"table must be \[n, n\], n from 1 to 2,048, got \[2, 3\]"):
        characters(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="table must be a group's: of one identity"):
        characters(torch.zeros(3, 3, dtype=torch.int64))
    loop = [[0, 1, 2, 3, 4], [1, 0, 3, 4, 2], [2, 4, 0, 1, 3], [3, 2, 4, 0, 1], [4, 3, 1, 2, 0]]  # not associative
    with pytest.raises(ValueError, match="table must be a group's"):
        characters(torch.tensor(loop))
