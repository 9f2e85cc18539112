import pytest
import torch

from grokfast import backend
from grokfast.ops.classify.reference import classify
from grokfast.ops.pair_embed.reference import pair_embed
from grokfast.ops.pair_step import cpu
from grokfast.ops.pair_step.reference import Parameters

P, WIDTH, CLASSES = 13, 33, 11
SIZES = [1, 50, 61]
pytestmark = pytest.mark.skipif(backend.extension() is None, reason="needs the C++ extension")


def weights(bias=True, seed=0, width=WIDTH, classes=CLASSES):
    generator = torch.Generator().manual_seed(seed)
    shapes = (P, width), (P, width), (width,), (classes, width), (classes,)
    made = [torch.randn(shape, generator=generator) for shape in shapes]
    return Parameters(*(t if bias or t.ndim > 1 else None for t in made))


def rows(n, seed=0, classes=CLASSES):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(high, (n,), generator=generator) for high in (P, P, classes)]


def by_torch(given, a, b, target, loss, dtype):
    """Loss, accuracy and gradients by autograd."""
    own = [None if t is None else t.to(dtype)[None].requires_grad_() for t in given]
    w_a, w_b, b_in, weight, bias = own
    hidden = pair_embed(w_a, w_b, torch.stack([a, b], 1)[None], b_in, "relu")
    logits = hidden @ weight.mT
    logits = logits if bias is None else logits + bias[:, None]
    value, accuracy = classify(logits, target[None], loss)
    grads = torch.autograd.grad(value.sum(), [t for t in own if t is not None])
    return value[0].detach(), accuracy[0], [g[0] for g in grads]


def error(got, exact):
    return (got.double() - exact).norm() / exact.norm().clamp(min=1e-30)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_loss_accuracy_and_gradients_are_as_good_as_torchs(loss, bias, n):
    assert_as_good(weights(bias), rows(n), loss)


@pytest.mark.parametrize(("width", "classes"), [(100, 17), (64, 24), (130, 25), (16, 5), (37, 97), (3, 113), (70, 136)])
def test_any_number_of_units_and_classes(width, classes, isa):
    given = weights(width=width, classes=classes)
    assert_as_good(given, rows(300, classes=classes), "cross_entropy")


def assert_as_good(given, operands, loss):
    a, b, target = operands
    grads = Parameters(*(None if t is None else torch.full_like(t, torch.nan) for t in given))
    value, accuracy = cpu.gradient(given, grads, a, b, target, loss=loss)
    exact, right, exact_grads = by_torch(given, a, b, target, loss, torch.float64)
    theirs, _, torch_grads = by_torch(given, a, b, target, loss, torch.float32)
    eps = torch.finfo(torch.float32).eps
    assert accuracy == pytest.approx(right.item(), rel=1e-6)
    assert error(torch.tensor(value), exact) <= 2 * error(theirs, exact) + eps
    for got, by_them, correct in zip([g for g in grads if g is not None], torch_grads, exact_grads):
        assert error(got, correct) <= 2 * error(by_them, correct) + eps


def test_without_gradients_loss_and_accuracy_are_the_same_bits():
    given, operands = weights(), rows(61)
    grads = Parameters(*map(torch.empty_like, given))
    measured = cpu.gradient(given, None, *operands, loss="cross_entropy")
    assert measured == cpu.gradient(given, grads, *operands, loss="cross_entropy")


def test_any_number_of_threads_gives_the_same_bits(monkeypatch, isa):
    given, operands, results = weights(width=40), rows(400), []
    for threads in (1, 2, 3, 7):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        grads = Parameters(*map(torch.empty_like, given))
        found = cpu.gradient(given, grads, *operands, loss="cross_entropy")
        results.append((torch.tensor(found), *grads))
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other))


def test_an_index_out_of_range_is_refused():
    a, b, target = rows(50)
    for wrong in ((a + P, b, target), (a, b - P, target), (a, b, target + CLASSES)):
        with pytest.raises(IndexError, match=r"must be in \[0, 1[13]\)"):
            cpu.gradient(weights(), None, *wrong, loss="mse")


def test_nan_comes_through():
    given, operands = weights(), rows(50)
    given.w_a[operands[0][7], 3] = torch.nan
    loss, _ = cpu.gradient(given, None, *operands, loss="cross_entropy")
    assert loss != loss


def test_it_takes_a_relu_and_up_to_136_classes():
    assert cpu.only_active("relu", 136)
    assert not cpu.only_active("relu", 137)
    assert not cpu.only_active("square", 5)
