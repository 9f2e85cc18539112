"""ops.linear_cross_entropy: the plain path against torch, the kernels (interpreted without a GPU) against fp64."""

import sys

import pytest
import torch
import torch.nn.functional as F

from grokfast import backend
from grokfast.ops import linear_cross_entropy
from grokfast.ops.linear_cross_entropy import MAX_WIDTH, _linear_cross_entropy, _linear_cross_entropy_backward
from grokfast.ops.linear_cross_entropy.reference import LOSSES
from tests.tf32 import torch_at

HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")  # NumPy, of the NaN that are meant


@pytest.fixture
def triton():
    return pytest.importorskip("triton")


def inputs(n=37, d=24, classes=29, models=None, dtype=torch.float32, scale=1.0):
    g = torch.Generator().manual_seed(0)
    lead = () if models is None else (models,)
    x = scale * torch.randn(*lead, n, d, generator=g)
    weight = 2 * d**-0.5 * torch.randn(*lead, classes, d, generator=g)
    target = torch.randint(classes, (*lead, n), generator=g)
    return [x.to(DEVICE, dtype).requires_grad_(), weight.to(DEVICE, dtype).requires_grad_(), target.to(DEVICE)]


def run(tensors, **options):
    """Loss, accuracy, gradients of x and weight."""
    loss, accuracy = linear_cross_entropy(*tensors, return_accuracy=True, **options)
    grad = torch.rand(loss.shape, generator=torch.Generator().manual_seed(1)).to(loss) + 0.5
    return [loss.detach(), accuracy, *torch.autograd.grad(loss, tensors[:2], grad)]


def doubled(tensors):
    x, weight, target = tensors
    return [x.detach().double().requires_grad_(), weight.detach().double().requires_grad_(), target]


def compare(tensors, judge, **options):
    got = run(tensors, backend="triton", **options)
    by_torch = run(tensors, backend="reference", **options)
    exact = run(doubled(tensors), backend="reference", **options)
    judge(got[0], by_torch[0], exact[0])
    for one, two, truth in zip(got[2:], by_torch[2:], exact[2:]):
        judge(one, two, truth, factor=3)  # flash-attention's factor for gradients
    return got[1], by_torch[1], exact[1]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("precision", ["ieee", "tf32x3"])
def test_kernels_are_as_good_as_torch(loss, reduction, precision, triton, judge, poisoned):
    got, _, exact = compare(inputs(), judge, loss=loss, reduction=reduction, precision=precision)
    torch.testing.assert_close(got.double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("n", "d", "classes"), [(1, 1, 1), (3, 5, 2), (63, 16, 97), (100, 33, 17), (21, 130, 64), (70, 7, 130)]
)
def test_odd_sizes(n, d, classes, loss, triton, judge, poisoned, products_of_any_shape_alike):
    got, _, exact = compare(inputs(n, d, classes), judge, loss=loss, reduction="none")
    assert torch.equal(got.double(), exact)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_low_precision_is_as_good_as_torch_at_it(precision, triton, judge, poisoned):
    with torch_at(precision):
        compare(inputs(63, 32, 48), judge, precision=precision)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", LOSSES)
def test_16_bit_tensors_give_an_fp32_loss(loss, dtype, triton, judge, poisoned):
    tensors = inputs(63, 32, 48, dtype=dtype)
    compare(tensors, judge, loss=loss)
    for name in ("triton", "reference"):
        loss, accuracy, *grads = run(tensors, backend=name)
        assert loss.dtype == accuracy.dtype == torch.float32
        assert all(g.dtype == dtype for g in grads)


def test_an_ensemble_is_its_models(triton, judge, poisoned):
    tensors = inputs(19, 16, 32, models=3)
    compare(tensors, judge)
    together = run(tensors, backend="triton", reduction="none")
    for e in range(3):
        alone = linear_cross_entropy(*(t[e] for t in tensors), backend="triton", reduction="none")
        assert torch.equal(alone, together[0][e])
    assert linear_cross_entropy(*tensors).shape == (3,)


@pytest.mark.parametrize("scale", [1e3, 30.0, 1e-20, 0.0])
@pytest.mark.parametrize("loss", LOSSES)
def test_extreme_logits(scale, loss, triton, judge):
    x, weight, target = inputs(scale=scale)
    if scale >= 1:  # whole numbers, so that the logits are exact and only what follows is judged
        x, weight = x.detach().round().requires_grad_(), weight.detach().mul(4).round().requires_grad_()
    compare([x, weight, target], judge, loss=loss)


def test_of_equal_logits_the_first_counts(triton):
    x = torch.ones(4, 1, device=DEVICE)
    weight = torch.tensor([0.0] * 40 + [1.0, 0.5, 1.0], device=DEVICE)[:, None]
    target = torch.tensor([40, 42, 0, 41], device=DEVICE)
    for name in ("triton", "reference"):
        options = {"reduction": "none", "return_accuracy": True, "backend": name}
        assert linear_cross_entropy(x, weight, target, **options)[1].tolist() == [1, 0, 0, 0]
        assert linear_cross_entropy(0 * x, weight, target, **options)[1].tolist() == [0, 0, 1, 0]


def test_the_definition():
    x, weight, target = inputs(dtype=torch.float64)
    logits, one_hot = x @ weight.T, F.one_hot(target, 29).double()
    s = torch.where(logits >= 0, logits + 1, 1 / (1 - logits))
    expected = {
        "cross_entropy": F.cross_entropy(logits, target),
        "stablemax": -(s / s.sum(-1, keepdim=True)).gather(-1, target[:, None]).log().mean(),
        "mse": F.mse_loss(logits, one_hot),
    }
    for loss in LOSSES:
        value, accuracy = linear_cross_entropy(x, weight, target, loss=loss, return_accuracy=True)
        torch.testing.assert_close(value, expected[loss])
        assert accuracy == (logits.argmax(-1) == target).double().mean()
        rows = linear_cross_entropy(x, weight, target, loss=loss, reduction="none")
        torch.testing.assert_close(linear_cross_entropy(x, weight, target, loss=loss, reduction="sum"), rows.sum())


@pytest.mark.parametrize("models", [None, 2])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradcheck(loss, models):
    x, weight, target = inputs(3, 4, 5, models, torch.float64)
    check = [lambda a, b: linear_cross_entropy(a, b, target, loss=loss), (x, weight)]
    assert torch.autograd.gradcheck(*check)
    assert torch.autograd.gradgradcheck(*check)
    at_zero = torch.autograd.grad(linear_cross_entropy(0 * x, weight, target, loss="stablemax").sum(), x)[0]
    assert at_zero.isfinite().all()


def test_strided_input_is_read_right(triton):
    x, weight, target = inputs(30)
    expected = run([x, weight, target], backend="triton")
    wide = torch.randn(30, 60, device=DEVICE)
    wide[:, 3:27] = x.detach()
    apart = x.detach().repeat_interleave(2, -1)[:, ::2]
    answers = target.repeat_interleave(2)[::2]
    for same in (wide[:, 3:27], apart, x.detach().T.contiguous().T):
        assert all(map(torch.equal, run([same.requires_grad_(), weight, answers], backend="triton"), expected))
    x, weight, target = inputs(30, models=2)
    table = torch.randn(2, 40, 24, device=DEVICE)
    table[:, :29] = weight.detach()  # a tied unembedding: some rows of the embedding
    expected = run([x, weight, target], backend="triton")
    assert all(map(torch.equal, run([x, table[:, :29].requires_grad_(), target], backend="triton"), expected))


@pytest.mark.parametrize("n", [100, 300])
def test_the_same_bits_twice(n, triton):
    first, second = (run(inputs(n, 8, 16), backend="triton") for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_only_the_gradients_that_are_wanted(triton):
    x, weight, target = inputs()
    *_, grad_x, grad_weight = run([x, weight, target], backend="triton", reduction="sum")
    scale = torch.rand((), generator=torch.Generator().manual_seed(1)).item() + 0.5
    (linear_cross_entropy(x, weight.detach(), target, reduction="sum", backend="triton") * scale).backward()
    (linear_cross_entropy(x.detach(), weight, target, reduction="sum", backend="triton") * scale).backward()
    assert torch.equal(x.grad, grad_x)
    assert torch.equal(weight.grad, grad_weight)
    loss, accuracy = linear_cross_entropy(x, weight, target, return_accuracy=True, backend="triton")
    assert loss.requires_grad
    assert not accuracy.requires_grad


def test_a_second_derivative_is_refused_by_the_kernels(triton):
    x, *rest = inputs()
    (grad,) = torch.autograd.grad(linear_cross_entropy(x, *rest, backend="triton"), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"ops\.linear_cross_entropy are differentiable once; backend='reference'"):
        grad.sum().backward()


def test_autocast(triton):
    x, weight, target = inputs()
    for name in ("triton", "reference"):
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = linear_cross_entropy(x, weight, target, backend=name)
        assert loss.dtype == torch.float32
        half = linear_cross_entropy(x.detach().bfloat16(), weight.detach().bfloat16(), target, backend=name)
        assert torch.equal(loss, half)
        loss.backward()
        assert x.grad.dtype == torch.float32


def test_opcheck(triton):
    x, weight, target = (t.detach() for t in inputs(17, 16, 16, models=2))
    leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
    for with_logits in (False, True):
        torch.library.opcheck(_linear_cross_entropy, (*leaves, target, "stablemax", "ieee", with_logits))
    rows, _, *norm, logits = _linear_cross_entropy(x, weight, target, "cross_entropy", "ieee", True)
    for wanted, of_logits in (([True, True], torch.rand_like(logits)), ([False, True], None)):
        arguments = (torch.rand_like(rows), of_logits, x, weight, target, *norm, "cross_entropy", "ieee", wanted)
        torch.library.opcheck(_linear_cross_entropy_backward, arguments)


def with_logits(tensors, wants_loss=True, **options):
    """Logits, and gradients of x and weight from the logits' and, if wanted, the loss's."""
    loss, logits = linear_cross_entropy(*tensors, return_logits=True, **options)
    g = torch.Generator().manual_seed(1)
    total = (logits * torch.randn(logits.shape, generator=g).to(logits)).sum() + (loss.sum() if wants_loss else 0)
    return [logits.detach(), *torch.autograd.grad(total, tensors[:2])]


@pytest.mark.parametrize("models", [None, 2])
@pytest.mark.parametrize("loss", LOSSES)
def test_logits_on_request_and_their_gradient(loss, models, triton, judge, poisoned):
    tensors = inputs(37, 24, 29, models)
    for options in ({"reduction": "sum"}, {"wants_loss": False}):
        options |= {"loss": loss}
        got = with_logits(tensors, backend="triton", **options)
        by_torch = with_logits(tensors, backend="reference", **options)
        exact = with_logits(doubled(tensors), backend="reference", **options)
        torch.testing.assert_close(exact[0], tensors[0].double() @ tensors[1].double().mT)
        for one, two, truth in zip(got, by_torch, exact):
            judge(one, two, truth, factor=3)
    for name in ("triton", "reference", None):
        loss_alone, accuracy, logits = linear_cross_entropy(
            *tensors, loss=loss, return_accuracy=True, return_logits=True, backend=name
        )
        assert torch.equal(loss_alone, linear_cross_entropy(*tensors, loss=loss, backend=name))
        assert torch.equal(accuracy, (logits.argmax(-1) == tensors[2]).float().mean(-1))
        grads = torch.autograd.grad(loss_alone.sum(), tensors[:2])  # logits that nothing depends on
        expected = torch.autograd.grad(linear_cross_entropy(*tensors, loss=loss, backend=name).sum(), tensors[:2])
        assert all(map(torch.equal, grads, expected))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_16_bit_tensors_are_fp32(dtype, triton, judge, poisoned):
    tensors = inputs(33, 32, 20, dtype=dtype)
    got, by_torch = (with_logits(tensors, backend=name) for name in ("triton", "reference"))
    for one, two, truth in zip(got, by_torch, with_logits(doubled(tensors), backend="reference")):
        assert one.dtype == two.dtype
        judge(one, two, truth, factor=3)
    assert got[0].dtype == torch.float32


@pytest.mark.parametrize("models", [None, 2])
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_extension_is_as_good_as_torch(reduction, loss, models, compiled, judge, poisoned, monkeypatch):
    tensors = [t.detach().cpu().requires_grad_(t.is_floating_point()) for t in inputs(63, 24, 29, models)]
    options = {"loss": loss, "reduction": reduction}
    got, by_torch = (run(tensors, backend=name, **options) for name in (None, "reference"))
    assert torch.equal(got[1], by_torch[1])
    for i in (0, 2, 3):
        judge(got[i], by_torch[i], run(doubled(tensors), **options)[i], factor=3)
    for one, two in zip(with_logits(tensors, **options), with_logits(tensors, **options, backend="reference")):
        torch.testing.assert_close(one, two)
    monkeypatch.delattr(sys.modules["grokfast.ops.linear_cross_entropy"], "loss_of")  # the plain path
    assert torch.equal(run(tensors, **options)[0], got[0])


@pytest.mark.parametrize("name", ["triton", "reference", None])
def test_compiles_into_one_graph(name, triton):
    torch.compiler.reset()
    options = {"return_accuracy": True, "return_logits": True, "backend": name}
    compiled = torch.compile(lambda *t: linear_cross_entropy(*t, **options), fullgraph=True, backend="aot_eager")
    tensors = inputs()
    got, expected = compiled(*tensors), linear_cross_entropy(*tensors, **options)
    torch.testing.assert_close(got, expected)
    for one, two in zip(*(torch.autograd.grad(t[0] + t[2].sum(), tensors[:2]) for t in (got, expected))):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


def test_nan_is_not_hidden(triton):
    for name in ("triton", "reference"):
        for loss in LOSSES:
            x, weight, target = inputs()
            x.data[5, 3] = torch.nan
            rows = linear_cross_entropy(x, weight, target, loss=loss, reduction="none", backend=name)
            assert rows.isnan().nonzero().tolist() == [[5]]


@pytest.mark.parametrize("value", [29, -1, -100, 2**40])
def test_a_target_out_of_range(value, triton):
    x, weight, target = inputs()
    target[7] = value
    if not HAS_GPU:
        for name in ("triton", "reference"):
            with pytest.raises(IndexError, match=rf"^target must be in \[0, 29\), got {value}$"):
                linear_cross_entropy(x, weight, target, backend=name)
    for loss in LOSSES:  # as on a GPU, where nobody looks
        rows, right, *_ = _linear_cross_entropy(x[None], weight[None], target[None], loss, "ieee", False)
        assert rows[0].isnan().nonzero().tolist() == [[7]]
        assert right[0, 7] == 0
        assert torch.autograd.grad(rows.sum(), x)[0].isnan().all(1).nonzero().tolist() == [[7]]


def test_what_the_kernels_do_not_take(triton):
    wide = inputs(3, MAX_WIDTH + 1, 8)
    with pytest.raises(ValueError, match=r"'triton' cannot run ops\.linear_cross_entropy .* d up to 512, got 513"):
        linear_cross_entropy(*wide, backend="triton")
    with backend.using("triton"), pytest.warns(UserWarning, match=r"ops\.linear_cross_entropy runs on plain PyTorch"):
        linear_cross_entropy(*wide)


TARGET = torch.zeros(7, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": None}, TypeError, r"x must be a tensor, got None \(NoneType\)"),
        ({"x": torch.zeros(3)}, ValueError, r"x must be \[..., N, d\], got \(3,\)"),
        ({"x": torch.zeros(0, 3), "target": TARGET[:0]}, ValueError, r"x and weight must not be empty, got \(0, 3\)"),
        ({"weight": torch.zeros(4, 2)}, ValueError, r"weight must be \[V, 3\], got \(4, 2\)"),
        ({"weight": torch.zeros(4, 3).int()}, TypeError, "weight must be of a float dtype, got torch.int32"),
        ({"weight": torch.zeros(2, 4, 3)}, ValueError, r"x must be \[2, \.\.\., 3\] as weight is .*, got \(7, 3\)"),
        ({"weight": torch.zeros(4, 3, device="meta")}, ValueError, "weight must be on cpu .*, got meta"),
        ({"target": TARGET[:6]}, ValueError, r"target must be \(7,\) torch.int64, got \(6,\)"),
        ({"target": TARGET.int()}, ValueError, "target must be .* got .* torch.int32"),
        ({"target": TARGET.to("meta")}, ValueError, "target must be on cpu as x is, got meta"),
        ({"target": [0] * 7}, TypeError, "target must be a tensor"),
        ({"loss": "mes"}, ValueError, r"loss must be one of .*'mes' \(did you mean 'mse'\?\)"),
        ({"reduction": "avg"}, ValueError, "reduction must be one of 'mean', 'sum', 'none', got 'avg'"),
        ({"return_accuracy": 1}, TypeError, r"return_accuracy must be True or False, got 1 \(int\)"),
        ({"return_logits": None}, TypeError, r"return_logits must be True or False, got None \(NoneType\)"),
        ({"precision": "fp8"}, ValueError, "precision must be one of"),
    ],
)
def test_bad_input_is_named(change, error, message):
    good = {"x": torch.zeros(7, 3), "weight": torch.zeros(4, 3), "target": TARGET}
    with pytest.raises(error, match=message):
        linear_cross_entropy(**(good | change))
