"""A network's step in the extension against autograd in fp64, on any number of threads, with bad input."""

from itertools import pairwise

import pytest
import torch

from grokfast import backend
from grokfast.losses import MSE, CrossEntropy, Hinge, StableMax
from grokfast.ops.mlp_rows import cpu
from grokfast.ops.mlp_rows.cpu import Loss, Parameters
from grokfast.ops.mlp_rows.reference import outputs

pytestmark = pytest.mark.skipif(backend.extension() is None, reason="needs the C++ extension")
TOKENS = 13
LOSSES = {
    "cross_entropy": (Loss("cross_entropy"), CrossEntropy()),
    "smoothed": (Loss("cross_entropy", 3.0, 0.1), CrossEntropy(temperature=3.0, label_smoothing=0.1)),
    "mse": (Loss("mse"), MSE()),
    "hinge": (Loss("hinge"), Hinge()),
    "stablemax": (Loss("stablemax"), StableMax()),
    "signs": (Loss("signs"), Hinge()),
}
SHAPES = [[200, 200, 113], [33, 11], [70, 20, 97], [8, 130, 2], [128, 120], [1, 1, 3]]


def made(n, sizes, *, tokens=0, bias=True, seed=0):
    """Parameters and inputs: features of sizes[0], a third of them 0, or pairs of rows of a table of `tokens` each."""
    g = torch.Generator().manual_seed(seed)
    pairs = list(pairwise(sizes))
    weights = [torch.randn(n_out, n_in, generator=g) / n_in**0.5 for n_in, n_out in pairs]
    if tokens:
        weights.insert(0, torch.randn(2 * tokens, sizes[0], generator=g))
        inputs = torch.stack([torch.randint(tokens, (n,), generator=g) + i * tokens for i in range(2)], 1)
    else:
        inputs = torch.randn(n, sizes[0], generator=g)
        inputs[inputs.abs() < 0.4] = 0
    n_outs = [w.shape[1] if tokens and i == 0 else len(w) for i, w in enumerate(weights)]
    return Parameters(weights, [torch.randn(n_out, generator=g) if bias else None for n_out in n_outs]), inputs


def answers(n, n_outputs, loss):
    g = torch.Generator().manual_seed(7)
    return (
        torch.randint(2, (n,), generator=g) * 2 - 1 if loss == "signs" else torch.randint(n_outputs, (n,), generator=g)
    )


def like(own, value=torch.nan):
    return Parameters(*([None if t is None else torch.full_like(t, value) for t in part] for part in own))


def tensors(own):
    return [t for part in own for t in part if t is not None]


def by_torch(own, inputs, target, activation, loss, dtype):
    own = Parameters(*([None if t is None else t.to(dtype).requires_grad_() for t in part] for part in own))
    x = inputs.to(dtype) if inputs.is_floating_point() else inputs
    y = target[None, :, None].to(dtype) if loss == "signs" else target[None]
    value, accuracy = LOSSES[loss][1](outputs(own, x, activation)[None], y)
    return value[0].detach(), accuracy[0], torch.autograd.grad(value.sum(), tensors(own))


def error(got, exact):
    return (got.double() - exact).norm() / exact.norm().clamp(min=1e-30)


def assert_as_good(own, inputs, target, activation, loss):
    ours, torchs, value = errors(own, inputs, target, activation, loss)
    assert ours <= 2 * torchs + 4 * torch.finfo(torch.float32).eps * abs(value)


def errors(own, inputs, target, activation, loss):
    """The loss's error, that of torch's and the exact loss; gradients are judged here."""
    to = like(own)
    value, accuracy = cpu.gradient(own, to, inputs, target, activation=activation, loss=LOSSES[loss][0])
    theirs, _, their_grads = by_torch(own, inputs, target, activation, loss, torch.float32)
    exact, right, exact_grads = by_torch(own, inputs, target, activation, loss, torch.float64)
    assert accuracy == pytest.approx(right.item(), rel=1e-6)
    for got, their, correct in zip(tensors(to), their_grads, exact_grads):
        assert error(got, correct) <= 2 * error(their, correct) + torch.finfo(torch.float32).eps
    return abs(value - exact), abs(theirs - exact), exact


@pytest.mark.parametrize("loss", [name for name in LOSSES if name != "signs"])
@pytest.mark.parametrize("activation", ["relu", "square", "gelu", "abs"])
@pytest.mark.parametrize("tokens", [0, TOKENS], ids=["features", "pairs"])
def test_every_loss_and_activation(tokens, activation, loss, isa):
    """Of many rows: stablemax's gradient is that of the few whose answer's output is near 0, and so is its rounding."""
    own, inputs = made(1200, [40, 70, 11], tokens=tokens)
    assert_as_good(own, inputs, answers(1200, 11, loss), activation, loss)


@pytest.mark.parametrize("n", [1, 63, 64, 300])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tokens", [0, TOKENS], ids=["features", "pairs"])
@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_odd_sizes(sizes, tokens, bias, n):
    own, inputs = made(n, sizes, tokens=tokens, bias=bias)
    assert_as_good(own, inputs, answers(n, sizes[-1], "mse"), "relu", "mse")


def test_signs_and_one_output_of_one_row():
    """On average: of a single number torch's error is often almost 0, by luck."""
    draws = [made(1, [40, 300, 1], seed=seed) for seed in range(30)]
    found = [errors(own, inputs, answers(1, 1, "signs"), "relu", "signs") for own, inputs in draws]
    ours, torchs, _ = torch.tensor(found, dtype=torch.float64).mean(0)
    assert ours <= 2 * torchs


@pytest.mark.parametrize("n", [32, 150])
def test_signs_and_one_output(n):
    own, inputs = made(n, [40, 300, 1])
    assert_as_good(own, inputs, answers(n, 1, "signs"), "relu", "signs")


@pytest.mark.parametrize("tokens", [0, TOKENS], ids=["features", "pairs"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_any_number_of_threads_gives_the_same_bits(activation, tokens, monkeypatch, isa):
    own, inputs = made(400, [40, 70, 97], tokens=tokens)
    results = []
    for threads in (1, 2, 2, 3, 7):
        monkeypatch.setattr(cpu, "threads_for", lambda *_, n=threads: n)
        to = like(own)
        found = cpu.gradient(own, to, inputs, answers(400, 97, ""), activation=activation, loss=Loss("cross_entropy"))
        results.append([torch.tensor(found), *tensors(to)])
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.parametrize("zeros", [0.0, 0.2, 0.5])
def test_rows_that_are_looked_through_and_rows_that_are_not_have_the_same_bits(zeros, compiled):
    """AVX-512 adds up to 128 columns of two full rows at once, AVX2 up to 48: what one passes over the other adds."""
    own, inputs = made(150, [70, 130, 97])
    inputs = torch.where(torch.rand(inputs.shape, generator=torch.Generator().manual_seed(3)) < zeros, 0, inputs + 3)
    before, results = compiled.active_isa(), []
    for isa in compiled.active_isas():
        if isa == "baseline":  # where multiplications are not fused
            continue
        compiled.use_active_isa(isa)
        to = like(own)
        found = cpu.gradient(own, to, inputs, answers(150, 97, ""), activation="gelu", loss=Loss("cross_entropy"))
        results.append([torch.tensor(found), *tensors(to)])
    compiled.use_active_isa(before)
    if len(results) < 2:
        pytest.skip("needs AVX-512, and AVX2")
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("loss", LOSSES)
def test_without_gradients_loss_and_accuracy_are_the_same_bits(loss):
    own, inputs = made(100, [40, 70, 1 if loss == "signs" else 11])
    options = {"activation": "relu", "loss": LOSSES[loss][0]}
    target = answers(100, 11, loss)
    measured = cpu.gradient(own, None, inputs, target, **options)
    assert measured == cpu.gradient(own, like(own), inputs, target, **options)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ["relu", "square", "gelu", "abs"])
def test_nan_comes_through(activation, loss):
    own, inputs = made(100, [40, 70, 1 if loss == "signs" else 11])
    inputs[77, 3] = torch.nan
    value, _ = cpu.gradient(own, None, inputs, answers(100, 11, loss), activation=activation, loss=LOSSES[loss][0])
    assert value != value


def test_bad_input_is_named():
    own, pairs = made(50, [40, 11], tokens=TOKENS)
    target, options = answers(50, 11, ""), {"activation": "relu", "loss": Loss("mse")}
    for wrong in (pairs + 1000, pairs - 1000):
        with pytest.raises(IndexError, match=r"index must be in \[0, 26\)"):
            cpu.gradient(own, None, wrong, target, **options)
    with pytest.raises(IndexError, match=r"target must be in \[0, 11\), got 11"):
        cpu.gradient(own, None, pairs, target.clamp(min=11), **options)
    with pytest.raises(ValueError, match=r"target must be dense torch\.int64"):
        cpu.gradient(own, None, pairs, target.int(), **options)
    with pytest.raises(ValueError, match=r"weight must be dense torch\.float32"):
        cpu.gradient(made(50, [40, 11])[0], None, torch.randn(50, 41), target, **options)
    with pytest.raises(ValueError, match="one output"):
        cpu.gradient(own, None, pairs, target, activation="relu", loss=Loss("signs"))
