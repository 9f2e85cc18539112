"""ops.layer_norm's Triton kernels, in the interpreter without a GPU, against fp64."""

import pytest
import torch

from grokfast import backend
from grokfast.ops import layer_norm
from grokfast.ops.layer_norm import MAX_WIDTH, _layer_norm, _layer_norm_backward

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton")
pytestmark = pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")  # NumPy, of rows that do not exist


def inputs(n=37, d=24, models=None, dtype=torch.float32):
    g, lead = torch.Generator().manual_seed(0), () if models is None else (models,)
    drawn = [torch.randn(shape, generator=g) + 2 for shape in ((*lead, n, d), (*lead, d), (*lead, d))]
    return [t.to(DEVICE, dtype).requires_grad_() for t in drawn]


def run(tensors, **options):
    """Output and gradients of every tensor."""
    out = layer_norm(*tensors, **options)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return [out.detach(), *torch.autograd.grad(out, tensors, grad)]


def compare(tensors, judge, **options):
    got = run(tensors, backend="triton", **options)
    by_torch = run(tensors, backend="reference", **options)
    exact = run([t.detach().double().requires_grad_() for t in tensors], backend="reference", **options)
    judge(got[0], by_torch[0], exact[0])
    for one, two, truth in zip(got[1:], by_torch[1:], exact[1:]):
        judge(one, two, truth, factor=3)  # flash-attention's factor for gradients
    return got


@pytest.mark.parametrize("models", [None, 3])
@pytest.mark.parametrize(("n", "d"), [(1, 1), (1, 2), (63, 33), (100, 128), (5, 1000), (130, 7)])
def test_as_good_as_torch(n, d, models, judge, poisoned):
    compare(inputs(n, d, models), judge)
    if models is None and d > 2:
        compare(inputs(n, d), judge, eps=0.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_tensors(dtype, judge, poisoned):
    assert all(t.dtype == dtype for t in compare(inputs(63, 40, dtype=dtype), judge))


def test_an_ensemble_is_its_models(poisoned):
    tensors = inputs(19, 16, models=3)
    together = run(tensors, backend="triton")
    for e in range(3):
        assert torch.equal(layer_norm(*(t[e] for t in tensors), backend="triton"), together[0][e])


def test_rows_of_any_shape():
    x, weight, bias = inputs(30)
    expected = layer_norm(x, weight, bias, backend="triton")
    assert torch.equal(layer_norm(x.view(2, 3, 5, 24), weight, bias, backend="triton").view(30, 24), expected)
    assert torch.equal(layer_norm(x[7], weight, bias, backend="triton"), expected[7])
    assert not any(g.any() for g in run(inputs(0), backend="triton")[2:])


def test_strided_input_is_read_right():
    tensors = inputs(30)
    expected = run(tensors, backend="triton")
    wide = torch.randn(30, 60, device=DEVICE)
    wide[:, 3:27] = tensors[0].detach()
    apart = tensors[0].detach().repeat_interleave(2, -1)[:, ::2]
    for x in (wide[:, 3:27], apart):
        assert all(map(torch.equal, run([x.requires_grad_(), *tensors[1:]], backend="triton"), expected))
    x, *weights = inputs(30, models=2)
    shared = x[:1].detach().expand(2, 30, 24)
    expected = layer_norm(shared.clone(), *weights, backend="triton")
    assert torch.equal(layer_norm(shared, *weights, backend="triton"), expected)


def test_the_same_bits_twice():
    first, second = (run(inputs(300, 8), backend="triton") for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_nan_stays_in_its_row():
    x, weight, bias = inputs()
    x.data[5, 3] = torch.nan
    out, grad_x, *_ = run([x, weight, bias], backend="triton")
    for t in (out, grad_x):
        assert t.isnan().any(1).nonzero().tolist() == [[5]]


def test_autocast_takes_fp32_as_torch_does_on_a_gpu():
    x, weight, bias = inputs()
    for name in ("triton", "reference"):
        with torch.autocast(DEVICE, torch.bfloat16):
            out = layer_norm(x.bfloat16(), weight.bfloat16(), bias.bfloat16(), backend=name)
        expected = layer_norm(*(t.bfloat16().float() for t in (x, weight, bias)), backend=name)
        assert torch.equal(out, expected)


def test_opcheck():
    tensors = inputs(17, 16, models=2)
    torch.library.opcheck(_layer_norm, (*tensors, 1e-5))
    x, weight, _ = (t.detach() for t in tensors)
    torch.library.opcheck(_layer_norm_backward, (torch.randn_like(x), x, weight, 1e-5))


@pytest.mark.parametrize("name", ["triton", "reference", None])
def test_compiles_into_one_graph(name):
    torch.compiler.reset()
    compiled = torch.compile(lambda *t: layer_norm(*t, backend=name) * 2, fullgraph=True, backend="aot_eager")
    tensors = inputs()
    out, expected = compiled(*tensors), layer_norm(*tensors, backend=name) * 2
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out)
    for one, two in zip(*(torch.autograd.grad(t, tensors, grad) for t in (out, expected))):
        torch.testing.assert_close(one, two)


def test_a_second_derivative_is_refused():
    x, *rest = inputs()
    out = layer_norm(x, *rest, backend="triton").square().sum()
    (grad,) = torch.autograd.grad(out, x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"ops\.layer_norm are differentiable once; backend='reference' any number"):
        grad.sum().backward()


def test_what_the_kernels_do_not_take():
    wide = inputs(2, MAX_WIDTH + 1)
    with pytest.raises(ValueError, match=rf"'triton' cannot run ops\.layer_norm here: .* up to {MAX_WIDTH}, got"):
        layer_norm(*wide, backend="triton")
    with backend.using("triton"), pytest.warns(UserWarning, match=r"ops\.layer_norm runs on plain PyTorch"):
        layer_norm(*wide)
