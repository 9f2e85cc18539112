"""Sums over rows: as good as torch's, and of each model of an ensemble in the order that they have alone."""

import pytest
import torch

from grokfast.ops import layer_norm, linear_cross_entropy, mlp, pair_embed
from grokfast.ops.gathered_attention.ensemble import ensemble_attention
from grokfast.ops.mlp.kept import mlp_kept
from grokfast.ops.read_rows import EnsembleIndex, read_rows
from grokfast.ops.sum_rows import sum_rows

pytest.importorskip("triton")
from grokfast.ops import kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
N, D, MODELS = 300, 12, 3


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def chosen(below, *shape):
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(below)).to(DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("splits", "size"), [(1, 5), (2, 1), (3, 1030), (33, 129)])
def test_partials_are_summed(splits, size, dtype, judge, poisoned):
    partial = drawn(splits, 2, size)
    judge(kernels.sum_splits(partial, dtype), partial.sum(0).to(dtype), partial.double().sum(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "d"), [(1, 1), (63, 5), (300, 130), (1000, 7)])
def test_rows_are_summed(n, d, dtype, judge, poisoned):
    x = drawn(2, n, d).to(dtype)
    judge(sum_rows(x), x.sum(1), x.double().sum(1))
    wide = drawn(2, n, 2 * d)
    assert torch.equal(sum_rows(wide[..., :d]), sum_rows(wide[..., :d].contiguous()))


def linear_grads(x, w, b, grad):
    from grokfast.ops.linear import kernels as linear

    return linear.backward_weight(grad, x, True, "ieee")


def of(function):
    """The gradients of all tensors of an operation."""

    def grads(*tensors):
        tensors = [t.requires_grad_() for t in tensors]
        out = function(*tensors)
        return torch.autograd.grad(out, tensors, drawn(*out.shape[1:], seed=9).expand_as(out))

    return grads


HIDDEN = ("x", (N, D)), ("w_in", (20, D)), ("b_in", (20,)), ("w_out", (D, 20)), ("b_out", (D,))
TABLES = ("w_a", (2, D)), ("w_b", (3, D)), ("bias", (D,))
ATTENTION = ("x", (5, D)), ("w_qkv", (3 * D, D)), ("b_qkv", (3 * D,)), ("w_o", (D, D)), ("b_o", (D,))


def attention(x, *weights):
    keys = EnsembleIndex(torch.stack([chosen(2, N), 2 + chosen(3, N)], 1).expand(len(x), -1, -1), 5)
    own = EnsembleIndex(keys.index[..., 0], 5)
    return ensemble_attention(x, *weights, keys, own, n_heads=2, skip=x, backend="triton")


def embedded(w_a, w_b, bias):
    pairs = torch.stack([chosen(2, 2 * N), chosen(3, 2 * N)], 1).expand(len(w_a), -1, -1)
    return pair_embed(w_a, w_b, pairs, bias, activation="relu", backend="triton")


def classified(x, weight):
    return linear_cross_entropy(x, weight, chosen(7, N).expand(len(x), -1), reduction="none", backend="triton")


CASES = {
    "linear": (linear_grads, (("x", (N, D)), ("w", (20, D)), ("b", (20,)), ("grad", (N, 20)))),
    "mlp": (of(lambda *t: mlp(*t, activation="gelu", skip=t[0], backend="triton")), HIDDEN),
    "mlp_kept": (of(lambda *t: mlp_kept(*t, "relu", t[0], "ieee")), HIDDEN),
    "linear_cross_entropy": (of(classified), (("x", (N, D)), ("weight", (7, D)))),
    "layer_norm": (
        of(lambda *t: layer_norm(*t, backend="triton")),
        (("x", (N, D)), ("weight", (D,)), ("bias", (D,))),
    ),
    "pair_embed": (of(embedded), TABLES),
    "read_rows": (
        of(lambda x: read_rows(x, EnsembleIndex(chosen(5, N).expand(len(x), -1), 5), backend="triton")),
        (("x", (5, D)),),
    ),
    "attention": (of(attention), ATTENTION),
}


@pytest.mark.parametrize("case", CASES)
def test_each_model_has_the_gradients_it_has_alone(case, monkeypatch, poisoned):
    monkeypatch.setattr(kernels, "PROGRAMS", 4)  # three models and one must not share these differently
    grads, shapes = CASES[case]
    tensors = [drawn(MODELS, *shape, seed=i) for i, (_, shape) in enumerate(shapes)]
    together = grads(*(t.clone() for t in tensors))
    alone = grads(*(t[1:2].clone() for t in tensors))
    for of_all, of_one in zip(together, alone, strict=True):
        assert torch.equal(of_all[1], of_one[0])
