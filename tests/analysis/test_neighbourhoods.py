"""Linear regions that one can count, and attacks on linear models in closed form."""

import numpy as np
import pytest
import torch

from grokfast import Experiment, train
from grokfast.analysis import adversarial_accuracy, local_complexity
from grokfast.losses import Hinge
from grokfast.models import MLPConfig, Module, PairMLPConfig, TokenMLPConfig, TransformerConfig
from grokfast.probes import LocalComplexity
from grokfast.tasks import Data, ModularTask, ParityTask, Split


def data_of(x, y, n_answers):
    return Data(splits={name: Split(x, y) for name in ("train", "test")}, n_tokens=0, n_answers=n_answers)


def network(*layers, n_outputs=2):
    """An MLP of given hidden layers (weight, bias), all of one width."""
    width, n_in = layers[0][0].shape
    data = data_of(torch.zeros(1, n_in, dtype=torch.float64), torch.zeros(1, dtype=torch.int64), n_outputs)
    model = MLPConfig(width=width, depth=len(layers)).build(data, dtype=torch.float64)
    with torch.no_grad():
        for layer, (w, b) in zip(model.layers, layers):
            layer.weight[0], layer.bias[0] = w, b
    return model


def test_kinks_on_a_line_are_counted_exactly():
    """Units relu(x - b) at b = 0, .1, ..., 1.9: an interval of radius r about x holds those with |x - b| < r."""
    kinks = torch.arange(20, dtype=torch.float64) / 10
    model = network((torch.ones(20, 1).double(), -kinks))
    for x, radius in ((0.95, 0.2), (0.55, 0.31), (5.0, 0.3), (-0.02, 0.05)):
        found = local_complexity(model, torch.tensor([[x]]), radius=radius, n_vertices=2)
        assert found.tolist() == [[sum(abs(x - b) < radius for b in kinks.tolist())]]
    points = torch.tensor([[0.95], [5.0]])
    assert local_complexity(model, points, radius=0.2, n_vertices=2).tolist() == [[2.0]]  # the mean of 4 and 0


def test_a_second_layer_bends_where_its_input_says():
    """|x| - c, of relu(x) + relu(-x): the second layer has its kinks at ±c; two in an interval are no change."""
    first = torch.tensor([[1.0], [-1.0]]).double(), torch.zeros(2).double()
    second = torch.ones(2, 2).double(), torch.tensor([-0.5, -2.0]).double()
    model = network(first, second)
    for x, radius, expected in ((0.5, 0.1, [0, 1]), (0.3, 0.4, [2, 1]), (0.0, 0.6, [2, 0]), (1.9, 0.2, [0, 1])):
        assert local_complexity(model, torch.tensor([[x]]), radius=radius, n_vertices=2).tolist() == [expected]


def test_a_full_frame_meets_every_plane_within_radius_over_root_d():
    """The cross-polytope of D orthonormal directions holds the ball of radius r/√D and lies in that of radius r."""
    d, n = 6, 400
    draws = torch.Generator().manual_seed(0)
    w = torch.nn.functional.normalize(torch.randn(n, d, generator=draws, dtype=torch.float64), dim=1)
    distances = torch.linspace(0, 2, n, dtype=torch.float64)
    model = network((w, -distances))
    found = local_complexity(model, torch.zeros(1, d), radius=1.0, n_vertices=2 * d, seed=1).item()
    assert (distances < d**-0.5).sum() <= found <= (distances < 1).sum()
    again = local_complexity(model, torch.zeros(1, d), radius=1.0, n_vertices=2 * d, seed=1).item()
    assert again == found
    others = {local_complexity(model, torch.zeros(1, d), radius=1.0, n_vertices=2 * d, seed=s).item() for s in range(5)}
    assert len(others) > 1


@pytest.mark.parametrize(
    ("config", "layers", "most"),
    [
        (PairMLPConfig(width=9, depth=2), 2, 9),
        (TokenMLPConfig(width=9, embed=4, depth=3), 3, 9),
        (TransformerConfig(d_model=8, n_heads=2, d_mlp=9, n_layers=2, norm="pre"), 2, 18),
    ],
)
def test_of_models_on_tokens(config, layers, most):
    task = ModularTask(p=7)
    model, x = config.build(task.build(), seeds=(0, 1)), task.build().train.inputs[:6]
    small, large = (local_complexity(model, x, radius=r, n_vertices=4) for r in (1e-6, 100))
    assert small.shape == large.shape == (2, layers)
    assert (small < 1).all()
    assert (large > 1).all()
    assert (large <= most).all()
    assert torch.equal(local_complexity(config.build(task.build(), seeds=(1,)), x, radius=1, n_vertices=4)[0],
                       local_complexity(model, x, radius=1, n_vertices=4)[1])  # fmt: skip


def test_a_probe_that_is_the_same_alone_and_in_company():
    small = Experiment.preset("quick").override(
        {"task.p": 7, "model.width": 16, "schedule.steps": 12, "schedule.eval_every": 4, "device": "cpu"}
    )
    probe = LocalComplexity(n_points=200, radius=0.5, n_vertices=6)
    experiments = [small.override({"probes": (probe,), "seed": s, "task.train_fraction": f}) for s, f in
                   ((0, 0.5), (1, 0.7))]  # fmt: skip
    for together, experiment in zip(train(experiments), experiments):
        curve = together.curves["train_local_complexity"]
        assert (curve > 0).all()
        np.testing.assert_array_equal(curve, train(experiment).curves["train_local_complexity"])
    # Of strata of 200 points each of 24 rows comes 8 or 9 times: nearly the mean over rows.
    one = train(experiments[0])
    rows = one.experiment.task.build(seed=0).train.inputs
    expected = np.mean([local_complexity(one, rows, radius=0.5, n_vertices=6, seed=s).sum().item() for s in range(9)])
    assert one.curves["train_local_complexity"][-1] == pytest.approx(expected, rel=0.15)


class TestAttacks:
    def test_a_linear_classifier_falls_where_its_margin_does(self):
        """A row (x, y) stays right while (w_y - w_c) · x > ε · |w_y - w_c|_1, here with two classes."""
        draws = torch.Generator().manual_seed(0)
        x = torch.randn(500, 3, generator=draws, dtype=torch.float64)
        w = torch.tensor([[1.0, -2.0, 0.5], [0.0, 1.0, 0.3]], dtype=torch.float64)
        y = (x @ w.T).argmax(1)
        y[:50] = 1 - y[:50]
        data = data_of(x, y, 2)
        model = MLPConfig(depth=0, bias=False).build(data, dtype=torch.float64)
        with torch.no_grad():
            model.layers[0].weight[0] = w
        margins = (x @ (w[0] - w[1])) * (1 - 2 * y)
        for epsilon in (0, 0.1, 0.4):
            expected = (margins > epsilon * (w[0] - w[1]).abs().sum()).double().mean().item()
            found = adversarial_accuracy(model, data, epsilon=epsilon)
            assert found.tolist() == pytest.approx([expected])
        assert expected < 0.7

    def test_signs_of_a_hinge(self):
        run = train(
            Experiment(
                name="signs", task=ParityTask(n=5, k=1, n_train=20, n_test=10), model=MLPConfig(depth=0, bias=False),
                loss=Hinge(), device="cpu",
            ).override({"schedule.steps": 200, "schedule.eval_every": 100, "optimizer.lr": 0.05})
        )  # fmt: skip
        w, data = next(iter(run.weights.values()))[0].double(), run.experiment.task.build(seed=0)
        margins = (data.test.inputs.double() @ w) * data.test.targets[:, 0]
        for epsilon in (0.0, 0.5, 0.95):
            expected = (margins > epsilon * w.abs().sum()).double().mean().item()
            assert adversarial_accuracy(run, epsilon=epsilon).item() == pytest.approx(expected)

    @pytest.mark.parametrize(
        "config", [PairMLPConfig(width=9), TransformerConfig(d_model=8, n_heads=2, d_mlp=9, n_layers=1)]
    )
    def test_more_is_worse_and_nothing_is_the_accuracy(self, config):
        task = ModularTask(p=5)
        model, data = config.build(task.build(), seeds=(0, 1)), [task.build(seed=s) for s in (0, 1)]
        found = [adversarial_accuracy(model, task, epsilon=e, steps=5, split="train") for e in (0, 0.01, 10)]
        clean = [(model(d.train.inputs)[e].argmax(-1) == d.train.targets).double().mean() for e, d in enumerate(data)]
        assert torch.equal(found[0], torch.stack(clean))
        assert (found[2] <= found[1]).all()
        assert (found[1] <= found[0]).all()
        assert found[2].max() < 0.05


PAIR = PairMLPConfig(width=4).build(ModularTask(p=5).build())
ROWS = torch.tensor([[1, 2]])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: local_complexity(PAIR, ROWS, radius=0), ValueError, "radius must be in"),
        (lambda: local_complexity(PAIR, ROWS, n_vertices=22), ValueError, "n_vertices must be between 2 and 20"),
        (lambda: local_complexity(PAIR, ROWS, n_vertices=3), ValueError, "n_vertices must be even"),
        (lambda: local_complexity(PAIR, [1, 2]), TypeError, "points must be inputs"),
        (lambda: local_complexity(3, ROWS), TypeError, "model must be a run's result"),
        (lambda: adversarial_accuracy(PAIR, ModularTask(p=5), epsilon=-1), ValueError, "epsilon must be in"),
        (lambda: adversarial_accuracy(PAIR, ModularTask(p=5), epsilon=1, steps=0), ValueError, "steps must be"),
        (lambda: adversarial_accuracy(PAIR, ModularTask(p=5), epsilon=1, split="tset"), ValueError, "split must be"),
        (lambda: LocalComplexity(n_points=0), ValueError, "n_points must be"),
        (lambda: LocalComplexity(split="tset").columns(ModularTask().build()), ValueError, "split must be one of"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_module_that_tells_nothing_is_told_what_it_needs():
    data = data_of(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64), 2)
    own = Module(factory=lambda data: torch.nn.Linear(3, 2)).build(data)
    with pytest.raises(TypeError, match="tells its preactivations"):
        local_complexity(own, data.train.inputs, n_vertices=2)
    assert adversarial_accuracy(own, data, epsilon=0.0).shape == (1,)
