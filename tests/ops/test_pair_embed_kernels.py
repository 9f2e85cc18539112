"""ops.pair_embed's Triton kernels, in the interpreter without a GPU, against fp64."""

import pytest
import torch

from grokfast import backend
from grokfast.ops import PairIndex, pair_embed
from grokfast.ops.pair_embed import _pair_embed, _pair_embed_backward

ACTIVATIONS = ["identity", "relu", "square", "abs", "gelu"]
HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
pytest.importorskip("triton")


def inputs(models=1, n=63, width=33, a=5, b=4, bias=True, dtype=torch.float32):
    """w_a, w_b, pairs, bias; row 2 of w_a is never read."""
    g = torch.Generator().manual_seed(0)
    w_a, w_b, offset = (
        torch.randn(shape, generator=g) for shape in ((models, a, width), (models, b, width), (models, width))
    )
    first = torch.randint(a, (models, n), generator=g)
    pairs = torch.stack([torch.where(first == 2, 0, first), torch.randint(b, (models, n), generator=g)], -1)
    w_a, w_b, offset = (t.to(DEVICE, dtype).requires_grad_() for t in (w_a, w_b, offset))
    return [w_a, w_b, pairs.to(DEVICE), offset if bias else None]


def run(tensors, **options):
    """Output and gradients of every float tensor."""
    out = pair_embed(*tensors, **options)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    wanted = [t for t in tensors if isinstance(t, torch.Tensor) and t.requires_grad]
    return [out.detach(), *torch.autograd.grad(out, wanted, grad)]


def doubled(tensors):
    return [t if t is None or t.dtype == torch.int64 else t.detach().double().requires_grad_() for t in tensors]


def compare(tensors, judge, **options):
    got = run(tensors, backend="triton", **options)
    by_torch = run(tensors, backend="reference", **options)
    exact = run(doubled(tensors), backend="reference", **options)
    judge(got[0], by_torch[0], exact[0])
    for one, two, truth in zip(got[1:], by_torch[1:], exact[1:]):
        judge(one, two, truth, factor=3)  # flash-attention's factor for gradients
    return got


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("models", [1, 3])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_as_good_as_torch(activation, models, bias, judge, poisoned):
    compare(inputs(models, bias=bias), judge, activation=activation)


@pytest.mark.parametrize(("n", "width", "a", "b"), [(1, 1, 3, 1), (300, 130, 3, 2), (1000, 16, 3, 40), (33, 257, 4, 5)])
def test_odd_sizes_and_rows_with_many_readers(n, width, a, b, judge, poisoned):
    compare(inputs(1, n, width, a, b), judge, activation="gelu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_tensors(dtype, judge, poisoned):
    assert all(t.dtype == dtype for t in compare(inputs(2, dtype=dtype), judge, activation="relu"))


def test_a_pair_index_gives_the_same_bits():
    tensors = inputs(2)
    index = PairIndex(tensors[2], 5, 4)
    for name in ("triton", "reference", None):
        expected = run(tensors, activation="relu", backend=name)
        got = run([*tensors[:2], index, tensors[3]], activation="relu", backend=name)
        assert all(map(torch.equal, got, expected))
    with pytest.raises(ValueError, match=r"pairs must be of 5 and 3 rows as w_a and w_b, got \(5, 4\)"):
        pair_embed(tensors[0], tensors[1][:, :3], index)


def test_pairs_shared_by_all_models():
    tensors = inputs(3)
    shared = tensors[2][:1].expand(3, -1, -1)
    expected = run([*tensors[:2], shared.clone(), tensors[3]], backend="triton", activation="relu")
    for pairs in (shared, PairIndex(shared, 5, 4)):
        got = run([*tensors[:2], pairs, tensors[3]], backend="triton", activation="relu")
        assert all(map(torch.equal, got, expected))


def test_strided_input_is_read_right():
    w_a, w_b, pairs, bias = inputs(2)
    expected = run([w_a, w_b, pairs, bias], backend="triton", activation="gelu")
    wide = torch.randn(2, 5 * 33 + 7, device=DEVICE)
    wide[:, 3:-4] = w_a.detach().flatten(1)
    kinds = [
        [wide[:, 3:-4].view(2, 5, 33).requires_grad_(), w_b, pairs, bias],  # a view of one flat buffer
        [w_a, w_b.detach().mT.contiguous().mT.requires_grad_(), pairs, bias],
        [w_a, w_b, pairs.permute(2, 1, 0).contiguous().permute(2, 1, 0), bias],
    ]
    for tensors in kinds:
        assert all(map(torch.equal, run(tensors, backend="triton", activation="gelu"), expected))
    out = pair_embed(w_a, w_b, pairs, bias, backend="triton")
    (grad,) = torch.autograd.grad(out.sum(), w_a)  # of a gradient that is one number, expanded
    counts = torch.stack([torch.bincount(pairs[e, :, 0], minlength=5) for e in range(2)])
    assert torch.equal(grad, counts[..., None].expand(2, 5, 33).to(grad))


def test_only_the_gradients_that_are_wanted():
    expected = dict(zip((0, 1, 3), run(inputs(2), backend="triton", activation="relu")[1:]))
    for i, right in expected.items():
        tensors = [t.detach().requires_grad_(j == i) if j != 2 else t for j, t in enumerate(inputs(2))]
        (grad,) = run(tensors, backend="triton", activation="relu")[1:]
        assert torch.equal(grad, right)


def test_the_same_bits_twice_and_no_rows():
    first, second = (run(inputs(1, 300, a=3), backend="triton") for _ in range(2))
    assert all(map(torch.equal, first, second))
    out, *grads = run(inputs(2, 0), backend="triton")
    assert out.shape == (2, 0, 33)
    assert not any(g.any() for g in grads)


def test_nan_comes_through():
    w_a, w_b, pairs, _ = (t.detach() for t in inputs(1))
    w_a[0, 0, 3] = torch.nan
    for activation in ACTIVATIONS:
        out = pair_embed(w_a, w_b, pairs, activation=activation, backend="triton")
        assert torch.equal(out.isnan().any(-1), pairs[..., 0] == 0)


def test_a_pair_outside_of_the_tables_is_nan():
    """Where nothing is checked beforehand, as on a GPU."""
    w_a, w_b, pairs, bias = inputs(1)
    pairs[0, 7, 0], pairs[0, 9, 1] = 5, -1
    out = _pair_embed(w_a, w_b, pairs, bias, [], "relu")
    assert out.isnan().all(-1).nonzero().tolist() == [[0, 7], [0, 9]]
    keep = [i for i in range(63) if i not in (7, 9)]
    grad = torch.ones_like(out)
    grad[:, [7, 9]] = 0
    got = torch.autograd.grad(out, (w_a, w_b, bias), grad)
    kept = pair_embed(w_a, w_b, pairs[:, keep], bias, activation="relu", backend="reference")
    for one, two in zip(got, torch.autograd.grad(kept.sum(), (w_a, w_b, bias))):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("has_bias", [True, False])
def test_opcheck(has_bias):
    w_a, w_b, pairs, bias = inputs(1, 5, 16, 2, 2, bias=has_bias)
    readers = PairIndex(pairs, 2, 2).readers
    torch.library.opcheck(_pair_embed, (w_a, w_b, pairs, bias, readers if has_bias else [], "gelu"))
    tables = [None if t is None else t.detach() for t in (w_a, w_b, pairs, bias)]
    grad = torch.randn(1, 5, 16, device=DEVICE)
    wanted = [has_bias, True, has_bias]
    torch.library.opcheck(_pair_embed_backward, (grad, *tables, readers, "gelu", wanted))


@pytest.mark.parametrize("name", ["triton", "reference", None])
@pytest.mark.parametrize("is_index", [False, True])
def test_compiles_into_one_graph(is_index, name):
    torch.compiler.reset()
    w_a, w_b, pairs, bias = inputs(2)
    pairs = PairIndex(pairs, 5, 4) if is_index else pairs
    tables = [w_a, w_b, bias]

    def twice(w_a, w_b, bias):
        return pair_embed(w_a, w_b, pairs, bias, activation="relu", backend=name) * 2

    out, expected = torch.compile(twice, fullgraph=True, backend="aot_eager")(*tables), twice(*tables)
    torch.testing.assert_close(out, expected)
    for one, two in zip(*(torch.autograd.grad(t.square().sum(), tables) for t in (out, expected))):
        torch.testing.assert_close(one, two)


def test_a_second_derivative_is_refused():
    w_a, *rest = inputs()
    out = pair_embed(w_a, *rest, activation="square", backend="triton").square().sum()
    (grad,) = torch.autograd.grad(out, w_a, create_graph=True)
    with pytest.raises(RuntimeError, match=r"ops\.pair_embed are differentiable once; backend='reference' any number"):
        grad.sum().backward()


def test_what_the_kernels_do_not_take():
    with pytest.raises(ValueError, match=r"'triton' cannot run ops\.pair_embed here: they take no torch\.float64"):
        pair_embed(*doubled(inputs()), backend="triton")
    with backend.using("triton"), pytest.warns(UserWarning, match=r"ops\.pair_embed runs on plain PyTorch"):
        pair_embed(*doubled(inputs()))
    with pytest.raises(ValueError, match="backend must be one of 'reference', 'triton', got 'cuda'"):
        pair_embed(*inputs(), backend="cuda")
