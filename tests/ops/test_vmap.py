"""torch.func.vmap over the operations, and what torch.func.grad gets."""

import pytest
import torch
from torch.func import grad, vmap

from grokfast import backend
from grokfast.ops import PairIndex, attention, dispatch, layer_norm, linear_cross_entropy, mlp, pair_embed

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH = 3
pytest.importorskip("triton")


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE)


def whole(high, *shape):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(high)).to(DEVICE)


X, Q, TABLES = draw(BATCH, 7, 8), draw(BATCH, 2, 3, 5, 8), (draw(BATCH, 1, 5, 6), draw(BATCH, 1, 4, 6))
WEIGHTS = draw(BATCH, 9, 8), draw(BATCH, 9), draw(BATCH, 8, 9), draw(BATCH, 8)
PAIRS = torch.stack([whole(5, BATCH, 1, 20), whole(4, BATCH, 1, 20)], -1)
CASES = {
    "mlp": (mlp, [X, *WEIGHTS], {"activation": "gelu"}),
    "mlp without biases": (lambda x, a, b, **o: mlp(x, a, None, b, None, **o), [X, WEIGHTS[0], WEIGHTS[2]], {}),
    "an ensemble of mlps": (
        lambda x, a, b, **o: mlp(x, a, None, b, None, **o),
        [torch.stack([t, -t], 1) for t in (X, WEIGHTS[0], WEIGHTS[2])],
        {},
    ),
    "attention": (attention, [Q, Q + 1, Q.sin()], {}),
    "linear_cross_entropy": (
        linear_cross_entropy,
        [X, WEIGHTS[0], whole(9, BATCH, 7)],
        {"return_accuracy": True, "return_logits": True},
    ),
    "layer_norm": (layer_norm, [X, WEIGHTS[3], WEIGHTS[3] + 1], {}),
    "pair_embed": (pair_embed, [*TABLES, PAIRS], {"activation": "relu"}),
    "pair_embed by an index": (
        lambda a, b, **o: pair_embed(a, b, PairIndex(PAIRS[0], 5, 4), activation="relu", **o),
        [*TABLES],
        {},
    ),
}


def of_each(function, tensors, dims):
    """What vmap is to give."""
    results = [function(*(t if d is None else t.select(d, i) for t, d in zip(tensors, dims))) for i in range(BATCH)]
    return torch.stack(results) if isinstance(results[0], torch.Tensor) else tuple(map(torch.stack, zip(*results)))


@pytest.mark.parametrize("name", ["triton", "reference", None])
@pytest.mark.parametrize("case", CASES)
def test_vmap_is_one_call_after_the_other(case, name):
    operation, tensors, options = CASES[case]

    def function(*tensors):
        return operation(*tensors, **options, backend=name)

    dims = [0] * len(tensors)
    torch.testing.assert_close(vmap(function)(*tensors), of_each(function, tensors, dims))
    shared = [tensors[0], *(t[0] for t in tensors[1:])]
    dims = (0, *(None for _ in tensors[1:]))
    torch.testing.assert_close(vmap(function, in_dims=dims)(*shared), of_each(function, shared, dims))
    last = [t.movedim(0, -1) for t in tensors]
    torch.testing.assert_close(vmap(function, in_dims=-1)(*last), vmap(function)(*tensors))


@pytest.mark.parametrize("case", CASES)
def test_gradients_go_through_vmap(case):
    operation, tensors, options = CASES[case]
    leaves = [t.clone().requires_grad_(t.is_floating_point()) for t in tensors]
    wanted = [t for t in leaves if t.requires_grad]

    def function(*tensors):
        out = operation(*tensors, **options, backend="triton")
        return out if isinstance(out, torch.Tensor) else out[0] + out[-1].square().mean()

    got = torch.autograd.grad(vmap(function)(*leaves).sin().sum(), wanted)
    expected = torch.autograd.grad(of_each(function, leaves, [0] * len(leaves)).sin().sum(), wanted)
    for one, two in zip(got, expected):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_torch_func_grad_gets_plain_pytorch(case):
    operation, tensors, options = CASES[case]

    def loss(name, *tensors):
        out = operation(*tensors, **options, backend=name)
        return (out if isinstance(out, torch.Tensor) else out[0]).sin().sum()

    def gradient(name):
        return vmap(grad(lambda *t: loss(name, *t), argnums=(0, 1)))(*tensors)

    torch.testing.assert_close(gradient(None), gradient("reference"))
    with pytest.raises(ValueError, match=r"'triton' cannot run ops\..* here: they are not for torch\.func\.grad"):
        gradient("triton")
    dispatch._say_once.cache_clear()
    with backend.using("triton"), pytest.warns(UserWarning, match="runs on plain PyTorch"):
        gradient(None)


def test_an_index_out_of_range_is_still_seen():
    if DEVICE != "cpu":
        pytest.skip("a GPU is not waited for")
    target = whole(9, BATCH, 7)
    target[1, 2] = 9
    with pytest.raises(IndexError, match=r"target must be in \[0, 9\), got 9"):
        vmap(linear_cross_entropy)(X, WEIGHTS[0], target)
