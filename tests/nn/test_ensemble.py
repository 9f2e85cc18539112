import pytest
import torch
import torch.nn.functional as F

from grokfast.nn import ensemble
from grokfast.nn.ensemble import EnsembleModule, Initializer, embedding, layer_norm, linear
from grokfast.nn.masks import dropout

INDICES = torch.tensor([[[0, 4], [4, 4], [1, 0]]]).expand(3, 3, 2)


def gaussians(*shapes, n_models=3, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(n_models, *shape, dtype=dtype, generator=g).requires_grad_() for shape in shapes]


def layers(n_rows=(5,), d_in=7, d_out=4, n_models=3, dtype=torch.float32):
    """name -> (ensemble function, plain torch function for one model, tensors with a leading model axis)"""
    x, w, b, scale, shift, rows = gaussians(
        (*n_rows, d_in), (d_out, d_in), (d_out,), (d_in,), (d_in,), (5, d_in), n_models=n_models, dtype=dtype
    )
    return {
        "linear": (linear, F.linear, [x, w, b]),
        "linear without bias": (linear, F.linear, [x, w]),
        "layer_norm": (layer_norm, lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b), [x, scale, shift]),
        "embedding": (lambda w: embedding(INDICES[: len(w)], w), lambda w: w[INDICES[0]], [rows]),
    }


def gradients(y, tensors):
    return torch.autograd.grad(y, tensors, torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y))


NAMES = list(layers())


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("n_rows", [(1,), (5,), (4, 3), (2, 3, 2)])
@pytest.mark.parametrize("name", NAMES)
def test_each_model_computes_what_torch_does(name, n_rows, batched, monkeypatch):
    if batched:  # what other devices run
        monkeypatch.setattr(ensemble, "_one_by_one", lambda x: False)
    function, one, tensors = layers(n_rows, dtype=torch.float64)[name]
    y = function(*tensors)
    expected = torch.stack([one(*of_model) for of_model in zip(*tensors)])
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    for got, wanted in zip(gradients(y, tensors), gradients(expected, tensors)):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sizes", [(1, 7, 4), (513, 128, 512), (300, 33, 97)])
@pytest.mark.parametrize("name", NAMES)
def test_an_ensemble_has_each_models_bits(name, sizes):
    n_rows, d_in, d_out = sizes
    function, _, tensors = layers((n_rows,), d_in, d_out)[name]
    y = function(*tensors)
    slope = torch.linspace(-1, 2, y.numel()).view_as(y)
    together = torch.autograd.grad(y, tensors, slope)
    for e in range(3):
        alone = [t[e : e + 1].detach().clone().requires_grad_() for t in tensors]
        y_alone = function(*alone)
        assert torch.equal(y_alone[0], y[e])
        for got, wanted in zip(torch.autograd.grad(y_alone, alone, slope[e : e + 1]), together):
            assert torch.equal(got[0], wanted[e])


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name):
    function, _, tensors = layers((2,), 3, 2, n_models=2, dtype=torch.float64)[name]
    assert torch.autograd.gradcheck(function, tensors)


def test_initializer_starts_each_model_as_if_alone():
    together, alone = Initializer((5, 9), torch.float64), Initializer((9,), torch.float64)
    for kind, spread in (("normal", {"std": 0.5}), ("uniform", {"bound": 0.25}), ("constant", {"value": 3.0})):
        both, one = (getattr(draw, kind)(40, 3, **spread) for draw in (together, alone))
        assert both.shape == (2, 40, 3)
        assert both.dtype == torch.float64
        assert torch.equal(both[1], one[0])
        assert torch.equal(both, both.float().double())  # drawn in fp32
        assert torch.equal(both[0], both[1]) == (kind == "constant")


def test_initializer_distributions():
    draw = Initializer((0, 1), torch.float32)
    normal, uniform = draw.normal(200, 100, std=0.3), draw.uniform(200, 100, bound=0.3)
    assert normal.std().item() == pytest.approx(0.3, rel=0.02)
    assert normal.mean().item() == pytest.approx(0, abs=0.01)
    assert uniform.std().item() == pytest.approx(0.3 / 3**0.5, rel=0.02)
    assert 0.299 < uniform.abs().max() <= 0.3


def test_initializer_follows_the_default_device():
    with torch.device("meta"):
        assert Initializer((0,), torch.float32).normal(2, 3, std=1).device.type == "meta"


def test_dropout_keeps_the_mean_and_zeroes_a_share():
    x = torch.ones(2, 100, 300)
    for generators in (None, [torch.Generator().manual_seed(e) for e in range(2)]):
        y = dropout(x, 0.2, True, generators)
        assert y.unique().tolist() == pytest.approx([0, 1.25])
        assert (y == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)
        assert not torch.equal(y[0], y[1])
    assert dropout(x, 0.2, False) is x
    assert dropout(x, 0.0, True) is x


def test_dropout_of_a_model_depends_on_its_generator_only():
    x = torch.ones(3, 10, 4)
    together = dropout(x, 0.5, True, [torch.Generator().manual_seed(e) for e in range(3)])
    alone = dropout(x[:1], 0.5, True, [torch.Generator().manual_seed(2)])
    assert torch.equal(together[2], alone[0])


def test_module_counts_one_models_parameters():
    module = EnsembleModule(range(4))
    module.weight = Initializer(module.seeds, torch.float32).normal(3, 5, std=1)
    assert (module.n_models, module.n_parameters, module.seeds) == (4, 15, (0, 1, 2, 3))


@pytest.mark.parametrize(
    ("seeds", "error", "message"),
    [
        ((), ValueError, "seeds must name at least one model"),
        (3, TypeError, "seeds must be a sequence of integers, got 3"),
        ("12", TypeError, "seeds must be a sequence of integers"),
        ((0, -1), ValueError, r"seeds\[1\] must be between 0"),
        ((0, 1.5), TypeError, r"seeds\[1\] must be an integer, got 1.5"),
    ],
)
def test_bad_seeds_are_refused(seeds, error, message):
    with pytest.raises(error, match=message):
        EnsembleModule(seeds)


@pytest.mark.parametrize("dtype", [torch.int64, "float32", None])
def test_bad_dtype_is_refused(dtype):
    with pytest.raises(TypeError, match="dtype must be a floating-point"):
        Initializer((0,), dtype)
