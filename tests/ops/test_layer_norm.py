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
        monkeypatch.setattr(sys.modules["grokfast.ops.layer_norm"], "threads_for", lambda _, cost=1, n=threads: n)
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


def test_an_ensemble_is_its_models_and_rows_have_any_shape(each_backend):
    x, weight, bias = (t.detach() for t in inputs(60))
    weights, biases = torch.stack([weight, 2 * weight]), torch.stack([bias, bias - 1])
    out = layer_norm(x.view(2, 5, 6, 65), weights, biases)
    for e in range(2):
        torch.testing.assert_close(out[e].view(30, 65), layer_norm(x[30 * e :][:30], weights[e], biases[e]))
    assert torch.equal(layer_norm(x.view(3, 20, 65), weight, bias).view(60, 65), layer_norm(x, weight, bias))
    torch.testing.assert_close(layer_norm(x[0], weight, bias), layer_norm(x, weight, bias)[0])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": 3.0}, TypeError, r"x must be a tensor, got 3.0 \(float\)"),
        ({"x": torch.tensor(3.0)}, ValueError, r"x must be \[\.\.\., d\], got \(\)"),
        ({"x": torch.zeros(2, 65, dtype=torch.int64)}, TypeError, "x must be of a float dtype, got torch.int64"),
        ({"x": torch.zeros(2, 0)}, ValueError, r"x must not be empty in d, got \(2, 0\)"),
        (
            {"x": torch.zeros(3, 65), "weight": torch.zeros(3, 65)},
            ValueError,
            r"x must be \[3, \.\.\., d\] as weight is",
        ),
        ({"weight": torch.zeros(64)}, ValueError, r"weight must be \[65\], got \(64,\)"),
        ({"bias": torch.zeros(65).double()}, ValueError, "bias must be torch.float32 .*, got torch.float64"),
        ({"bias": torch.zeros(65, device="meta")}, ValueError, "bias must be on cpu .*, got meta"),
        ({"eps": -1.0}, ValueError, "eps must be in"),
        ({"backend": "cuda"}, ValueError, "backend must be one of 'reference', 'triton', got 'cuda'"),
    ],
)
def test_bad_input_is_named(change, error, message, each_backend):
    x, weight, bias = inputs()
    with pytest.raises(error, match=message):
        layer_norm(**({"x": x, "weight": weight, "bias": bias} | change))
