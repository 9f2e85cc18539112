import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from grokfast import backend
from grokfast.ops import classify

LOSSES = ["cross_entropy", "mse"]


def inputs(models=1, n=63, classes=97, dtype=torch.float32, scale=3.0):
    g = torch.Generator().manual_seed(0)
    logits = (scale * torch.randn(models, n, classes, dtype=torch.float32, generator=g)).to(dtype)
    return logits.requires_grad_(), torch.randint(classes, (models, n), generator=g)


def run(logits, target, loss="cross_entropy", weights=None):
    values, accuracy = classify(logits, target, loss=loss)
    (grad,) = torch.autograd.grad(values, logits, torch.ones_like(values) if weights is None else weights.to(values))
    return values.detach(), accuracy, grad


def on(name, *arguments):
    with backend.using(name):
        return run(*arguments)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("weights", [None, torch.tensor([0.3, -2.0, 65536.0])], ids=["ones", "weights"])
@pytest.mark.parametrize(("n", "classes"), [(1, 97), (63, 1), (63, 2), (63, 63), (63, 257), (1000, 97), (1000, 257)])
def test_as_good_as_torch(n, classes, weights, loss, compiled, poisoned, judge):
    arguments = loss, weights
    fast, by_torch = run(*inputs(3, n, classes), *arguments), on("reference", *inputs(3, n, classes), *arguments)
    exact = run(*inputs(3, n, classes, torch.float64), *arguments)
    judge(fast[0], by_torch[0], exact[0])
    assert torch.equal(fast[1], exact[1].float())
    for e in range(3):  # weights differ by orders of magnitude
        judge(fast[2][e], by_torch[2][e], exact[2][e], factor=3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_definition(dtype, each_backend):
    logits, target = inputs(2, 30, 11, dtype)
    for e in range(2):
        one_hot = F.one_hot(target[e], 11).to(dtype)
        expected = {"cross_entropy": F.cross_entropy(logits[e], target[e]), "mse": F.mse_loss(logits[e], one_hot)}
        accuracy = (logits[e].argmax(-1) == target[e]).to(dtype).mean()
        for loss, value in expected.items():
            values, accuracies = classify(logits, target, loss=loss)
            torch.testing.assert_close(values[e], value)
            assert accuracies[e] == accuracy
            assert values.dtype == accuracies.dtype == dtype


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("rest", [1e30, float("nan")])
def test_rows_that_do_not_exist_do_not_count(loss, rest, each_backend):
    logits, target = inputs(2, 30, 11, torch.float64)
    exists = torch.arange(30) < torch.tensor([[7], [30]])
    spoiled = logits.detach().masked_fill(~exists[..., None], rest).requires_grad_()
    values, accuracy = classify(spoiled, target, loss=loss, exists=exists)
    (grad,) = torch.autograd.grad(values.sum(), spoiled)
    for e, n in enumerate((7, 30)):
        expected = run(logits.detach()[e : e + 1, :n].requires_grad_(), target[e : e + 1, :n], loss)
        torch.testing.assert_close((values[e], accuracy[e], grad[e, :n]), tuple(t[0] for t in expected))


@pytest.mark.parametrize("loss", LOSSES)
def test_gradcheck(loss, each_backend):
    logits, target = inputs(2, 5, 4, torch.float64)
    assert torch.autograd.gradcheck(lambda x: classify(x, target, loss=loss)[0], logits)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("n", [63, 1000])
def test_the_same_bits_twice_and_on_any_number_of_threads(n, loss, each_backend, set_threads):
    results = []
    for threads in (2, 2, 2) if each_backend == "reference" else (1, 2, 3, 2):  # torch's own sums may split by thread
        set_threads(threads)
        results.append(run(*inputs(1, n), loss))
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.parametrize("loss", LOSSES)
def test_each_model_of_an_ensemble_has_its_own_bits(loss, each_backend):
    logits, target = inputs(3, 1000)
    together = run(logits, target, loss)
    for e in range(3):
        alone = run(logits[e : e + 1].detach().requires_grad_(), target[e : e + 1], loss)
        assert all(torch.equal(t[e : e + 1], one) for t, one in zip(together, alone))


def test_of_equal_logits_the_first_counts(each_backend):
    logits = torch.tensor([[[1.0, 1.0, 0.0]] * 3 + [[0.0, -0.0, -1.0]] * 2 + [[2.0, 2.0, 2.0]] * 3])
    target = torch.tensor([[0, 1, 2, 0, 1, 0, 1, 2]])
    right = [1, 0, 0, 1, 0, 1, 0, 0]
    assert classify(logits, target)[1] == sum(right) / len(right)
    for row, expected in enumerate(right):
        assert classify(logits[:, row : row + 1], target[:, row : row + 1])[1] == expected


@pytest.mark.parametrize("scale", [1e4, 100.0, 88.0, 1e-30, 0.0])
def test_extreme_logits(scale, compiled, judge):
    results = []
    for name, dtype in (("auto", torch.float32), ("reference", torch.float32), ("reference", torch.float64)):
        logits, target = inputs(1, 63, 97, dtype, scale)
        results.append(on(name, logits, target))
    fast, by_torch, exact = results
    assert fast[0].isfinite().all()
    judge(fast[0], by_torch[0], exact[0])
    judge(fast[2], by_torch[2], exact[2], factor=3)


def test_exp_is_accurate_to_a_few_units_in_the_last_place(compiled):
    """With logits (x, 0) and answer 1 the gradient of x is e^x / (e^x + 1)."""
    x = torch.cat([-torch.linspace(0, 87.3, 200_001), torch.linspace(-1e-3, 0, 1001)])[:, None, None]
    logits = torch.cat([x, torch.zeros_like(x)], -1).requires_grad_()
    _, _, grad = run(logits, torch.ones(len(x), 1, dtype=torch.int64))  # a model per row: no division by N
    exact = torch.sigmoid(x.double())[..., 0]
    ulps = (grad[..., 0].double() / exact - 1).abs().max().item() * 2**24
    assert ulps < 6  # e^x 2, and a sum, a division and two products of half each
    below = torch.tensor([[[-87.4, 0.0], [-1e30, 0.0], [-torch.inf, 0.0]]], requires_grad=True)
    assert torch.equal(run(below, torch.ones(1, 3, dtype=torch.int64))[2][..., 0], torch.zeros(1, 3))


@pytest.mark.parametrize("classes", [1, 2, 5, 97])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nan_and_inf_are_not_hidden(bad, loss, classes, each_backend):
    for at in {0, classes // 2, classes - 1}:
        for answer in {0, classes - 1}:
            logits = torch.zeros(2, 3, classes)
            logits[1, 2, at] = bad
            values, accuracy = classify(logits, torch.full((2, 3), answer), loss=loss)
            assert values[0].isfinite()
            assert not values[1].isfinite()
            assert bad == torch.inf or values[1].isnan()
            assert accuracy[0] == (answer == 0)  # the neighbour's own


def test_a_class_of_probability_zero(each_backend):
    logits = torch.tensor([[[-torch.inf, 0.0]]], requires_grad=True)
    values, _, grad = run(logits, torch.tensor([[1]]))
    assert values == 0
    assert torch.equal(grad, torch.zeros(1, 1, 2))
    assert run(logits, torch.tensor([[0]]))[0] == torch.inf


def test_no_gradient_is_worked_out_where_none_is_wanted(compiled, monkeypatch):
    grads, call = [], compiled.classify
    monkeypatch.setattr(compiled, "classify", lambda *a: (grads.append(a[3]), call(*a)))
    logits, target = inputs()
    with torch.no_grad():
        quiet = classify(logits, target)
    detached = classify(logits.detach(), target)
    wanted = classify(logits, target)
    assert [t is not None for t in grads] == [False, False, True]
    assert torch.equal(quiet[0], wanted[0])
    assert torch.equal(detached[0], wanted[0])
    assert not quiet[0].requires_grad
    assert wanted[0].requires_grad
    assert not wanted[1].requires_grad


def test_backward_may_run_again(each_backend):
    logits, target = inputs(2)
    values, _ = classify(logits, target)
    values.sum().backward(retain_graph=True)
    first = logits.grad.clone()
    logits.grad.mul_(7)  # somebody scales or clips in place
    values.sum().backward()
    torch.testing.assert_close(logits.grad, 8 * first)


def test_a_second_derivative_is_refused_on_the_fast_path(compiled):
    logits, target = inputs()
    (grad,) = torch.autograd.grad(classify(logits, target)[0].square().sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
    with backend.using("reference"):
        (grad,) = torch.autograd.grad(classify(logits, target)[0].square().sum(), logits, create_graph=True)
        grad.square().sum().backward()
    assert logits.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("value", [97, -1, -100, 2**40])
def test_a_target_out_of_range_is_refused(value, loss, dtype, each_backend):
    logits, target = inputs(2, dtype=dtype)
    target[1, 60] = value
    with pytest.raises(IndexError, match=rf"^target must be in \[0, 97\), got {value}$"):
        classify(logits, target, loss=loss)


TARGET = torch.zeros(2, 7, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(7, 3)}, r"logits must be \[E, N, C\], not empty, of a float dtype, got \(7, 3\)"),
        ({"logits": torch.zeros(2, 0, 3)}, r"logits must be .*not empty.* got \(2, 0, 3\)"),
        ({"logits": torch.zeros(2, 7, 0)}, r"logits must be .*not empty.* got \(2, 7, 0\)"),
        ({"logits": torch.zeros(2, 7, 3, dtype=torch.int64)}, r"logits must be .* got \(2, 7, 3\) torch.int64"),
        ({"target": TARGET[0]}, r"target must be \(2, 7\) torch.int64, got \(7,\)"),
        ({"target": TARGET[:, :6]}, r"target must be \(2, 7\) torch.int64, got \(2, 6\)"),
        ({"target": TARGET.int()}, r"target must be \(2, 7\) torch.int64, got \(2, 7\) torch.int32"),
        ({"target": TARGET.to("meta")}, "target must be on cpu as logits are, got meta"),
        ({"exists": torch.ones(2, 6, dtype=torch.bool)}, r"exists must be \(2, 7\) torch.bool, got \(2, 6\)"),
        ({"exists": TARGET}, r"exists must be \(2, 7\) torch.bool, got \(2, 7\) torch.int64"),
        ({"loss": "mes"}, r"loss must be one of 'cross_entropy', 'mse', got 'mes' \(did you mean 'mse'\?\)"),
    ],
)
def test_bad_input_is_named(change, message, each_backend):
    with pytest.raises(ValueError, match=message):
        classify(**({"logits": torch.zeros(2, 7, 3), "target": TARGET} | change))


def test_odd_strides_are_read_right(each_backend):
    logits, target = inputs(2, 30, 11)
    expected = run(logits, target)
    apart = logits.detach().repeat_interleave(2, -1)[..., ::2].requires_grad_()
    turned = target.T.contiguous().T
    assert all(map(torch.equal, run(apart, turned), expected))
    negated = torch._neg_view(-logits.detach())
    torch.testing.assert_close(classify(negated, target)[0], expected[0])
    same = logits[:1].expand(2, 30, 11)
    assert torch.equal(classify(same, target[:1].expand(2, 30))[0], expected[0][:1].expand(2))


def test_a_default_device_or_dtype_does_not_mislead(each_backend):
    expected, arguments = run(*inputs(2)), inputs(2)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            got = run(*arguments)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(map(torch.equal, got, expected))


def test_tensors_without_memory_never_reach_the_kernel(each_backend):
    with FakeTensorMode():
        loss, accuracy = classify(torch.zeros(2, 7, 3), torch.zeros(2, 7, dtype=torch.int64))
    assert loss.shape == accuracy.shape == (2,)
    assert classify(torch.zeros(2, 7, 3, device="meta"), TARGET.to("meta"))[0].shape == (2,)
