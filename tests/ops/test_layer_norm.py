import sys

import pytest
import torch

from grokfast import backend
from grokfast.ops import layer_norm


def inputs(n=63, d=65, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    return [(torch.randn(shape, generator=g) + 3).to(dtype).requires_grad_() for shape in ((n, d), (d,), (d,))]


def run(tensors):
    out = layer_norm(*tensors)
    slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, tensors, slope)]


@pytest.mark.parametrize(("n", "d"), [(1, 2), (63, 65), (1000, 128), (33, 257)])
def test_as_good_as_torch(n, d, compiled, poisoned, judge):
    fast, exact = run(inputs(n, d)), run(inputs(n, d, torch.float64))
    with backend.using("reference"):
        by_torch = run(inputs(n, d))
    judge(fast[0], by_torch[0], exact[0])
    for got, theirs, right in zip(fast[1:], by_torch[1:], exact[1:]):
        judge(got, theirs, right, factor=3)


def test_gradcheck(each_backend):
    assert torch.autograd.gradcheck(layer_norm, inputs(5, 4, torch.float64))


def test_the_same_bits_on_any_number_of_threads(compiled, set_threads, monkeypatch):
    results = []
    for threads in (1, 2, 3, 2):
        monkeypatch.setattr(sys.modules["grokfast.ops.layer_norm"], "threads_for", lambda _, n=threads: n)
        results.append(run(inputs(1000, 64)))
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_nan_stays_in_its_row(each_backend):
    x, weight, bias = (t.detach() for t in inputs())
    x[3, 2] = torch.nan
    assert layer_norm(x, weight, bias).isnan().all(1).nonzero().tolist() == [[3]]
    assert layer_norm(x, weight, bias).isnan().any(1).nonzero().tolist() == [[3]]


def test_equal_entries_and_no_rows(each_backend):
    _, weight, bias = (t.detach() for t in inputs())
    torch.testing.assert_close(layer_norm(torch.full((2, 65), 7.0), weight, bias), bias.expand(2, 65))
    assert layer_norm(torch.empty(0, 65), weight, bias).shape == (0, 65)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(65)}, r"x must be \[N, d\] of a float dtype, got \(65,\)"),
        ({"x": torch.zeros(2, 65, dtype=torch.int64)}, "x must be .* torch.int64"),
        ({"x": torch.zeros(2, 0)}, "x must be"),
        ({"weight": torch.zeros(64)}, r"weight must be \[65\] torch.float32 on cpu, got \[64\]"),
        ({"bias": torch.zeros(65).double()}, r"bias must be .* got \[65\] torch.float64"),
        ({"eps": -1.0}, "eps must be in"),
    ],
)
def test_bad_input_is_named(change, message, each_backend):
    x, weight, bias = inputs()
    with pytest.raises(ValueError, match=message):
        layer_norm(**({"x": x, "weight": weight, "bias": bias} | change))
