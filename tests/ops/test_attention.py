"""ops.attention: the plain path against torch, the kernels (in Triton's interpreter without a GPU) against fp64."""

import pytest
import torch
import torch.nn.functional as F

from grokfast import backend
from grokfast.ops import attention
from grokfast.ops.attention import _attention, _attention_backward
from tests.tf32 import torch_at

HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")  # NumPy, of the NaN that are meant


@pytest.fixture
def triton():
    return pytest.importorskip("triton")


def inputs(*shape, dtype=torch.float32, scale=1.0):
    g = torch.Generator().manual_seed(0)
    return [(scale * torch.randn(shape, generator=g)).to(DEVICE, dtype).requires_grad_() for _ in range(3)]


def run(tensors, **options):
    """Output and gradients of q, k, v."""
    out = attention(*tensors, **options)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return [out.detach(), *torch.autograd.grad(out, tensors, grad)]


def compare(tensors, judge, **options):
    got = run(tensors, backend="triton", **options)
    by_torch = run(tensors, backend="reference", **options)
    exact = run([t.detach().double().requires_grad_() for t in tensors], backend="reference", **options)
    judge(got[0], by_torch[0], exact[0])
    for one, two, truth in zip(got[1:], by_torch[1:], exact[1:]):
        judge(one, two, truth, factor=3)  # flash-attention's factor for gradients


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [1, 2, 3, 5, 16, 23, 33, 64])
def test_kernels_are_as_good_as_torch(length, causal, triton, judge, poisoned):
    compare(inputs(3 if length < 16 else 1, 3, length, 32), judge, causal=causal)


@pytest.mark.parametrize("d_head", [1, 16, 40, 128])
@pytest.mark.parametrize("precision", ["ieee", "tf32x3"])
def test_odd_heads(d_head, precision, triton, judge, poisoned):
    compare(inputs(2, 5, 3, d_head), judge, precision=precision)
    compare(inputs(1, 1, 37, d_head), judge, precision=precision, scale=0.3)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_low_precision_is_as_good_as_torch_at_it(precision, triton, judge, poisoned):
    with torch_at(precision):
        for shape in ((7, 4, 5, 32), (1, 2, 40, 32)):
            compare(inputs(*shape), judge, precision=precision)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_tensors(dtype, triton, judge, poisoned):
    for shape in ((7, 4, 5, 32), (1, 2, 40, 32)):
        tensors = inputs(*shape, dtype=dtype)
        compare(tensors, judge)
        assert all(t.dtype == dtype for t in run(tensors, backend="triton"))


@pytest.mark.parametrize("scale", [100.0, 1e-20])
def test_extreme_scores(scale, triton, judge):
    tensors = inputs(2, 2, 5, 16, scale=scale)
    if scale > 1:  # whole numbers, so that the scores are exact and only what follows is judged
        tensors = [t.detach().round().requires_grad_() for t in tensors]
    compare(tensors, judge, scale=0.25)


@pytest.mark.parametrize("causal", [True, False])
def test_the_definition(causal):
    q, k, v = inputs(2, 3, 5, 16, dtype=torch.float64)
    for scale in (None, 0.1):
        expected = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
        torch.testing.assert_close(attention(q, k, v, causal=causal, scale=scale), expected)


@pytest.mark.parametrize("causal", [True, False])
def test_gradcheck(causal):
    tensors = inputs(2, 2, 3, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *t: attention(*t, causal=causal), tensors)
    assert torch.autograd.gradgradcheck(lambda *t: attention(*t, causal=causal), tensors)


@pytest.mark.skipif(HAS_GPU, reason="torch's own kernel is for a CPU")
@pytest.mark.parametrize("mask", [None, (1, 1), (2, 3)])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [1, 3, 23, 64, 100])
def test_on_a_cpu_it_is_as_good_as_torchs(length, causal, mask, judge, poisoned):
    tensors, seen = inputs(2, 3, length, 32), None
    if mask:
        seen = torch.rand(*mask, length, length, generator=torch.Generator().manual_seed(2)) < 0.7
        seen[..., 0] = True
    got = run(tensors, causal=causal, attn_mask=seen)
    if seen is not None and causal:
        seen = seen & torch.ones(length, length, dtype=torch.bool).tril()
    grad = torch.randn(got[0].shape, generator=torch.Generator().manual_seed(1))
    results = []
    for dtype in (torch.float32, torch.float64):
        ts = [t.detach().to(dtype).requires_grad_() for t in tensors]
        out = F.scaled_dot_product_attention(*ts, attn_mask=seen, is_causal=causal and seen is None)
        results.append([out.detach(), *torch.autograd.grad(out, ts, grad.to(dtype))])
    for one, two, right in zip(got, *results):
        judge(one, two, right)
        torch.testing.assert_close(one.double(), right, rtol=1e-5, atol=1e-5)


HALF, ONE = torch.tensor([[True, False], [True, True]]), torch.tensor([[True, False], [False, False]])


@pytest.mark.parametrize("seen", [None, HALF, ONE])
@pytest.mark.parametrize("wanted", ["qkv", "q", "kv"])
def test_a_second_derivative_in_fp32(wanted, seen, judge):
    def second(dtype, backend):
        tensors = dict(zip("qkv", inputs(2, 3, 2, 8, dtype=dtype)))
        for name, t in tensors.items():
            t.requires_grad_(name in wanted)
        leaves = [tensors[name] for name in wanted]
        mask = None if seen is None else seen.to(DEVICE)
        out = attention(*(2 * t for t in tensors.values()), attn_mask=mask, causal=seen is None, backend=backend)
        grads = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
        norm = sum(g.square().sum() for g in grads)
        return [
            *(g.detach() for g in grads),
            *torch.autograd.grad(norm, leaves, allow_unused=True, materialize_grads=True),
        ]

    exact = second(torch.float64, "reference")
    scale = max(right.abs().max().item() for right in exact)
    for got, by_torch, right in zip(second(torch.float32, None), second(torch.float32, "reference"), exact):
        if seen is not ONE:
            judge(got, by_torch, right, factor=3)
        else:  # of a single key: plain PyTorch is exact there by luck, the other's terms cancel only to rounding
            torch.testing.assert_close(got.double(), right, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.skipif(HAS_GPU, reason="plain PyTorch on a CPU")
def test_all_of_torchs_derivatives_in_fp32():
    q, k, v = (t.detach() for t in inputs(2, 3, 5, 8))

    def f(q, backend=None):
        return attention(q, k, v, backend=backend)

    def slope(q, backend=None):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(q, torch.ones_like(q))
            return torch.autograd.forward_ad.unpack_dual(f(dual, backend)).tangent

    def hessian(q, backend=None):
        return torch.func.hessian(lambda q: f(q, backend).square().sum())(q)

    many = torch.stack([q, 2 * q])
    torch.testing.assert_close(torch.func.vmap(f)(many), torch.stack([f(q), f(2 * q)]))
    for transform in (slope, hessian, lambda q, b=None: torch.func.grad(lambda q: f(q, b).square().sum())(q)):
        torch.testing.assert_close(transform(q), transform(q, "reference"))


def test_masks_and_dropout_are_torchs():
    q, k, v = inputs(2, 2, 3, 5, 16)
    mask = torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(2)).to(DEVICE) < 0.7
    mask[..., 0] = True
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    for backend_name in (None, "reference"):
        torch.testing.assert_close(attention(q, k, v, attn_mask=mask, causal=False, backend=backend_name), expected)
        results = []
        for function in (F.scaled_dot_product_attention, attention):
            torch.manual_seed(0)
            ours = function is attention
            how = (
                {"dropout": 0.4, "causal": True, "backend": backend_name}
                if ours
                else {"dropout_p": 0.4, "is_causal": True}
            )
            results.append(function(q, k, v, **how))
        if not HAS_GPU:
            torch.testing.assert_close(*results)
    blind = torch.zeros(5, 5, dtype=torch.bool, device=DEVICE)
    for backend_name in (None, "reference"):
        out = attention(q, k, v, attn_mask=blind, backend=backend_name)
        assert not out.any()
        assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), (q, k, v)))


def test_the_kernels_know_neither_masks_nor_dropout(triton):
    tensors, mask = inputs(1, 1, 3, 16), torch.ones(3, 3, dtype=torch.bool, device=DEVICE)
    for option in ({"attn_mask": mask}, {"dropout": 0.1}):
        with pytest.raises(ValueError, match="they take neither attn_mask nor dropout"):
            attention(*tensors, backend="triton", **option)


def test_any_axes_in_front(triton):
    tensors = inputs(6, 2, 4, 16)
    for name in ("triton", "reference"):
        expected = run(tensors, backend=name)
        apart = [t.detach().view(3, 2, 2, 4, 16).requires_grad_() for t in tensors]
        torch.testing.assert_close(attention(*apart, backend=name).view(6, 2, 4, 16), expected[0])
        one = attention(*(t[0] for t in tensors), backend=name)
        torch.testing.assert_close(one, expected[0][0])
        assert attention(*(t[:0] for t in tensors), backend=name).shape == (0, 2, 4, 16)


def test_strided_input_is_read_right(triton):
    q, k, v = inputs(5, 3, 4, 16)
    expected = run([q, k, v], backend="triton")
    packed = torch.stack([t.detach().transpose(1, 2) for t in (q, k, v)], 2)  # [B, T, 3, H, dh]
    parts = [packed[:, :, i].transpose(1, 2).requires_grad_() for i in range(3)]
    assert not parts[0].is_contiguous()
    assert all(map(torch.equal, run(parts, backend="triton"), expected))
    apart = [t.detach().repeat_interleave(2, -1)[..., ::2].requires_grad_() for t in (q, k, v)]
    assert all(map(torch.equal, run(apart, backend="triton"), expected))
    out = attention(q, k, v, backend="triton")
    assert out.transpose(1, 2).is_contiguous()
    out.sum().backward()  # its gradient is one number, expanded
    torch.testing.assert_close(q.grad, torch.autograd.grad(attention(q, k, v, backend="reference").sum(), q)[0])


def test_the_same_bits_twice_and_alone(triton):
    first, second = (run(inputs(5, 3, 4, 16), backend="triton") for _ in range(2))
    assert all(map(torch.equal, first, second))
    moved = run([t.detach()[2:].requires_grad_() for t in inputs(5, 3, 4, 16)], backend="triton")[0]
    torch.testing.assert_close(moved, first[0][2:])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("which", range(3))
def test_nan_stays_in_its_sequence_and_shows_there(which, bad, triton):
    tensors = inputs(5, 3, 4, 16)
    expected = run(tensors, backend="triton")
    tensors[which].data[2, 1, 1, 3] = bad
    got = run(tensors, backend="triton")
    for one, before in zip(got, expected):
        others = one.clone()
        others[2, 1] = before[2, 1]
        assert torch.equal(others, before)
    assert not got[0][2, 1].isfinite().all() or not all(g[2, 1].isfinite().all() for g in got[1:])
    assert bad == torch.inf or got[0][2, 1].isnan().any()


def test_a_nan_in_the_gradient_stays_in_its_sequence(triton):
    tensors = inputs(5, 3, 4, 16)
    out = attention(*tensors, backend="triton")
    grad = torch.ones_like(out)
    grad[2, 1, 1, 3] = torch.nan
    for g in torch.autograd.grad(out, tensors, grad):
        assert g.isnan().flatten(2).any(-1).nonzero().tolist() == [[2, 1]]


def test_a_second_derivative_is_refused_by_the_kernels(triton):
    q, k, v = inputs(2, 2, 4, 16)
    (grad,) = torch.autograd.grad(attention(q, k, v, backend="triton").sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match=r"ops\.attention are differentiable once; backend='reference' any number"):
        grad.sum().backward()


def test_autocast(triton):
    tensors = inputs(2, 2, 4, 16)
    for name in ("triton", "reference"):
        with torch.autocast(DEVICE, torch.bfloat16):
            out = attention(*tensors, backend=name)
        half = attention(*(t.detach().bfloat16() for t in tensors), backend=name)
        assert torch.equal(out, half)
        out.sum().backward()
        assert tensors[0].grad.dtype == torch.float32


def test_opcheck(triton):
    q, k, v = inputs(2, 2, 4, 16)
    torch.library.opcheck(_attention, (q, k, v, True, 0.25, "ieee"))
    q, k, v = (t.detach() for t in (q, k, v))
    torch.library.opcheck(_attention_backward, (torch.randn_like(q), q, k, v, True, 0.25, "ieee"))


@pytest.mark.parametrize("name", ["triton", "reference", None])
def test_compiles_into_one_graph(name, triton):
    torch.compiler.reset()
    compiled = torch.compile(lambda *t: attention(*t, backend=name) * 2, fullgraph=True, backend="aot_eager")
    tensors = inputs(2, 2, 4, 16)
    out, expected = compiled(*tensors), attention(*tensors, backend=name) * 2
    torch.testing.assert_close(out, expected)
    for one, two in zip(*(torch.autograd.grad(t.sum(), tensors) for t in (out, expected))):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("shape", [(1, 1, 65, 16), (1, 1, 4, 129)])
def test_what_the_kernels_do_not_take_runs_on_pytorch(shape, triton):
    tensors = inputs(*shape)
    with pytest.raises(ValueError, match=rf"T up to 64 and dh up to 128, got T {shape[2]} and dh {shape[3]}"):
        attention(*tensors, backend="triton")
    with backend.using("triton"), pytest.warns(UserWarning, match=r"ops\.attention runs on plain PyTorch"):
        assert attention(*tensors).shape == shape


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"attn_mask": torch.ones(3, 3)}, TypeError, "attn_mask must be a bool tensor, got torch.float32"),
        ({"attn_mask": True}, TypeError, "attn_mask must be a bool tensor, got bool"),
        ({"dropout": 1.0}, ValueError, r"dropout must be in \[0, 1\), got 1.0"),
        ({"dropout": "0"}, TypeError, "dropout must be a number, got '0'"),
        ({"q": [1.0]}, TypeError, r"q must be a tensor, got \[1.0\] \(list\)"),
        ({"q": torch.zeros(4, 8)}, ValueError, r"q must be \[..., H, T, dh\], got \(4, 8\)"),
        ({"k": torch.zeros(2, 5, 8)}, ValueError, r"k must be \[2, 4, 8\], got \(2, 5, 8\)"),
        ({"v": torch.zeros(2, 4, 9)}, ValueError, r"v must be \[2, 4, 8\], got \(2, 4, 9\)"),
        ({"v": torch.zeros(2, 4, 8).int()}, TypeError, "v must be of a float dtype, got torch.int32"),
        ({"v": torch.zeros(2, 4, 8).double()}, ValueError, "v must be torch.float32 .*, got torch.float64"),
        ({"v": torch.zeros(2, 4, 8, device="meta")}, ValueError, "v must be on cpu .*, got meta"),
        ({name: torch.zeros(2, 0, 8) for name in "qkv"}, ValueError, r"q must not be empty .* got \(2, 0, 8\)"),
        ({"causal": 1}, TypeError, r"causal must be True or False, got 1 \(int\)"),
        ({"scale": "1"}, TypeError, "scale must be a number, got '1'"),
        ({"precision": "fp8"}, ValueError, "precision must be one of"),
    ],
)
def test_bad_input_is_named(change, error, message):
    with pytest.raises(error, match=message):
        attention(**({name: torch.zeros(2, 4, 8) for name in "qkv"} | change))
