import pytest
import torch

from grokfast.ops import products
from grokfast.ops.products import linear, product

SIZES = [(1031, 131, 67), (613, 97, 129), (9, 5, 3), (1, 1, 1), (257, 1, 20011)]  # N, n, k: two by oneDNN, three not


def operands(size, dtype=torch.float32):
    n_rows, n, k = size
    generator = torch.Generator().manual_seed(sum(size))
    shapes = (n_rows, k), (n, k), (n,), (n_rows, n)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def error(got, exact):
    return (got.double() - exact).norm() / exact.norm()


def test_the_sizes_are_on_both_sides_of_the_threshold():
    assert {n_rows * n * k >= products.WORTHWHILE for n_rows, n, k in SIZES} == {True, False}


@pytest.mark.parametrize("with_skip", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_product_is_as_good_as_torchs(size, with_bias, with_skip):
    x, weight, bias, skip = operands(size)
    bias, skip = bias if with_bias else None, skip if with_skip else None
    got = product(x, weight, bias, skip)
    theirs = x @ weight.T
    exact = x.double() @ weight.double().T
    for t in (bias, skip):
        if t is not None:
            theirs, exact = theirs + t, exact + t.double()
    assert error(got, exact) <= 2 * error(theirs, exact) + torch.finfo(torch.float32).eps


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_any_strides_are_taken_and_nothing_given_is_changed(size):
    x, weight, bias, skip = operands(size)
    wide = torch.full((len(skip), skip.shape[1] + 7), torch.nan)
    wide[:, 3:-4] = skip
    given = x.T.contiguous().T, weight.T.contiguous().T, bias, wide[:, 3:-4]
    before = [t.clone() for t in given]
    torch.testing.assert_close(product(*given), product(x, weight, bias, skip))
    assert all(torch.equal(now, then) for now, then in zip(given, before))


@pytest.mark.parametrize("size", SIZES[:3], ids=str)
def test_the_gradients_of_a_linear_layer_are_torchs(size):
    x, weight, _, grad = operands(size)
    wanted = [t.clone().requires_grad_() for t in (x, weight)]
    torch.nn.functional.linear(*wanted).backward(grad)
    given = [t.clone().requires_grad_() for t in (x, weight)]
    linear(*given).backward(grad)
    exact = grad.double() @ weight.double(), grad.double().T @ x.double()
    for got, theirs, right in zip(given, wanted, exact):
        assert error(got.grad, right) <= 2 * error(theirs.grad, right) + torch.finfo(torch.float32).eps


def test_other_dtypes_are_torchs():
    x, weight, _, _ = operands(SIZES[1], torch.float64)
    assert torch.equal(linear(x, weight), torch.nn.functional.linear(x, weight))


def test_without_onednn_torchs_own_products_stand_in(monkeypatch):
    x, weight, bias, skip = operands(SIZES[0])
    monkeypatch.setattr(products, "_onednn", lambda: None)
    torch.testing.assert_close(product(x, weight, bias, skip), torch.addmm(bias, x, weight.T) + skip)


def test_nan_comes_through():
    x, weight, bias, skip = operands(SIZES[0])
    x[5, 3] = torch.nan
    assert product(x, weight, bias, skip).isnan().any(1).nonzero().tolist() == [[5]]
