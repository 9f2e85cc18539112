"""ops.mlp by the C++ extension: one pass between the products and after them."""

import sys

import pytest
import torch
import torch.nn.functional as F

from grokfast import backend
from grokfast.ops import dispatch, mlp, rows

cpu = sys.modules["grokfast.ops.mlp.cpu"]


@pytest.fixture(autouse=True)
def at_any_size(monkeypatch):
    monkeypatch.setitem(dispatch.TORCHS_OWN, "mlp", 0)


def inputs(n=63, d=12, h=65, biases=True, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    shapes = {"x": (n, d), "w_in": (h, d), "b_in": (h,), "w_out": (d, h), "b_out": (d,)}
    tensors = {name: torch.randn(shape, generator=g).to(dtype).requires_grad_() for name, shape in shapes.items()}
    return {name: t if biases or "b_" not in name else None for name, t in tensors.items()}


def run(tensors, activation, skip="x"):
    x = tensors["x"]
    out = mlp(**tensors, activation=activation, skip={"x": x, "none": None, "other": 2 * x}[skip])
    slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, [t for t in tensors.values() if t is not None], slope)]


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("skip", ["x", "none", "other"])
@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize(("n", "d", "h"), [(1, 1, 1), (63, 12, 65), (1000, 32, 129), (1001, 128, 48), (2100, 48, 64)])
def test_as_good_as_torch(n, d, h, biases, skip, activation, compiled, poisoned, judge):
    fast = run(inputs(n, d, h, biases), activation, skip)
    with backend.using("reference"):
        by_torch = run(inputs(n, d, h, biases), activation, skip)
    exact = run(inputs(n, d, h, biases, torch.float64), activation, skip)
    judge(fast[0], by_torch[0], exact[0])
    for got, theirs, right in zip(fast[1:], by_torch[1:], exact[1:]):
        judge(got, theirs, right, factor=3)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_gradcheck(activation, each_backend):
    tensors = inputs(5, 3, 4, dtype=torch.float64)

    def f(*values):
        return mlp(*values, activation=activation, skip=values[0])

    assert torch.autograd.gradcheck(f, list(tensors.values()))


def test_gelu_is_exact_over_its_whole_range(compiled):
    """And its slope, to a few units of the last place of the values around 1 that make it up."""
    z = torch.cat([torch.linspace(-14, 14, 40_001), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 80.0, -80.0])])
    x, one = z[:, None].clone().requires_grad_(), torch.ones(1, 1)
    out = mlp(x, one, None, one, None, activation="gelu")
    (slope,) = torch.autograd.grad(out.sum(), x)
    exact = z.double().requires_grad_()
    (exact_slope,) = torch.autograd.grad(F.gelu(exact).sum(), exact)
    assert (out[:, 0].double() - F.gelu(exact)).abs().div(1 + z.abs()).max() < 1.5e-7
    assert (slope[:, 0].double() - exact_slope).abs().max() < 5e-7


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_same_bits_on_any_number_of_threads(activation, compiled, set_threads, monkeypatch):
    """Products aside, which are torch's: here they always run on one thread."""
    results = []
    for threads in (1, 2, 3, 2):
        set_threads(1)
        for module in (cpu, rows):
            monkeypatch.setattr(module, "threads_for", lambda _, cost=1, n=threads: n)
        results.append(run(inputs(1000, 32, 129), activation))
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_a_relu_network_uses_its_active_units_only_and_the_same_bits_on_any_number_of_threads(compiled, monkeypatch):
    monkeypatch.setattr(cpu, "product", refuse_all_but_the_first_layer(cpu.product))
    results = []
    for threads in (1, 2, 3, 5):
        for module in (cpu, rows):
            monkeypatch.setattr(module, "threads_for", lambda _, cost=1, n=threads: n)
        results.append(run(inputs(1001, 128, 48), "relu"))
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_any_strides_give_the_same_bits():
    tensors = inputs(1001, 128, 48)
    strided = {k: t.detach().T.contiguous().T.requires_grad_() if t.ndim == 2 else t for k, t in tensors.items()}
    strided["b_out"] = tensors["b_out"].detach().repeat_interleave(2)[::2].requires_grad_()
    for skip in ("x", "other"):
        assert all(map(torch.equal, run(tensors, "relu", skip), run(strided, "relu", skip)))


def refuse_all_but_the_first_layer(product):
    def first_layer(x, weight, *more):
        assert not more
        assert weight.shape == (48, 128)
        return product(x, weight)

    return first_layer


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_nan_comes_through(activation, each_backend):
    tensors = {name: t.detach() for name, t in inputs().items()}
    tensors["x"][3] = torch.nan
    out = mlp(**tensors, activation=activation)
    assert out.isnan().all(1).nonzero().tolist() == [[3]]
    assert out.isnan().any(1).nonzero().tolist() == [[3]]


def test_without_gradients(each_backend):
    tensors = inputs()
    with torch.no_grad():
        out = mlp(**tensors, activation="gelu")
    assert not out.requires_grad
    assert torch.equal(out, mlp(**tensors, activation="gelu"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_kept(dtype, each_backend):
    assert all(t.dtype == dtype for t in run(inputs(dtype=dtype), "relu"))


def test_an_empty_batch(each_backend):
    out, *grads = run(inputs(0), "relu")
    assert out.shape == (0, 12)
    assert not any(grad.any() for grad in grads)
