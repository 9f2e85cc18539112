import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from grokfast import backend
from grokfast.ops import pair_embed

ACTIVATIONS = ["identity", "relu", "square", "abs", "gelu"]
A, B = 5, 4  # the tables' rows differ; row 2 of w_a is never read


def inputs(models=1, n=63, width=63, bias=True, dtype=torch.float32):
    """Tables that are views of one flat [E, P] buffer, and pairs with repeated and absent indices."""
    g = torch.Generator().manual_seed(0)
    flat = torch.randn(models, (A + B + 1) * width + 3, generator=g).to(dtype).requires_grad_()
    w_a, w_b, offset, _ = flat.split([A * width, B * width, width, 3], dim=1)
    pairs = torch.stack([torch.tensor([0, 1, 3, 4])[torch.randint(4, (models, n), generator=g)],
                         torch.randint(B, (models, n), generator=g)], -1)  # fmt: skip
    return flat, w_a.view(models, A, width), w_b.view(models, B, width), pairs, offset if bias else None


def slope(out):
    g = torch.Generator().manual_seed(1)
    return torch.randn(out.shape[1:], dtype=torch.float32, generator=g).to(out.dtype).expand_as(out)


def run(flat, *arguments, activation):
    out = pair_embed(*arguments, activation=activation)
    (grad,) = torch.autograd.grad(out, flat, slope(out))
    return out.detach(), grad


def on(name, *arguments, **options):
    with backend.using(name):
        return run(*arguments, **options)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("models", [1, 3])
@pytest.mark.parametrize(("n", "width"), [(1, 257), (63, 1), (63, 63), (1000, 63), (1000, 257)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_as_good_as_torch(activation, n, width, models, bias, compiled, poisoned, judge):
    fast = run(*inputs(models, n, width, bias), activation=activation)
    by_torch = on("reference", *inputs(models, n, width, bias), activation=activation)
    exact = run(*inputs(models, n, width, bias, torch.float64), activation=activation)
    judge(fast[0], by_torch[0], exact[0])
    judge(fast[1], by_torch[1], exact[1], factor=3)


@pytest.mark.parametrize("activation", ["identity", "relu", "square", "abs"])
def test_the_definition(activation, each_backend):
    """act(w_a[a] + w_b[b] + bias), and a linear layer on two one-hot vectors."""
    act = {"identity": lambda z: z, "relu": torch.relu, "square": torch.square, "abs": torch.abs}[activation]
    _, w_a, w_b, pairs, bias = inputs(2, 30, 7, dtype=torch.float64)
    out = pair_embed(w_a, w_b, pairs, bias, activation=activation)
    one_hot = torch.cat([nn.functional.one_hot(pairs[..., 0], A), nn.functional.one_hot(pairs[..., 1], B)], -1).double()
    expected = act(one_hot @ torch.cat([w_a, w_b], 1) + bias[:, None])
    torch.testing.assert_close(out, expected, rtol=1e-14, atol=1e-14)
    for e in range(2):
        assert out[e, 3, 5] == act(w_a[e, pairs[e, 3, 0], 5] + w_b[e, pairs[e, 3, 1], 5] + bias[e, 5])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck(activation, each_backend):
    _, w_a, w_b, pairs, bias = (t.detach() for t in inputs(2, 9, 3, dtype=torch.float64))
    tensors = [t.requires_grad_() for t in (w_a, w_b, bias)]
    assert torch.autograd.gradcheck(lambda x, y, z: pair_embed(x, y, pairs, z, activation=activation), tensors)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("n", [63, 3000])  # below and above what is worth a second thread
def test_the_same_bits_twice_and_on_any_number_of_threads(n, activation, each_backend, set_threads):
    results = []
    for threads in (2, 2, 2) if each_backend == "reference" else (1, 2, 3, 2):  # torch's own sums may split by thread
        set_threads(threads)
        results.append(run(*inputs(1, n, 257), activation=activation))
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_each_model_of_an_ensemble_has_its_own_bits(activation, each_backend):
    flat, w_a, w_b, pairs, bias = inputs(3, 1000, 63)
    out, grad = run(flat, w_a, w_b, pairs, bias, activation=activation)
    for e in range(3):
        alone = [t[e : e + 1].detach().clone().requires_grad_() for t in (w_a, w_b, bias)]
        out_alone = pair_embed(alone[0], alone[1], pairs[e : e + 1], alone[2], activation=activation)
        assert torch.equal(out_alone, out[e : e + 1])
        grads = torch.autograd.grad(out_alone, alone, slope(out)[:1])
        assert torch.equal(torch.cat([g.flatten() for g in grads]), grad[e, :-3])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_kept(dtype, each_backend):
    out, grad = run(*inputs(2, dtype=dtype), activation="relu")
    assert out.dtype == grad.dtype == dtype


def test_odd_strides_are_read_right(each_backend):
    flat, w_a, w_b, pairs, bias = inputs(3, 50, 6)
    expected = run(flat, w_a, w_b, pairs, bias, activation="relu")[0]
    kinds = {
        "columns apart": (w_a.repeat_interleave(2, -1)[..., ::2], w_b, pairs, bias),
        "rows apart": (w_a, w_b.repeat_interleave(2, 1)[:, ::2], pairs, bias),
        "bias apart": (w_a, w_b, pairs, bias.repeat_interleave(2, -1)[:, ::2]),
        "transposed pairs": (w_a, w_b, pairs.permute(2, 1, 0).contiguous().permute(2, 1, 0), bias),
    }
    for name, arguments in kinds.items():
        assert torch.equal(pair_embed(*arguments, activation="relu"), expected), name
    shared = pair_embed(w_a[:1].expand(3, A, 6), w_b[:1].expand(3, B, 6), pairs[:1].expand(3, 50, 2))
    assert torch.equal(shared, (w_a[:1, pairs[0, :, 0]] + w_b[:1, pairs[0, :, 1]]).expand(3, 50, 6))


def test_an_empty_batch(each_backend):
    flat, w_a, w_b, pairs, bias = inputs(2)
    out, grad = run(flat, w_a, w_b, pairs[:, :0], bias, activation="relu")
    assert out.shape == (2, 0, 63)
    assert not grad.any()


def test_only_wanted_gradients_come(each_backend):
    _, w_a, w_b, pairs, bias = (t.detach() for t in inputs(2))
    assert not pair_embed(w_a, w_b, pairs, bias).requires_grad
    w_b.requires_grad_()
    pair_embed(w_a, w_b, pairs, bias).sum().backward()
    assert w_b.grad is not None
    assert w_a.grad is None
    with torch.no_grad():
        assert not pair_embed(w_a, w_b, pairs, bias).requires_grad


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_comes_through(activation, each_backend):
    _, w_a, w_b, pairs, _ = (t.detach() for t in inputs(1, 20, 4))
    w_a[0, 0] = torch.nan
    out = pair_embed(w_a, w_b, pairs, activation=activation)
    assert torch.equal(out.isnan().all(-1), pairs[..., 0] == 0)
    assert torch.equal(out.isnan().any(-1), pairs[..., 0] == 0)


def test_the_kink_has_slope_zero(each_backend):
    zeros, pairs = torch.zeros(1, 1, 3, requires_grad=True), torch.zeros(1, 2, 2, dtype=torch.int64)
    for activation in ("relu", "abs", "square"):
        (grad,) = torch.autograd.grad(pair_embed(zeros, zeros.detach(), pairs, activation=activation).sum(), zeros)
        assert not grad.any()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_second_derivative_is_refused_on_the_fast_path(activation, compiled):
    flat, *arguments = inputs(1)
    (grad,) = torch.autograd.grad(pair_embed(*arguments, activation=activation).square().sum(), flat, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
    with backend.using("reference"):
        (grad,) = torch.autograd.grad(pair_embed(*arguments).square().sum(), flat, create_graph=True)
        grad.sum().backward()
    assert flat.grad.any()


def test_tables_changed_between_forward_and_backward_are_noticed(compiled):
    _, w_a, w_b, pairs, _ = (t.detach() for t in inputs(1))
    out = pair_embed(w_a.requires_grad_(), w_b, pairs, activation="relu")
    w_b.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (0, A, rf"^pairs\[..., 0\] must be in \[0, {A}\), got {A}$"),
        (0, -1, rf"^pairs\[..., 0\] must be in \[0, {A}\), got -1$"),
        (1, B, rf"^pairs\[..., 1\] must be in \[0, {B}\), got {B}$"),
        (1, -(2**40), rf"^pairs\[..., 1\] must be in \[0, {B}\), got -1099511627776$"),
    ],
)
def test_an_index_out_of_range_is_refused(column, value, message, precision, each_backend):
    _, w_a, w_b, pairs, bias = inputs(2, dtype=precision)
    pairs[1, 17, column] = value
    with pytest.raises(IndexError, match=message):
        pair_embed(w_a, w_b, pairs, bias)


def table(*shape, dtype=torch.float32, device="cpu"):
    return torch.zeros(shape, dtype=dtype, device=device)


INDICES = torch.zeros(2, 7, 2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w_a": table(5, 3)}, r"w_a must be \[E, rows, H\] of a float dtype, got \(5, 3\)"),
        ({"w_a": table(0, 5, 3)}, r"w_a must be \[E, rows, H\] of a float dtype, got \(0, 5, 3\)"),
        ({"w_a": table(2, 5, 3, dtype=torch.int64)}, r"w_a must be .* got \(2, 5, 3\) torch.int64"),
        ({"w_b": table(2, 4)}, r"w_b must be \[E, rows, H\]"),
        ({"w_b": table(1, 4, 3)}, r"w_b must be \[2, rows, 3\] torch.float32, got \(1, 4, 3\)"),
        ({"w_b": table(2, 4, 1)}, r"w_b must be \[2, rows, 3\] torch.float32, got \(2, 4, 1\)"),
        ({"w_b": table(2, 4, 3, dtype=torch.float64)}, r"w_b must be .* got \(2, 4, 3\) torch.float64"),
        ({"w_b": table(2, 4, 3, device="meta")}, "w_b must be on cpu as w_a is, got meta"),
        ({"pairs": INDICES[0]}, r"pairs must be \[2, N, 2\] torch.int64, got \(7, 2\)"),
        ({"pairs": INDICES[:1]}, r"pairs must be \[2, N, 2\] torch.int64, got \(1, 7, 2\)"),
        ({"pairs": INDICES[..., :1]}, r"pairs must be \[2, N, 2\] torch.int64, got \(2, 7, 1\)"),
        ({"pairs": INDICES.int()}, r"pairs must be \[2, N, 2\] torch.int64, got \(2, 7, 2\) torch.int32"),
        ({"pairs": INDICES.to("meta")}, "pairs must be on cpu as w_a is, got meta"),
        ({"bias": table(3)}, r"bias must be \[2, 3\] torch.float32, got \(3,\)"),
        ({"bias": table(2, 3, dtype=torch.float64)}, r"bias must be .* got \(2, 3\) torch.float64"),
        ({"bias": table(2, 3, device="meta")}, "bias must be on cpu as w_a is, got meta"),
        ({"activation": "gelo"}, r"activation must be one of .* got 'gelo' \(did you mean 'gelu'"),
    ],
)
def test_bad_input_is_named(change, message, each_backend):
    arguments = {"w_a": table(2, 5, 3), "w_b": table(2, 4, 3), "pairs": INDICES, "bias": table(2, 3)} | change
    with pytest.raises(ValueError, match=message):
        pair_embed(**arguments)


@pytest.mark.parametrize("name", ["w_a", "w_b", "pairs", "bias"])
def test_what_is_no_tensor_is_named(name):
    arguments = {"w_a": table(2, 5, 3), "w_b": table(2, 4, 3), "pairs": INDICES, "bias": table(2, 3)} | {name: [1]}
    with pytest.raises(TypeError, match=rf"{name} must be a tensor, got \[1\] \(list\)"):
        pair_embed(**arguments)


def test_a_default_device_or_dtype_does_not_mislead(each_backend):
    expected = run(*inputs(2), activation="relu")
    arguments = inputs(2)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            out = pair_embed(*arguments[1:], activation="relu")
        (grad,) = torch.autograd.grad(out, arguments[0], slope(out))
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(out, expected[0])
    assert torch.equal(grad, expected[1])


def test_tensors_without_memory_never_reach_the_kernel(each_backend):
    with FakeTensorMode():
        tables, pairs = torch.zeros(2, 4, 3), torch.zeros(2, 7, 2, dtype=torch.int64)
        assert pair_embed(tables, tables, pairs, activation="relu").shape == (2, 7, 3)
    with torch.device("meta"):
        assert pair_embed(torch.zeros(2, 4, 3), torch.zeros(2, 4, 3), INDICES.to("meta")).shape == (2, 7, 3)


def test_lazily_negated_tables_are_read_right(each_backend):
    _, w_a, w_b, pairs, _ = (t.detach() for t in inputs(2))
    assert torch.equal(pair_embed(torch._neg_view(-w_a), w_b, pairs), pair_embed(w_a, w_b, pairs))
