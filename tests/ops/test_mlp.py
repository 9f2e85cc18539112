"""ops.mlp: the plain path against torch's layers, the kernels (in Triton's interpreter without a GPU) against fp64."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from grokfast import backend, doctor
from grokfast.ops import dispatch, mlp
from grokfast.ops.mlp import IN_KERNELS, MAX_WIDTH, _mlp, _mlp_backward
from grokfast.ops.mlp.reference import ACTIVATIONS
from tests.tf32 import torch_at

HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
NAMES = ("x", "w_in", "b_in", "w_out", "b_out")


@pytest.fixture
def triton():
    return pytest.importorskip("triton")


def inputs(n=37, d=24, hidden=40, out=None, models=None, dtype=torch.float32, biases=True):
    g, out = torch.Generator().manual_seed(0), out or d
    lead = () if models is None else (models,)
    shapes = [(*lead, n, d), (*lead, hidden, d), (*lead, hidden), (*lead, out, hidden), (*lead, out)]
    scales = [1, d**-0.5, 0.3, hidden**-0.5, 0.3]
    drawn = [scale * torch.randn(shape, generator=g) for shape, scale in zip(shapes, scales)]
    if not biases:
        drawn[2] = drawn[4] = None
    return [None if t is None else t.to(DEVICE, dtype).requires_grad_() for t in drawn]


def run(tensors, grad_scale=1.0, skip_x=False, **options):
    """Output and gradients of every tensor."""
    y = mlp(*tensors, skip=tensors[0] if skip_x else None, **options)
    g = torch.Generator().manual_seed(1)
    grad = (grad_scale * torch.randn(y.shape, generator=g)).to(y)
    wanted = [t for t in tensors if t is not None]
    return [y.detach(), *torch.autograd.grad(y, wanted, grad)]


def doubled(tensors):
    return [None if t is None else t.detach().double().requires_grad_() for t in tensors]


def compare(tensors, judge, **options):
    got = run(tensors, backend="triton", **options)
    by_torch = run(tensors, backend="reference", **options)
    exact = run(doubled(tensors), backend="reference", **options)
    judge(got[0], by_torch[0], exact[0])
    for one, two, truth in zip(got[1:], by_torch[1:], exact[1:]):
        judge(one, two, truth, factor=3)  # flash-attention's factor for gradients


@pytest.mark.parametrize("activation", IN_KERNELS)
@pytest.mark.parametrize("options", [{}, {"skip_x": True}, {"precision": "tf32x3"}], ids=str)
def test_kernels_are_as_good_as_torch(activation, options, triton, judge, poisoned):
    compare(inputs(), judge, activation=activation, **options)


@pytest.mark.parametrize(
    ("n", "d", "hidden", "out"), [(1, 1, 1, 1), (63, 16, 33, 16), (100, 33, 17, 5), (5, 130, 20, 140), (70, 7, 70, 150)]
)
@pytest.mark.parametrize("biases", [True, False])
def test_odd_sizes(n, d, hidden, out, biases, triton, judge, poisoned):
    compare(inputs(n, d, hidden, out, biases=biases), judge, activation="gelu")


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_low_precision_is_as_good_as_torch_at_it(precision, triton, judge, poisoned):
    with torch_at(precision):
        compare(inputs(63, 32, 48), judge, activation="gelu", precision=precision)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_tensors(dtype, triton, judge, poisoned):
    tensors = inputs(63, 32, 48, dtype=dtype)
    compare(tensors, judge, activation="gelu", skip_x=True)
    assert all(t.dtype == dtype for t in run(tensors, backend="triton"))


def test_an_ensemble_is_its_models(triton, judge, poisoned):
    tensors = inputs(19, 16, 32, models=3)
    compare(tensors, judge)
    together = run(tensors, backend="triton")
    for e in range(3):
        one = [t[e : e + 1].detach().requires_grad_() for t in tensors]
        y = mlp(*one, backend="triton")
        assert torch.equal(y[0], together[0][e])


def test_rows_of_any_shape(triton):
    x, *weights = inputs(30)
    for name in ("triton", "reference"):
        expected = mlp(x, *weights, backend=name)
        assert torch.equal(mlp(x.view(2, 3, 5, 24), *weights, backend=name).view(30, 24), expected)
        assert mlp(x[0], *weights, backend=name).shape == (24,)
        assert mlp(x[:0], *weights, backend=name).shape == (0, 24)
    x, *weights = inputs(30, models=2)
    for name in ("triton", "reference"):
        expected = mlp(x, *weights, backend=name)
        assert torch.equal(mlp(x.view(2, 6, 5, 24), *weights, backend=name).view(2, 30, 24), expected)


def test_no_rows_give_no_gradient(triton):
    x, *weights = inputs(0)
    _, grad_x, *grads = run([x, *weights], backend="triton")
    assert grad_x.shape == (0, 24)
    assert not any(g.any() for g in grads)


def test_strided_input_is_read_right(triton):
    tensors = inputs(30)
    expected = run(tensors, backend="triton")
    wide = torch.randn(30, 60, device=DEVICE)
    wide[:, 3:27] = tensors[0].detach()
    apart = tensors[0].detach().repeat_interleave(2, -1)[:, ::2]
    turned = [t.detach().mT.contiguous().mT if t.ndim == 2 else t for t in tensors]
    for x in (wide[:, 3:27], apart, turned[0]):
        assert all(map(torch.equal, run([x.requires_grad_(), *tensors[1:]], backend="triton"), expected))
    assert all(map(torch.equal, run([t.requires_grad_() for t in turned], backend="triton"), expected))
    x, *weights = inputs(30, models=2)
    shared = x[:1].detach().expand(2, 30, 24)  # the same rows for every model, without a copy
    assert torch.equal(mlp(shared, *weights, backend="triton"), mlp(shared.clone(), *weights, backend="triton"))
    y = mlp(*tensors, backend="triton")
    y.sum().backward()  # its gradient is one number, expanded
    expected = torch.autograd.grad(mlp(*tensors, backend="reference").sum(), tensors[0])[0]
    torch.testing.assert_close(tensors[0].grad, expected)


@pytest.mark.parametrize("n", [100, 300])
def test_the_same_bits_twice(n, triton):
    first, second = (run(inputs(n, 8, 16), backend="triton") for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_only_the_gradients_that_are_wanted(triton):
    expected = run(inputs(), backend="triton")[1:]
    for i, name in enumerate(NAMES):
        tensors = [t.detach().requires_grad_(j == i) for j, t in enumerate(inputs())]
        y = mlp(*tensors, backend="triton")
        y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y))
        assert torch.equal(tensors[i].grad, expected[i]), name
        assert all(t.grad is None for j, t in enumerate(tensors) if j != i)
    assert not mlp(*(t.detach() for t in tensors), backend="triton").requires_grad


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_definition(activation):
    x, w_in, b_in, w_out, b_out = inputs(dtype=torch.float64)
    first, second = nn.Linear(24, 40), nn.Linear(40, 24)
    first.weight, first.bias, second.weight, second.bias = map(nn.Parameter, (w_in, b_in, w_out, b_out))
    act = {"relu": F.relu, "gelu": F.gelu, "squared_relu": lambda z: F.relu(z) ** 2, "square": lambda z: z**2}
    act |= {"gelu_tanh": nn.GELU("tanh"), "silu": nn.SiLU()}
    expected = second(act[activation](first(x)))
    torch.testing.assert_close(mlp(x, w_in, b_in, w_out, b_out, activation=activation), expected)
    got = mlp(x, w_in, b_in, w_out, b_out, activation=activation, skip=x)
    torch.testing.assert_close(got, x + expected)


@pytest.mark.parametrize("models", [None, 2])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck(activation, models):
    tensors = inputs(3, 4, 5, models=models, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *t: mlp(*t, activation=activation, skip=t[0]), tensors)
    assert torch.autograd.gradgradcheck(lambda *t: mlp(*t, activation="square"), tensors)


@pytest.mark.parametrize("activation", ["gelu_tanh", "silu"])
def test_activations_that_the_kernels_do_not_know_run_on_pytorch(activation, triton):
    tensors = inputs()
    with pytest.raises(ValueError, match=f"they take relu, gelu, squared_relu, square, got {activation}"):
        mlp(*tensors, activation=activation, backend="triton")
    with backend.using("triton"), pytest.warns(UserWarning, match="they take relu, gelu"):
        got = mlp(*tensors, activation=activation)
    assert torch.equal(got, mlp(*tensors, activation=activation, backend="reference"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the rule is for a CPU")
def test_torchs_own_layers_take_small_products_on_a_cpu(monkeypatch):
    """To the bit, and any number of times differentiable."""
    x, w_in, b_in, w_out, b_out = inputs()
    expected = F.linear(F.relu(F.linear(x, w_in, b_in)), w_out, b_out)
    assert torch.equal(mlp(x, w_in, b_in, w_out, b_out), expected)
    work = x.numel() * len(w_in)
    for at_least, is_torchs in ((work, False), (work + 1, True)):
        monkeypatch.setitem(dispatch.TORCHS_OWN, "mlp", at_least)
        assert dispatch.torchs_own("mlp", x, work, "ieee", None) is is_torchs
    for options in ({"precision": "bf16"}, {"backend": "reference"}):
        assert not dispatch.torchs_own("mlp", x, work, **{"precision": "ieee", "backend": None} | options)
    with torch.autocast("cpu", torch.bfloat16):
        assert not dispatch.torchs_own("mlp", x, work, "ieee", None)
        assert mlp(x, w_in, b_in, w_out, b_out, skip=x).dtype == torch.bfloat16
    (grad,) = torch.autograd.grad(mlp(x, w_in, b_in, w_out, b_out).square().sum(), x, create_graph=True)
    grad.square().sum().backward()


def test_doctor_says_the_rule():
    said = {name: how for name, where, how in doctor.operations() if where == "CPU fp32"}
    assert f"below {dispatch.TORCHS_OWN['mlp']:,} multiplications a product torch's own layers" in said["ops.mlp"]
    assert "scaled_dot_product_attention" in said["ops.attention"]


def test_a_second_derivative_is_refused_by_the_kernels(triton):
    x, *rest = inputs()
    (grad,) = torch.autograd.grad(mlp(x, *rest, backend="triton").sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"ops\.mlp are differentiable once; backend='reference' any number"):
        grad.sum().backward()


def test_autocast(triton):
    tensors = inputs()
    half = [t.detach().bfloat16() for t in tensors]
    for name in ("triton", "reference"):
        with torch.autocast(DEVICE, torch.bfloat16):
            y = mlp(*tensors, backend=name)
        assert torch.equal(y, mlp(*half, backend=name))
        y.sum().backward()
        assert tensors[0].grad.dtype == torch.float32
        with torch.autocast(DEVICE, torch.bfloat16):
            assert mlp(*inputs(dtype=torch.float64), backend="reference").dtype == torch.float64


def test_opcheck(triton):
    for biases in (True, False):
        x, w_in, b_in, w_out, b_out = (
            None if t is None else t.detach() for t in inputs(17, 16, 16, models=2, biases=biases)
        )
        leaves = [None if t is None else t.clone().requires_grad_() for t in (x, w_in, b_in, w_out, b_out)]
        torch.library.opcheck(_mlp, (*leaves, "gelu", True, "ieee"))
        for wanted in ([True] * 3, [False, True, False]):
            torch.library.opcheck(
                _mlp_backward, (torch.randn_like(x), x, w_in, b_in, w_out, "gelu", True, "ieee", wanted)
            )


@pytest.mark.parametrize("name", ["triton", "reference", None])
def test_compiles_into_one_graph(name, triton):
    torch.compiler.reset()
    options = {"activation": "gelu", "backend": name}
    compiled = torch.compile(lambda *t: mlp(*t, skip=t[0], **options) * 2, fullgraph=True, backend="aot_eager")
    tensors = inputs()
    y, expected = compiled(*tensors), mlp(*tensors, skip=tensors[0], **options) * 2
    torch.testing.assert_close(y, expected)
    for one, two in zip(*(torch.autograd.grad(t.sum(), tensors) for t in (y, expected))):
        torch.testing.assert_close(one, two)


def test_nan_is_not_hidden(triton):
    for name in ("triton", "reference"):
        x, *weights = inputs()
        x.data[5, 3] = torch.nan
        y, grad_x, *_ = run([x, *weights], backend=name)
        assert y.isnan().any(1).nonzero().tolist() == [[5]]
        assert grad_x.isfinite().all(1).sum() >= 36


def test_what_the_kernels_do_not_take_runs_on_pytorch_and_says_so_once(triton, judge):
    wide = inputs(3, MAX_WIDTH + 1, 8)
    with pytest.raises(ValueError, match=r"'triton' cannot run ops\.mlp here: they take a width up to 512, got 513"):
        mlp(*wide, backend="triton")
    with pytest.raises(ValueError, match=r"cannot run ops\.mlp here: they take no torch\.float64"):
        mlp(*doubled(inputs()), backend="triton")
    with backend.using("triton"), pytest.warns(UserWarning, match=r"ops\.mlp runs on plain PyTorch: .* 513"):
        y = mlp(*wide)
    with backend.using("triton"), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(mlp(*wide), y)


@pytest.mark.skipif(HAS_GPU, reason="the plain path is the choice on a CPU")
def test_a_cpu_runs_plain_pytorch_where_the_extension_does_not_fit():
    tensors = inputs()
    assert torch.equal(mlp(*tensors, activation="square"), mlp(*tensors, activation="square", backend="reference"))


def test_a_skip_of_its_own_is_added(triton, judge):
    tensors = inputs()
    skip = torch.randn(37, 24, device=DEVICE, requires_grad=True)
    for name in ("triton", "reference", None):
        y = mlp(*tensors, skip=skip, backend=name)
        torch.testing.assert_close(y, skip + mlp(*tensors, backend=name))
        (grad,) = torch.autograd.grad(y.sum(), skip)
        assert grad.eq(1).all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": [1.0]}, TypeError, r"x must be a tensor, got \[1.0\] \(list\)"),
        ({"x": torch.zeros(7, 3, dtype=torch.int64)}, TypeError, "x must be of a float dtype, got torch.int64"),
        ({"w_in": torch.zeros(4, 2)}, ValueError, r"w_in must be \[h, 3\], got \(4, 2\)"),
        ({"w_in": torch.zeros(4, 3).int()}, TypeError, "w_in must be of a float dtype, got torch.int32"),
        ({"w_in": torch.zeros(4, 3).double()}, ValueError, "w_in must be torch.float32 .*, got torch.float64"),
        ({"w_in": torch.zeros(4, 3, device="meta")}, ValueError, "w_in must be on cpu .*, got meta"),
        ({"w_in": torch.zeros(0, 3), "b_in": None, "w_out": torch.zeros(3, 0)}, ValueError, "must not be empty"),
        ({"w_in": torch.zeros(2, 4, 3)}, ValueError, r"x must be \[2, \.\.\., 3\] as w_in is .*, got \(7, 3\)"),
        ({"w_out": torch.zeros(3, 5)}, ValueError, r"w_out must be \[o, 4\], got \(3, 5\)"),
        ({"skip": torch.zeros(7, 4)}, ValueError, r"skip must be \[7, 3\], got \(7, 4\)"),
        ({"b_in": torch.zeros(3)}, ValueError, r"b_in must be \[4\], got \(3,\)"),
        ({"b_out": torch.zeros(1, 3)}, ValueError, r"b_out must be \[3\], got \(1, 3\)"),
        ({"activation": "reul"}, ValueError, r"activation must be one of .*'reul' \(did you mean 'relu'\?\)"),
        ({"precision": "tf64"}, ValueError, "precision must be one of 'ieee', 'tf32x3', 'tf32', 'bf16', got 'tf64'"),
        ({"backend": "cuda"}, ValueError, "backend must be one of 'reference', 'triton', got 'cuda'"),
        ({"skip": 1}, TypeError, r"skip must be a tensor, got 1 \(int\)"),
    ],
)
def test_bad_input_is_named(change, error, message):
    good = {"x": torch.zeros(7, 3), "w_in": torch.zeros(4, 3), "b_in": torch.zeros(4)}
    good |= {"w_out": torch.zeros(3, 4), "b_out": torch.zeros(3)}
    with pytest.raises(error, match=message):
        mlp(**(good | change))


def test_configurations(triton):
    from grokfast.ops.kernels import n_splits
    from grokfast.ops.mlp.kernels import configuration

    for kernel in ("fwd", "bwd_data", "bwd_w_in", "bwd_w_out"):
        for precision in ("ieee", "tf32x3", "tf32", "bf16", "fp16"):
            for sizes in ((1, 1, 1), (128, 512, 128), (97, 200, 113), (512, 2048, 512)):
                tile = configuration(kernel, precision, *sizes)
                assert all(
                    16 <= tile[key] <= 128 and tile[key] & (tile[key] - 1) == 0 for key in ("BM", "BH", "BK", "BD")
                )
                assert precision not in ("ieee", "tf32x3") or tile["BK"] <= 32
    assert n_splits(3830, tiles=16) == 8
    assert n_splits(3830, tiles=1) == 30
    assert n_splits(3830, tiles=512) == n_splits(1, tiles=1) == n_splits(0, tiles=1) == 1
