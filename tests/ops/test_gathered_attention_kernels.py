import pytest
import torch

from grokfast.ops import RowIndex
from grokfast.ops.gathered_attention import gathered_attention
from grokfast.ops.gathered_attention.ensemble import ensemble_attention
from grokfast.ops.read_rows import EnsembleIndex

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def case(n_models, n_table, n_rows, seq_len, has_own, padded=False):
    """Keys, of which -1 stands behind the used ones if padded, and whose own row each row is: one of its keys."""
    g = torch.Generator().manual_seed(n_table)
    keys = torch.stack([torch.randperm(n_table, generator=g)[:seq_len] for _ in range(n_models * n_rows)])
    keys = keys.view(n_models, n_rows, seq_len)
    if not has_own:  # row r is its own
        rows = torch.arange(n_rows).expand(n_models, -1)
        keys = torch.where(keys == rows[..., None], keys[..., :1], keys)
        keys[..., 0] = rows
    own = keys[..., 0].clone() if has_own else None
    if padded:
        used = torch.randint(1, seq_len + 1, (n_models, n_rows, 1), generator=g)
        keys = torch.where(torch.arange(seq_len) < used, keys, -1)
    return EnsembleIndex(keys.to(DEVICE), n_table), None if own is None else EnsembleIndex(own.to(DEVICE), n_table)


def tensors(n_models, n_table, d, dtype, biases=True):
    g = torch.Generator().manual_seed(1)
    shapes = {"x": (n_table, d), "w_qkv": (3 * d, d), "b_qkv": (3 * d,), "w_o": (d, d), "b_o": (d,)}
    drawn = {n: torch.randn(n_models, *s, generator=g, dtype=torch.float64) * d**-0.5 for n, s in shapes.items()}
    drawn = {n: t.to(DEVICE, dtype) for n, t in drawn.items()}
    return {n: None if n.startswith("b") and not biases else t.requires_grad_() for n, t in drawn.items()}


def results(given, index, n_heads, skip, backend, precision="ieee"):
    """Output, and the gradient of every tensor."""
    keys, own = index
    own_skip = None if skip is None else given["x"] if skip == "x" else given["x"].detach().cos().requires_grad_()
    out = ensemble_attention(
        *given.values(), keys, own, n_heads=n_heads, skip=own_skip, precision=precision, backend=backend
    )
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(out)
    wanted = [t for t in given.values() if t is not None] + ([own_skip] if skip == "other" else [])
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), wanted)]


@pytest.mark.parametrize(
    ("n_models", "n_table", "n_rows", "seq_len", "has_own", "padded", "d", "n_heads", "skip", "biases"),
    [
        (2, 7, 9, 3, True, False, 12, 3, "x", True),  # a single query layer: tables, each read by many
        (1, 11, 11, 4, False, True, 10, 2, "x", False),  # a layer of all positions, a causal one
        (2, 3, 150, 2, True, False, 6, 1, "other", True),  # more readers than in a chunk
        (1, 70, 2, 64, True, True, 6, 2, None, False),  # the longest sequence
        (1, 5, 1, 1, True, False, 3, 3, None, True),
    ],
)
def test_the_kernels_are_as_good_as_torch(
    n_models, n_table, n_rows, seq_len, has_own, padded, d, n_heads, skip, biases, judge, poisoned
):
    index = case(n_models, n_table, n_rows, seq_len, has_own, padded)
    got, by_torch, exact = (
        results(tensors(n_models, n_table, d, dtype, biases), index, n_heads, skip, backend)
        for dtype, backend in [(torch.float32, "triton"), (torch.float32, "reference"), (torch.float64, "reference")]
    )
    for ours, theirs, right in zip(got, by_torch, exact, strict=True):
        judge(ours, theirs, right)


def test_of_each_model_it_is_gathered_attention():
    keys, own = case(2, 9, 6, 3, True, padded=True)
    given = tensors(2, 9, 12, torch.float64)
    out = ensemble_attention(*given.values(), keys, own, n_heads=3, skip=given["x"], backend="reference")
    for e in range(2):
        x, *weights = (t[e] for t in given.values())
        index = RowIndex(keys.index[e], 9), RowIndex(own.index[e], 9)
        one = gathered_attention(x, *weights, *index, n_heads=3, skip=x)
        torch.testing.assert_close(out[e], one, rtol=1e-12, atol=1e-12)


def test_the_same_bits_alone_and_together():
    (keys, own), given = case(3, 7, 9, 3, True), tensors(3, 7, 8, torch.float32)
    together = results(given, (keys, own), 2, "x", "triton")
    of_one = {name: t[1:2].detach().requires_grad_() for name, t in given.items()}
    index = EnsembleIndex(keys.index[1:2], 7), EnsembleIndex(own.index[1:2], 7)
    weights = torch.randn(3, 9, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)[1:2].to(of_one["x"])
    out = ensemble_attention(*of_one.values(), *index, n_heads=2, skip=of_one["x"], backend="triton")
    alone = [out.detach(), *torch.autograd.grad((out * weights).sum(), list(of_one.values()))]
    for all_models, of_model in zip(together, alone, strict=True):
        assert torch.equal(all_models[1:2], of_model)


def test_a_nan_stays_with_who_reads_it():
    index = EnsembleIndex(torch.tensor([[[0, 1], [1, 2], [2, -1]]], device=DEVICE), 3), None
    given = tensors(1, 3, 4, torch.float32)
    with torch.no_grad():
        given["x"][0, 0] = torch.nan
    out = ensemble_attention(*given.values(), *index, n_heads=2, backend="triton").detach()
    assert out.isnan().all(2).tolist() == [[True, False, False]]


def test_bf16_products_are_rounded():
    index, given = case(1, 7, 9, 3, True), tensors(1, 7, 12, torch.float32)
    exact, rounded = (results(given, index, 3, "x", "triton", precision)[0] for precision in ("ieee", "bf16"))
    assert 1e-4 < (rounded - exact).abs().max() / exact.abs().max() < 0.05


def test_what_does_not_fit_is_refused():
    (keys, own), given = case(2, 7, 9, 3, True), tensors(2, 7, 12, torch.float32)
    x, w_qkv, b_qkv, w_o, b_o = given.values()

    def call(x=x, w_qkv=w_qkv, w_o=w_o, keys=keys, own=own, n_heads=3, **options):
        return ensemble_attention(x, w_qkv, b_qkv, w_o, b_o, keys, own, n_heads=n_heads, **options)

    for arguments, error, message in [
        ({"x": x[0]}, ValueError, r"x must be \[E, K, d\]"),
        ({"n_heads": 5}, ValueError, r"x must be \[E, K, d\], d a multiple of 5, got \(2, 7, 12\)"),
        ({"w_qkv": w_o}, ValueError, r"w_qkv must be \[2, 36, 12\], got \(2, 12, 12\)"),
        ({"skip": x[:, :3]}, ValueError, r"skip must be \[2, 7, 12\], got \(2, 3, 12\)"),
        ({"keys": keys.index}, TypeError, "keys must be an EnsembleIndex, got Tensor"),
        ({"own": keys}, ValueError, r"own must be \[2, R\] into 7 rows, got \[2, 9, 3\] into 7"),
        ({"own": None}, ValueError, "keys must have a row for each of 7 queries, got 9"),
        ({"precision": "fp8"}, ValueError, "precision must be one of"),
    ]:
        with pytest.raises(error, match=message):
            call(**arguments)
    long = EnsembleIndex(torch.zeros(2, 9, 65, dtype=torch.int64, device=DEVICE), 7)
    with pytest.raises(ValueError, match=r"ops.gathered_attention here: they take up to 64 keys, got 65"):
        call(keys=long, backend="triton")
    (grad,) = torch.autograd.grad(call(backend="triton").square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
