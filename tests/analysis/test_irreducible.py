"""Representations: of logits that are written down, of trained networks, of cyclic groups, and bad input."""

import math

import pytest
import torch
from torch import nn

from grokfast import Experiment, train
from grokfast.analysis import progress_measures, representations
from grokfast.models import PairMLPConfig
from grokfast.nn.ensemble import EnsembleModule
from grokfast.tasks import GroupTask, ModularTask
from grokfast.tasks.group import composition, elements

S4 = GroupTask(group="S4", train_fraction=0.5)
POINTS = torch.from_numpy(elements("S4")[0].copy())  # [24, 4]
PRODUCT = torch.from_numpy(composition("S4").copy())
INVERSE = (PRODUCT == 0).int().argmax(1)
FIXED = (torch.arange(4) == POINTS).sum(1).double()
SIGN = torch.tensor([(-1) ** sum(x > y for i, x in enumerate(p) for y in p[i + 1 :]) for p in POINTS.tolist()]).double()
STANDARD = FIXED - 1  # of degree 3: permutations of the corners of a tetrahedron


class Written(EnsembleModule):
    """Logits of a table [n, n, C]."""

    def __init__(self, table):
        super().__init__((0,))
        self.table = nn.Parameter(table[None])

    def forward(self, tokens):
        a, b = (tokens if tokens.ndim == 2 else tokens[0]).unbind(-1)
        return self.table[:, a, b]


def trace(chi):
    """[n, n, n], χ(a b c⁻¹)."""
    return chi[PRODUCT[PRODUCT][:, :, INVERSE]]


def test_logits_of_two_characters_are_theirs():
    found = representations(Written(4 * trace(STANDARD) + 3 * trace(SIGN) + 7), "S4", S4)
    assert found.degrees == (1, 2, 3, 3)
    assert found.names == ("1.1", "2.1", "3.1", "3.2")
    standard = found.variance[0].tolist().index(found.variance.max())
    expected = [9 / 25, 0, 0, 0]  # characters have the same norm
    expected[standard] = 16 / 25
    assert found.degrees[standard] == 3
    assert found.variance[0].tolist() == pytest.approx(expected)
    assert found.similarity[0].tolist() == pytest.approx([0.6, 0, *[0.8 if i == standard else 0 for i in (2, 3)]])
    assert found.restricted[0, 1].item() == pytest.approx(math.log(24))
    assert found.excluded[0, 1].item() == pytest.approx(found.train_loss.item())


def test_components_are_projections_and_losses_are_those_of_what_is_left():
    noise = torch.randn(24, 24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits = noise + 3 * trace(STANDARD)
    found, data = representations(Written(logits), "S4", S4), S4.build()
    rows = logits - logits.mean(-1, keepdim=True)
    energy = (rows - rows.mean((0, 1))).square().sum()
    at = int(found.similarity[0].argmax())
    kernel = STANDARD[PRODUCT[PRODUCT.reshape(-1)][:, INVERSE[PRODUCT.reshape(-1)]]] * 3 / 24 / 24  # [n², n²]
    assert torch.allclose(kernel @ kernel, kernel)
    assert kernel.trace().item() == pytest.approx(9)  # matrix elements of a representation of degree 3
    key = kernel @ rows.reshape(576, 24)
    assert found.variance[0, at].item() == pytest.approx((key.square().sum() / energy).item())
    cosine = (rows * trace(STANDARD)).sum() / (energy * trace(STANDARD).square().sum()).sqrt()
    assert found.similarity[0, at].item() == pytest.approx(cosine.item())
    flat, mean = rows.reshape(576, 24), (rows.reshape(576, 24) - key).mean(0)
    for split, name, left in ((data.test, "restricted", key + mean), (data.train, "excluded", flat - key)):
        chosen = split.inputs @ torch.tensor([24, 1])
        expected = nn.functional.cross_entropy(left[chosen], split.targets)
        assert getattr(found, name)[0, at].item() == pytest.approx(expected.item())


def test_those_of_a_cyclic_group_are_its_frequencies():
    task = ModularTask(p=11)
    model = PairMLPConfig(width=8).build(task.build(), seeds=(0, 1))
    found, progress = representations(model, task=task), progress_measures(model, task, frequencies=[2])
    assert found.names == ("1.1c", "1.2c", "1.3c", "1.4c", "1.5c")
    assert torch.allclose(found.variance, progress.shares)
    assert torch.allclose(found.restricted[:, 1], progress.restricted)
    assert torch.allclose(found.excluded[:, 1], progress.excluded)
    assert torch.allclose(found.test_loss, progress.test_loss)


def test_a_trained_network_has_more_of_them_than_an_untrained_one():
    experiment = Experiment.preset("d30").override(
        {"task.group": "D10", "task.train_fraction": 0.8, "model.width": 64, "schedule.steps": 200, "device": "cpu"}
    )
    run = train(experiment)
    found = representations(run)
    assert found.degrees == (1, 1, 1, *[2] * 4)
    before = representations(experiment.model.build(experiment.task.build()), "D10", experiment.task)
    assert found.variance.sum() > 0.5 > 0.1 > before.variance.sum()
    assert (found.similarity.square() <= found.variance + 1e-9).all()
    assert found.test_loss.item() == pytest.approx(run.final["test_loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: representations(Written(trace(SIGN)), "S4"), ValueError, "task must say what the model learns"),
        (lambda: representations(Written(trace(SIGN)), "E8", S4), ValueError, "group must be C<n>, D<n>"),
        (lambda: representations(Written(trace(SIGN)), 4, S4), TypeError, "group must be a string, got 4"),
        (lambda: representations(Written(trace(SIGN)), task=S4.build()), ValueError, "group must be named, as 'S5'"),
        (
            lambda: representations(Written(trace(SIGN)), "C24", S4),
            ValueError,
            r"task must have the answers of this operation on 0..23, it has others",
        ),
        (
            lambda: representations(
                Written(trace(SIGN)), task=GroupTask(group="S4", operation="conjugation")
            ),
            ValueError,
            "task must have the answers of this operation",
        ),
        (
            lambda: representations(
                PairMLPConfig(width=1).build(GroupTask(group="S6").build()), task=GroupTask(group="S6")
            ),
            ValueError,
            r"1 x 720² pairs x 720 are 373,248,000, 1.5 GB",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_told(call, error, message):
    with pytest.raises(error, match=message):
        call()
