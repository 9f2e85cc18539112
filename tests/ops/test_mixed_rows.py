import pytest
import torch

from grokfast import backend
from grokfast.ops import RowIndex
from grokfast.ops.mixed_rows import cpu
from grokfast.ops.mixed_rows.reference import mixed_rows

pytestmark = pytest.mark.skipif(backend.extension() is None, reason="needs the C++ extension")

CASES = {  # rows, slots, keys, queries, heads, units, further columns, common key, rate
    "as nanda": (257, 2, 15, 1, 4, 128, 64, 14, 1.0),
    "odd sizes": (63, 3, 17, 5, 3, 70, 13, None, 1.0),
    "many heads": (130, 2, 9, 1, 9, 64, 1, 3, 0.3),
    "a uniform share, queries": (65, 1, 8, 8, 5, 192, 100, 0, 0.5),
    "one row": (1, 1, 1, 1, 1, 1, 1, None, 1.0),
    "nothing but a common key": (10, 0, 2, 2, 4, 64, 3, 1, 1.0),
}


def problem(rows, slots, n_keys, queries, heads, units, others, common, rate):
    g = torch.Generator().manual_seed(0)
    width = units + others
    tensors = [
        torch.randn(shape, generator=g)
        for shape in ((heads, n_keys, width), (queries, n_keys, heads), (queries, width))
    ]
    keys = torch.randint(n_keys, (rows, slots), generator=g)
    query = torch.randint(queries, (rows,), generator=g) if queries > 1 else None
    slope = torch.randn(rows, width, generator=g)
    return tensors, keys, query, slope


def by_reference(tensors, keys, query, common, rate, units, slope, dtype):
    tensors = [t.to(dtype).requires_grad_() for t in tensors]
    mixed = mixed_rows(*tensors, keys, query, common, rate)
    grads = torch.autograd.grad(mixed, tensors, slope.to(dtype), materialize_grads=True, allow_unused=True)
    return [torch.cat([mixed[:, :units].relu(), mixed[:, units:]], 1).detach(), *grads]


def by_extension(tensors, keys, query, common, rate, units, slope):
    rows = cpu.Mixture(*tensors, RowIndex.trusted(keys, tensors[0].shape[1]), query, common, rate)
    poisoned = [torch.full_like(t, torch.nan) for t in (slope[:, :units], slope[:, units:], *tensors)]
    hidden, linear, *grads = (t.contiguous() for t in poisoned)
    weights = cpu.forward(rows, hidden, linear)
    cpu.backward(rows, weights, slope[:, :units].contiguous(), slope[:, units:].contiguous(), tuple(grads))
    return [torch.cat([hidden, linear], 1), *grads]


@pytest.mark.parametrize("case", CASES)
def test_the_extension_is_within_twice_the_error_of_torch(case):
    *_, units, _, common, rate = CASES[case]
    tensors, keys, query, slope = problem(*CASES[case])
    exact = by_reference(tensors, keys, query, common, rate, units, slope, torch.float64)
    torchs = by_reference(tensors, keys, query, common, rate, units, slope, torch.float32)
    for ours, theirs, true in zip(by_extension(tensors, keys, query, common, rate, units, slope), torchs, exact):
        error, bound = ((t - true).abs().max().item() for t in (ours, theirs))
        assert error <= 2 * bound + 4 * torch.finfo(torch.float32).eps * true.abs().max().item()


@pytest.mark.parametrize("case", ["as nanda", "odd sizes", "many heads"])
def test_bits_do_not_depend_on_threads(case, monkeypatch):
    *_, units, _, common, rate = CASES[case]
    tensors, keys, query, slope = problem(*CASES[case])
    found = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(cpu.Mixture, "threads", lambda self, n=threads: n)
        found.append(by_extension(tensors, keys, query, common, rate, units, slope))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other))


FOLDED = {  # the last columns are logits here
    "as nanda": CASES["as nanda"],
    "a block that is not whole, three heads": (300, 3, 17, 5, 3, 80, 112, None, 1.0),
    "one row": (1, 1, 1, 1, 1, 16, 16, None, 0.5),
}


def folded_by_reference(tensors, to_logits, keys, query, common, rate, units, slope, dtype):
    tensors = [t.to(dtype).requires_grad_() for t in (*tensors, to_logits)]
    mixed = mixed_rows(*tensors[:3], keys, query, common, rate)
    logits = mixed[:, units:] + mixed[:, :units].relu() @ tensors[3]
    return [logits.detach(), *torch.autograd.grad(logits, tensors, slope.to(dtype))]


def folded_by_extension(tensors, to_logits, keys, query, common, rate, units, slope, threads):
    rows = cpu.Mixture(*tensors, RowIndex.trusted(keys, tensors[0].shape[1]), query, common, rate)
    hidden, logits = torch.full((len(keys), units), torch.nan), torch.full_like(slope, torch.nan)
    kept = cpu.folded_forward(rows, to_logits, hidden, logits)
    scratch = torch.full((threads, len(keys), 64), torch.nan)
    grads = tuple(torch.full_like(t, torch.nan) for t in (*tensors, to_logits))
    cpu.folded_backward(rows, kept, slope, scratch, grads)
    return [logits, *grads]


@pytest.mark.parametrize("case", FOLDED)
def test_folded_rows_are_within_twice_the_error_of_torch_on_any_number_of_threads(case, isa, monkeypatch):
    *_, units, classes, common, rate = FOLDED[case]
    tensors, keys, query, slope = problem(*FOLDED[case])
    to_logits, slope = (
        torch.randn(units, classes, generator=torch.Generator().manual_seed(1)),
        slope[:, units:].contiguous(),
    )
    given = tensors, to_logits, keys, query, common, rate, units, slope
    exact, torchs = (folded_by_reference(*given, dtype) for dtype in (torch.float64, torch.float32))
    found = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(cpu.Mixture, "threads", lambda self, n=threads: n)
        found.append(folded_by_extension(*given, threads))
    for ours, theirs, true in zip(found[0], torchs, exact):
        error, bound = ((t - true).abs().max().item() for t in (ours, theirs))
        assert error <= 2 * bound + 4 * torch.finfo(torch.float32).eps * true.abs().max().item()
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other))


def test_gradients_of_the_reference():
    tensors, keys, query, _ = problem(6, 2, 4, 3, 2, 3, 2, 1, 0.7)
    tensors = [t.double().requires_grad_() for t in tensors]
    for common in (None, 1):
        assert torch.autograd.gradcheck(lambda *t, c=common: mixed_rows(*t, keys, query, c, 0.7), tensors)


def test_nan_stays():
    tensors, keys, query, slope = problem(*CASES["as nanda"])
    tensors[0][:, int(keys[5, 0])] = torch.nan
    assert by_extension(tensors, keys, query, None, 1.0, 128, slope)[0][5].isnan().all()


def test_indices_and_sizes_are_looked_at():
    tensors, keys, query, slope = problem(*CASES["odd sizes"])
    with pytest.raises(IndexError, match="keys"):
        by_extension(tensors, keys + 17, query, None, 1.0, 70, slope)
    with pytest.raises(IndexError, match="query"):
        by_extension(tensors, keys, query + 5, None, 1.0, 70, slope)
    with pytest.raises(ValueError, match="query must not be None"):
        by_extension(tensors, keys, None, None, 1.0, 70, slope)
    with pytest.raises(ValueError, match="common must be between -1 and 16, got 17"):
        by_extension(tensors, keys, query, 17, 1.0, 70, slope)
    with pytest.raises(ValueError, match="base"):
        by_extension([*tensors[:2], tensors[2][:, 1:].contiguous()], keys, query, None, 1.0, 70, slope)
