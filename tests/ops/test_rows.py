import itertools

import pytest
import torch

from grokfast import backend
from grokfast.ops import PairIndex, RowIndex
from grokfast.ops.rows import add_rows, sum_readers, sum_rows


def test_readers_are_grouped_in_order(each_backend):
    start, items = RowIndex(torch.tensor([[2, -1], [0, 2], [2, 2], [0, -1]]), 4).readers
    groups = [items[a:b].tolist() for a, b in itertools.pairwise(start)]
    assert groups == [[2, 6], [], [0, 3, 4, 5], []]
    start, items = RowIndex(torch.empty(0, dtype=torch.int64), 3).readers
    assert start.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("n", [0, 1, 127, 128, 129, 1000])
@pytest.mark.parametrize("width", [1, 63, 128])
def test_sums_over_readers(n, width, compiled, poisoned, set_threads):
    g = torch.Generator().manual_seed(0)
    x, index = torch.randn(n, width, generator=g), torch.randint(5, (n,), generator=g) % 4  # row 0 has more, 4 has none
    exact = torch.zeros(5, width, dtype=torch.float64).index_add_(0, index, x.double())
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        sums = sum_readers(x, RowIndex(index, 5))
        results.append((sums, sum_rows(x)))
        torch.testing.assert_close(sums.double(), exact, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(results[-1][1].double(), x.double().sum(0), rtol=1e-5, atol=2e-5)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other))


@pytest.mark.parametrize("threads", [1, 2])
def test_added_rows(threads, compiled, set_threads):
    set_threads(threads)
    g = torch.Generator().manual_seed(0)
    out, table, bias = torch.randn(700, 65, generator=g), torch.randn(4, 65, generator=g), torch.randn(65, generator=g)
    index = torch.randint(4, (700,), generator=g)
    for b, skip, at in ((bias, table, index), (None, table, index), (bias, None, None), (bias, out.clone(), None)):
        got = out.clone()
        add_rows(got, b, skip, None if at is None else RowIndex(at, 4))
        skipped = 0 if skip is None else (skip if at is None else skip[at])
        torch.testing.assert_close(got, out + (0 if b is None else b) + skipped, rtol=1e-6, atol=1e-6)
    add_rows(got, None, None)


@pytest.mark.parametrize(
    ("index", "n_rows", "error", "message"),
    [
        ([0, 1], 2, TypeError, "index must be an int64 tensor, got list"),
        (torch.zeros(3), 2, TypeError, "index must be an int64 tensor, got torch.float32"),
        (torch.zeros(1, 2, 3, dtype=torch.int64), 2, ValueError, r"index must be \[R\] or \[R, S\], got \(1, 2, 3\)"),
        (torch.zeros(3, dtype=torch.int64), -1, ValueError, "n_rows must be at least 0"),
        (torch.tensor([0, 2]), 2, IndexError, r"index must be in \[0, 2\), got 2"),
        (torch.tensor([0, -1]), 2, IndexError, r"index must be in \[0, 2\), got -1"),
        (torch.tensor([[0, -2]]), 2, IndexError, r"index must be in \[0, 2\), got -2"),
        (torch.tensor([[-1, 0]]), 2, ValueError, "index must have the used entries of a row first"),
        (torch.tensor([[0, -1, 1]]), 2, ValueError, "index must have the used entries of a row first"),
        (torch.tensor([[-1], [0]]), 2, ValueError, "at least one"),
    ],
)
def test_bad_indices_are_refused(index, n_rows, error, message):
    with pytest.raises(error, match=message):
        RowIndex(index, n_rows)


def test_the_readers_of_pairs(compiled):
    g = torch.Generator().manual_seed(0)
    pairs = torch.stack([torch.randint(5, (2, 40), generator=g), torch.randint(3, (2, 40), generator=g)], -1)
    index = PairIndex(pairs, 6, 3)
    for side, (start, items) in enumerate((index.readers[:2], index.readers[2:])):
        for e in range(2):
            with backend.using("auto"):
                by_extension = RowIndex(pairs[e, :, side], (6, 3)[side]).readers
            assert torch.equal(start[e], by_extension[0])
            assert torch.equal(items[e], by_extension[1])
    shared = PairIndex(pairs[:1].expand(4, 40, 2), 6, 3)
    assert torch.equal(shared.pairs, pairs[:1].expand(4, 40, 2))
    assert all(t.shape[0] == 4 and t.stride(0) == 0 for t in (shared.pairs, *shared.readers))
    pairs.zero_()  # it keeps its own
    assert index.pairs.any()


@pytest.mark.parametrize(
    ("pairs", "error", "message"),
    [
        ([[0, 1]], TypeError, "pairs must be an int64 tensor, got list"),
        (torch.zeros(1, 3, 2), TypeError, "pairs must be an int64 tensor, got torch.float32"),
        (torch.zeros(3, 2, dtype=torch.int64), ValueError, r"pairs must be \[E, N, 2\], got \(3, 2\)"),
        (torch.tensor([[[4, 0]]]), IndexError, r"pairs\[..., 0\] must be in \[0, 4\), got 4"),
        (torch.tensor([[[3, -1]]]), IndexError, r"pairs\[..., 1\] must be in \[0, 2\), got -1"),
    ],
)
def test_bad_pairs_are_refused(pairs, error, message):
    with pytest.raises(error, match=message):
        PairIndex(pairs, 4, 2)
    with pytest.raises(ValueError, match="n_b must be at least 0, got -1"):
        PairIndex(torch.zeros(1, 1, 2, dtype=torch.int64), 4, -1)
