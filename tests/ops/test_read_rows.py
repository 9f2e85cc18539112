import pytest
import torch

from grokfast.ops.read_rows import EnsembleIndex, known_readers, read_rows, sort_readers
from grokfast.ops.read_rows.readers import CHUNK, slot

kernels = pytest.importorskip("grokfast.ops.read_rows.kernels")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def indices(n_models, size, n_rows):
    return torch.randint(-1, n_rows, (n_models, size), generator=torch.Generator().manual_seed(size)).to(DEVICE)


CASES = {
    "few": indices(2, 30, 5),
    "chunks": indices(1, 3 * CHUNK, 2),
    "most are none": torch.where(indices(2, 90, 4) == 3, 3, -1),
    "more rows than readers": indices(2, 7, 40),
    "none": torch.full((1, 40), -1, device=DEVICE),
    "larger than a tile": indices(1, 1100, 3),
}


@pytest.mark.parametrize("group", [sort_readers, kernels.group_readers])
@pytest.mark.parametrize("case", CASES)
def test_readers_are_in_order_and_each_chunk_has_its_slot(case, group, poisoned):
    index, n_rows = CASES[case], 1 + int(CASES[case].max().clamp(min=3))
    readers = group(index, n_rows)
    for e in range(len(index)):
        expected = torch.full_like(readers.slots[e], -1)
        for k in range(n_rows):
            begin, end = readers.start[e, k : k + 2].tolist()
            assert readers.items[e, begin:end].tolist() == (index[e] == k).nonzero().flatten().tolist()
            first = int(slot(readers.start[e, k], torch.tensor(k, device=DEVICE)))
            expected[first : first + -(-(end - begin) // CHUNK)] = k
        assert torch.equal(readers.slots[e], expected)


@pytest.mark.parametrize(
    ("rows", "is_open"), [(5, [True, True]), (90, [True, False, True, False]), (190, [False, True])]
)
def test_only_what_batches_read_differently_is_looked_for(rows, is_open, poisoned):
    sizes = [7 if own else rows for own in is_open]
    begin = [sum(sizes[:t]) for t in range(len(sizes))]
    n_rows = sum(sizes)

    def batch(n_models):
        columns = [
            torch.randint(7, (n_models, rows)) if own else torch.arange(rows).expand(n_models, -1) for own in is_open
        ]
        index = torch.stack(columns, 2) + torch.tensor(begin)
        index[:, : rows // 3, -1] = -1  # these read less, in every batch
        return index.to(DEVICE)

    known = known_readers(batch(1), begin, n_rows, is_open)
    index = batch(2).flatten(1)
    found, expected = kernels.group_readers(index, n_rows, known), kernels.group_readers(index, n_rows)
    n_items = int(expected.start[0, -1])
    assert torch.equal(found.start, expected.start)
    assert torch.equal(found.slots, expected.slots)
    assert torch.equal(found.items[:, :n_items], expected.items[:, :n_items])


def gathered(index, n_rows, d, backend, dtype=torch.float32):
    """Rows that are read, and the gradient of the table."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(len(index), n_rows, d, generator=g, dtype=torch.float64).to(DEVICE, dtype).requires_grad_()
    out = read_rows(x, EnsembleIndex(index, n_rows), backend=backend)
    weights = torch.randn(out.shape, generator=g, dtype=torch.float64).to(DEVICE, dtype)
    return out.detach(), torch.autograd.grad((out * weights).sum(), x)[0]


@pytest.mark.parametrize(("size", "n_rows", "d"), [(1, 1, 1), (70, 3, 5), (9, 6, 130)])
def test_rows_and_their_gradient_are_as_good_as_torch(size, n_rows, d, judge, poisoned):
    index = indices(2, size, n_rows).clamp(min=0)
    results = [gathered(index, n_rows, d, backend) for backend in ("triton", "reference")]
    exact = gathered(index, n_rows, d, "reference", torch.float64)
    for ours, theirs, right in zip(*results, exact):
        judge(ours, theirs, right)


def test_an_index_that_models_share_is_grouped_once():
    index = indices(1, 20, 4).clamp(min=0)
    shared = EnsembleIndex(index.expand(3, -1), 4)
    assert shared.readers.items.stride(0) == 0
    own = EnsembleIndex(index.repeat(3, 1), 4)
    for a, b in zip(vars(shared.readers).values(), vars(own.readers).values()):
        assert torch.equal(a, b)


def test_the_same_bits_alone_and_together():
    index = indices(3, 50, 4).clamp(min=0)
    x = torch.randn(3, 50, 6, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    together = kernels.sum_readers(x, EnsembleIndex(index, 4).readers, x.new_empty(3, 4, 6))
    alone = kernels.sum_readers(x[1:2], EnsembleIndex(index[1:2], 4).readers, x.new_empty(1, 4, 6))
    assert torch.equal(together[1:2], alone)


def test_what_does_not_fit_is_refused():
    x = torch.zeros(2, 4, 3, device=DEVICE)
    index = EnsembleIndex(torch.zeros(2, 5, dtype=torch.int64, device=DEVICE), 4)
    with pytest.raises(ValueError, match=r"index must be \[2, R\] into 3 rows, got \[2, 5\] into 4"):
        read_rows(x[:, :3], index)
    with pytest.raises(ValueError, match="x must be"):
        read_rows(x[0], index)
    with pytest.raises(ValueError, match=r"cannot run ops.read_rows here: they take fp32, got torch.float16"):
        read_rows(x.half(), index, backend="triton")
