"""Progress measures: of written-down and of trained networks, at the ends of their scale, and bad input."""

import math

import pytest
import torch
from torch import nn

from grokfast import Experiment, train
from grokfast.analysis import idealized_pair_mlp, progress_measures
from grokfast.models import PairMLPConfig, TransformerConfig
from grokfast.nn.ensemble import EnsembleModule
from grokfast.tasks import GroupTask, ModularTask, ParityTask

P = 13
TASK = ModularTask(operation="add", p=P, train_fraction=0.5)


class Written(EnsembleModule):
    """Logits 5 Σ_k cos(2πk(a + b - c)/p) over each model's ks, and noise of a table of the pairs."""

    def __init__(self, ks, noise=0.0):
        super().__init__(tuple(range(len(ks))))
        a, b, c = torch.meshgrid(*[torch.arange(P, dtype=torch.float64)] * 3, indexing="ij")
        waves = [sum(5 * torch.cos(2 * math.pi * k * (a + b - c) / P) for k in own) for own in ks]
        table = torch.stack(waves) + noise * torch.randn(len(ks), P, P, P, generator=torch.Generator().manual_seed(0))
        self.table = nn.Parameter(table)

    def forward(self, tokens):
        a, b = (tokens if tokens.ndim == 2 else tokens[0]).unbind(-1)
        return self.table[:, a, b]


def test_written_frequencies_are_found_and_losses_are_what_they_say():
    model = Written([(2, 5), (1,)], noise=2.0)
    found = progress_measures(model, TASK)
    assert found.frequencies == ((2, 5), (1,))
    assert found.shares.shape == (2, 6)
    pairs = torch.cartesian_prod(torch.arange(P), torch.arange(P))
    for e, ks in enumerate([(2, 5), (1,)]):
        data, logits = TASK.build(seed=e), model(pairs)[e].detach()
        basis = []
        for k in ks:
            angle = 2 * math.pi * k * pairs.sum(1).double() / P
            basis += [angle.cos() * 2**0.5 / P, angle.sin() * 2**0.5 / P]
        basis = torch.stack(basis)  # [2K, p²], orthonormal
        key = basis.T @ (basis @ logits)
        rest = (logits - key).mean(0)

        def loss(values, split):
            rows = split.inputs @ torch.tensor([P, 1])
            return nn.functional.cross_entropy(values[rows], split.targets).item()

        assert found.restricted[e].item() == pytest.approx(loss(key + rest, data.test))
        assert found.excluded[e].item() == pytest.approx(loss(logits - key, data.train))
        assert found.train_loss[e].item() == pytest.approx(loss(logits, data.train))
        assert found.test_loss[e].item() == pytest.approx(loss(logits, data.test))


def test_pure_frequencies_restrict_to_all_and_exclude_to_nothing():
    found = progress_measures(Written([(3,)]), TASK)
    assert found.shares[0].tolist() == pytest.approx([0, 0, 1, 0, 0, 0])
    assert found.restricted.item() == pytest.approx(found.test_loss.item())
    assert found.excluded.item() == pytest.approx(math.log(P))
    other = progress_measures(Written([(3,)]), TASK, frequencies=[1])
    assert other.frequencies == ((1,),)
    assert other.restricted.item() == pytest.approx(math.log(P))
    assert other.excluded.item() == pytest.approx(other.train_loss.item())


def test_any_layout_and_subtraction_have_them():
    config = TransformerConfig(d_model=16, n_heads=2, d_mlp=16, outputs="tokens")
    for layout in ("equals", "operator"):
        task = ModularTask(operation="sub", p=P, layout=layout)
        found = progress_measures(config.build(task.build(seed=0)), task)
        assert 0 < found.shares.sum() < 0.5
        assert found.excluded.item() == pytest.approx(found.train_loss.item(), rel=0.2)
    cyclic = GroupTask(group="C13")  # the same answers
    of_group = progress_measures(idealized_pair_mlp(P, 32), cyclic)
    assert torch.equal(of_group.shares, progress_measures(idealized_pair_mlp(P, 32), TASK).shares)


def test_a_network_that_generalised_has_functions_of_the_sum_and_needs_them():
    run = train(
        Experiment.preset("quick").override(
            {"task.p": 31, "task.train_fraction": 0.6, "schedule.steps": 800, "schedule.eval_every": 100,
             "device": "cpu"}
        )
    )  # fmt: skip
    assert run.final["test_accuracy"] > 0.9
    task = run.experiment.task
    found, before = progress_measures(run), progress_measures(run.experiment.model.build(task.build()), task)
    assert found.test_loss.item() == pytest.approx(run.final["test_loss"], rel=1e-4)
    assert found.train_loss.item() == pytest.approx(run.final["train_loss"], rel=1e-4)
    assert found.shares.sum() > 0.5 > 0.1 > before.shares.sum()
    assert found.restricted.item() < found.test_loss.item()
    assert found.excluded.item() > 100 * found.train_loss.item()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: progress_measures(Written([(1,)])), ValueError, "task must say what the model learns"),
        (
            lambda: progress_measures(Written([(1,)]), ModularTask(operation="mul", p=P)),
            ValueError,
            r"task must be a \+ b or a - b mod p, the answers to 0..12 are others",
        ),
        (lambda: progress_measures(Written([(1,)]), GroupTask(group="D5")), ValueError, r"task must be a \+ b or a"),
        (lambda: progress_measures(Written([(1,)]), ParityTask()), ValueError, "task must ask one answer to two"),
        (lambda: progress_measures(Written([(1,)]), TASK, threshold=0), ValueError, r"threshold must be in \(0, 1\)"),
        (
            lambda: progress_measures(Written([(1,)]), TASK, frequencies=[7]),
            ValueError,
            r"frequencies\[0\] must be between 1 and 6, got 7",
        ),
        (
            lambda: progress_measures(
                PairMLPConfig(width=1).build(ModularTask(p=521, train_fraction=0.01).build()), ModularTask(p=521)
            ),
            ValueError,
            r"at most 134,217,728 logits of all pairs, all models together: 1 x 521² pairs x 521 are 141,420,761, 0.57",
        ),
    ],
)
def test_bad_input_is_told(call, error, message):
    with pytest.raises(error, match=message):
        call()
