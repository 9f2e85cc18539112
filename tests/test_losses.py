"""Losses of every kind of target against plain PyTorch, in fp64."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.optim import SGD

from grokfast import Chain, GrokFast
from grokfast.losses import MSE, CrossEntropy, Hinge, StableMax, regress
from grokfast.ops.classify import position_accuracy

E, N, S, C, R = 2, 7, 3, 5, 4


def _positions(dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(E, N, S, C, generator=g, dtype=dtype, requires_grad=True)
    target = torch.randint(C, (E, N, S), generator=g)
    target[:, :3] = logits.detach()[:, :3].argmax(-1)  # some rows are all right
    return logits, target


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_several_answers_is_torchs_mean(dtype, smoothing):
    logits, target = _positions(dtype)
    loss, accuracy = CrossEntropy(label_smoothing=smoothing)(logits, target)
    for e in range(E):
        expected = F.cross_entropy(logits[e].flatten(0, 1), target[e].flatten(), label_smoothing=smoothing)
        torch.testing.assert_close(loss[e], expected)
    right = logits.argmax(-1) == target
    torch.testing.assert_close(accuracy, right.all(-1).to(dtype).mean(1))
    torch.testing.assert_close(position_accuracy(logits, target), right.to(dtype).mean(1))


def test_mse_of_several_answers():
    logits, target = _positions()
    loss, _ = MSE()(logits, target)
    torch.testing.assert_close(loss, (logits - F.one_hot(target, C)).square().mean((1, 2, 3)))


@pytest.mark.parametrize(
    "loss", [CrossEntropy(), CrossEntropy(label_smoothing=0.2), CrossEntropy(temperature=3.0), MSE()], ids=str
)
def test_rows_that_do_not_exist_do_not_count(loss):
    logits, target = _positions()
    exists = torch.arange(N) < torch.tensor([[N], [4]])
    value, accuracy = loss(logits, target, exists)
    alone = loss(logits[1:, :4], target[1:, :4])
    torch.testing.assert_close(torch.stack([value[1], accuracy[1]]), torch.cat(alone))
    torch.testing.assert_close(
        position_accuracy(logits, target, exists)[1], position_accuracy(logits[1:, :4], target[1:, :4])[0]
    )


@pytest.mark.parametrize(
    "loss", [CrossEntropy(), CrossEntropy(label_smoothing=0.2), MSE(), Hinge(), StableMax()], ids=str
)
@pytest.mark.parametrize("some_rows", [False, True])
def test_answers_that_are_not_asked_do_not_count(loss, some_rows):
    logits, target = _positions()
    target[:, 1, 0] = target[:, 4:6, 1] = target[0, 6, :2] = -1
    exists = torch.arange(N) < torch.tensor([[N], [5]]) if some_rows else None
    value, accuracy = loss(logits, target, exists)
    counts = (target >= 0) if exists is None else (target >= 0) & exists[..., None]
    for e in range(E):
        one = loss(logits[e][counts[e]][None], target[e][counts[e]][None])[0]
        torch.testing.assert_close(value[e : e + 1], one)
        rows = [r for r in range(N) if exists is None or exists[e, r]]
        right = [all(logits[e, r, s].argmax() == t for s, t in enumerate(target[e, r]) if t >= 0) for r in rows]
        assert accuracy[e] == pytest.approx(sum(right) / len(rows))
    at = position_accuracy(logits, target, exists)
    own = (logits.argmax(-1) == target) & counts
    torch.testing.assert_close(at, own.sum(1).double() / counts.sum(1))
    value.sum().backward()
    assert torch.equal(logits.grad.flatten(3).abs().sum(-1) > 0, counts.expand(E, N, S)) or isinstance(loss, Hinge)


def test_cross_entropy_passes_over_them_as_torch_does():
    logits, target = _positions()
    target[:, 1, 0] = target[:, 4:6, 1] = -1
    loss, _ = CrossEntropy()(logits, target)
    for e in range(E):
        torch.testing.assert_close(
            loss[e], F.cross_entropy(logits[e].flatten(0, 1), target[e].flatten(), ignore_index=-1)
        )


@pytest.mark.parametrize("answer", [-2, C])
def test_no_other_answer_is_passed_over(answer):
    logits, target = _positions()
    target[0, 0, 0] = answer
    with pytest.raises(IndexError, match="target"):
        CrossEntropy()(logits, target)


def test_real_targets_are_judged_by_r_squared():
    g = torch.Generator().manual_seed(1)
    y = torch.randn(E, N, R, generator=g, dtype=torch.float64)
    outputs = (y + 0.1 * torch.randn(E, N, R, generator=g, dtype=torch.float64)).requires_grad_()
    loss, accuracy = MSE()(outputs, y)
    for e in range(E):
        torch.testing.assert_close(loss[e], F.mse_loss(outputs[e], y[e]))
        spread = (y[e] - y[e].mean(0)).square().sum()
        torch.testing.assert_close(accuracy[e], 1 - (outputs[e] - y[e]).detach().square().sum() / spread)
    exists = torch.arange(N) < torch.tensor([[N], [4]])
    ragged = torch.stack(regress(outputs, y, exists))[:, 1]
    torch.testing.assert_close(ragged, torch.cat(regress(outputs[1:, :4], y[1:, :4])))


def test_r_squared_of_constant_targets():
    y = torch.ones(2, N, 1)
    outputs = torch.stack([y[0], y[0] + 1])
    assert regress(outputs, y)[1].tolist() == [1, 0]


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_a_temperature_divides_the_logits(smoothing):
    logits, target = _positions()
    loss, accuracy = CrossEntropy(label_smoothing=smoothing, temperature=2.5)(logits, target)
    of_models = torch.tensor([2.5, 0.3], dtype=torch.float64)  # as a schedule, or runs that differ, have it
    two, _ = CrossEntropy(label_smoothing=smoothing)(logits, target, temperature=of_models)
    for e, value in enumerate(of_models.tolist()):
        expected = F.cross_entropy(logits[e].flatten(0, 1) / value, target[e].flatten(), label_smoothing=smoothing)
        torch.testing.assert_close(two[e], expected)
    torch.testing.assert_close(loss[0], two[0])
    assert torch.equal(accuracy, CrossEntropy()(logits, target)[1])


def test_a_loss_with_a_temperature_is_not_in_fused_steps():
    assert CrossEntropy().op == "cross_entropy"
    assert CrossEntropy(temperature=2.0).op is None
    for value in (0, -1.0, float("inf"), "warm"):
        with pytest.raises((TypeError, ValueError), match=r"loss\.temperature"):
            CrossEntropy(temperature=value)


@pytest.mark.parametrize("loss", [Hinge(), StableMax()], ids=str)
def test_a_loss_is_no_transform(loss):
    for wrong in (lambda: Chain(loss), lambda: GrokFast(SGD([torch.zeros(3, requires_grad=True)]), loss)):
        with pytest.raises(TypeError, match="transform"):
            wrong()


@pytest.mark.parametrize(
    "loss", [CrossEntropy(), CrossEntropy(label_smoothing=0.3), CrossEntropy(temperature=0.7), MSE()], ids=str
)
def test_gradients_of_several_answers(loss):
    logits, target = _positions()
    assert torch.autograd.gradcheck(lambda x: loss(x, target)[0], logits)
    exists = torch.arange(N) < torch.tensor([[N], [4]])
    assert torch.autograd.gradcheck(lambda x: loss(x, target, exists)[0], logits)


def test_gradients_of_real_targets():
    y = torch.randn(E, 4, 2, dtype=torch.float64)
    x = torch.randn(E, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: regress(x, y)[0], x)


def test_cross_entropy_says_that_it_takes_no_real_targets():
    data = SimpleNamespace(is_real=True, train=SimpleNamespace(targets=torch.zeros(5, 2)))
    assert "[5, 2]" in CrossEntropy().why_not(data)
    assert MSE().why_not(data) == ""


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"target must be \(2, 7, 3\)"):
        CrossEntropy()(torch.zeros(E, N, S, C), torch.zeros(E, N, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="outputs must be"):
        MSE()(torch.zeros(E, N, R), torch.zeros(E, N, 1))


def test_hinge_of_signs():
    f = torch.tensor([[[2.0], [0.5], [-1.0], [0.0]]])
    y = torch.tensor([[[1.0], [1.0], [1.0], [-1.0]]])
    loss, accuracy = Hinge()(f, y)
    assert loss.item() == pytest.approx((0 + 0.5 + 2 + 1) / 4)
    assert accuracy.item() == 0.5  # no sign is no answer
    loss, accuracy = Hinge()(f, y, torch.tensor([[True, False, True, False]]))
    assert (loss.item(), accuracy.item()) == (1.0, 0.5)


def test_hinge_of_classes_is_torchs():
    logits, target = torch.randn(2, 9, 5, dtype=torch.float64, requires_grad=True), torch.randint(5, (2, 9))
    loss, _ = Hinge()(logits, target)
    for e in range(2):
        expected = torch.nn.functional.multi_margin_loss(logits[e], target[e])
        torch.testing.assert_close(loss[e], expected)
    assert torch.autograd.gradcheck(lambda x: Hinge()(x, target)[0], logits)


def test_stablemax_by_its_definition():
    logits, target = 5 * torch.randn(2, 9, 5, dtype=torch.float64), torch.randint(5, (2, 9))
    s = torch.where(logits >= 0, logits + 1, 1 / (1 - logits))
    expected = -(s / s.sum(-1, keepdim=True)).gather(-1, target[..., None]).log()[..., 0]
    loss, accuracy = StableMax()(logits, target)
    torch.testing.assert_close(loss, expected.mean(1))
    torch.testing.assert_close(accuracy, (logits.argmax(-1) == target).double().mean(1))
    exists = torch.rand(2, 9) < 0.7
    torch.testing.assert_close(StableMax()(logits, target, exists)[0], (expected * exists).sum(1) / exists.sum(1))


def test_stablemax_has_slope_1_at_0():
    """s(0) = 1, and its slope is 1 from both sides."""
    logits, target = torch.zeros(1, 1, 4, dtype=torch.float64, requires_grad=True), torch.tensor([[2]])
    (grad,) = torch.autograd.grad(StableMax()(logits, target)[0].sum(), logits)
    torch.testing.assert_close(grad[0, 0], torch.tensor([0.25, 0.25, -0.75, 0.25], dtype=torch.float64))


def test_stablemax_survives_what_collapses_softmax():
    """Logits of 1e4: fp32's softmax has no gradient left, stablemax has."""
    logits = torch.tensor([[[1e4, 0.0, -1e4]]], requires_grad=True)
    (grad,) = torch.autograd.grad(StableMax()(logits, torch.tensor([[0]]))[0].sum(), logits)
    assert grad[0, 0, 1] > 0
    (dead,) = torch.autograd.grad(CrossEntropy()(logits, torch.tensor([[0]]))[0].sum(), logits)
    assert not dead.any()
    x = torch.randn(1, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: StableMax()(x, torch.tensor([[0, 1, 2, 0]]))[0], x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_of_a_hinge_of_signs_is_autograds(dtype):
    outputs = torch.tensor([[0.5, 1.0, 2.0, -1.0, 0.0, -3.0]], dtype=dtype)[..., None].requires_grad_()
    target = torch.tensor([[1.0, 1.0, 1.0, -1.0, -1.0, 1.0]])[..., None]  # two lie on the edge
    value, accuracy = Hinge()(outputs, target)
    (expected,) = torch.autograd.grad(value.sum(), outputs)
    found = Hinge().gradient(outputs.detach(), target)
    for got, right in zip(found, (value.detach(), accuracy, expected)):
        torch.testing.assert_close(got, right)


@pytest.mark.parametrize("loss", [CrossEntropy(label_smoothing=0.1), MSE(), StableMax(), Hinge()], ids=str)
def test_the_gradient_of_a_loss_is_that_of_its_value(loss):
    logits, target = _positions()
    value, accuracy = loss(logits, target)
    (expected,) = torch.autograd.grad(value.sum(), logits)
    with torch.no_grad():
        found = loss.gradient(logits, target)
    assert not any(t.requires_grad for t in found)
    for got, right in zip(found, (value.detach(), accuracy, expected)):
        torch.testing.assert_close(got, right)
