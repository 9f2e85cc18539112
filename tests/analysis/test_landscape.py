"""Curvature and learning coefficients in closed form, and segments between models."""

import math

import pytest
import torch

from grokfast import Experiment, train
from grokfast.analysis import linear_mode_connectivity, local_learning_coefficient, sharpness
from grokfast.losses import MSE
from grokfast.measures.curvature import largest_eigenvalue
from grokfast.measures.learning_coefficient import learning_coefficient
from grokfast.models import MLPConfig, PairMLPConfig, TransformerConfig
from grokfast.tasks import Data, ModularTask, Split

TASK = ModularTask(p=5)
TINY = Experiment.preset("quick").override(
    {"task.p": 7, "model.width": 8, "schedule.steps": 30, "schedule.eval_every": 10, "device": "cpu"}
)


def regression(n=40, d=5):
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=draws) * torch.arange(1, d + 1)
    split = Split(x, torch.randn(n, 1, generator=draws))
    return Data(splits={"train": split, "test": split}, n_tokens=0, n_answers=1)


class TestSharpness:
    def test_of_a_quadratic(self):
        q = torch.linalg.qr(torch.randn(30, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
        for eigenvalues in (torch.linspace(-7, 3, 30), torch.linspace(-9, -2, 30), torch.linspace(0, 5, 30)):
            a = (q * eigenvalues.double()) @ q.T
            found = largest_eigenvalue(lambda w, a=a: w @ a @ w / 2 + w.sum(), torch.ones(30).double(), tolerance=1e-9)
            assert found == pytest.approx(eigenvalues.max().item(), abs=1e-6)

    def test_of_few_or_nothing(self):
        assert largest_eigenvalue(lambda w: 3 * w[0] ** 2, torch.ones(1)) == 6
        assert largest_eigenvalue(lambda w: w.sum(), torch.ones(4)) == 0
        assert largest_eigenvalue(lambda w: w[0] ** 2, torch.ones(2).double()) == pytest.approx(2)

    def test_of_least_squares(self):
        """The Hessian of mean (w · x - y)² is 2 XᵀX / n."""
        data = regression()
        model = MLPConfig(depth=0, bias=False).build(data, seeds=(0, 1))
        x = data.train.inputs.double()
        expected = torch.linalg.eigvalsh(2 * x.T @ x / len(x)).max().item()
        assert sharpness(model, data, tolerance=1e-9).tolist() == pytest.approx([expected, expected])

    @pytest.mark.parametrize(
        "config",
        [
            PairMLPConfig(width=4),
            TransformerConfig(d_model=4, n_heads=2, d_mlp=4, norm="pre", activation="gelu"),
        ],
    )
    def test_of_models_it_is_what_the_whole_hessian_says(self, config):
        data = TASK.build()
        model = config.build(data, seeds=(3, 4))
        found = sharpness(model, data, tolerance=1e-6)
        for e in range(2):
            alone = config.build(data, seeds=(3 + e,), dtype=torch.float64)
            parameters = dict(alone.named_parameters())
            sizes = [p.numel() for p in parameters.values()]

            def loss(flat, alone=alone, parameters=parameters, sizes=sizes):
                own = {n: w.view_as(p) for (n, p), w in zip(parameters.items(), flat.split(sizes))}
                logits = torch.func.functional_call(alone, own, (data.train.inputs,))[0]
                return -logits.log_softmax(-1)[range(len(logits)), data.train.targets].mean()

            import grokfast.backend

            with grokfast.backend.using("reference"):
                flat = torch.cat([p.detach().flatten() for p in parameters.values()])
                hessian = torch.autograd.functional.hessian(loss, flat)
            assert found[e].item() == pytest.approx(torch.linalg.eigvalsh(hessian).max().item(), rel=1e-4)

    def test_of_a_run_it_is_of_its_own_loss(self):
        run = train(TINY.override({"loss": "mse"}))
        module = TINY.model.build(run.experiment.task.build(seed=0), seeds=(0,))
        with torch.no_grad():
            for name, p in module.named_parameters():
                p[0] = run.weights[name]
        own = sharpness(run)
        assert torch.equal(own, sharpness(module, run.experiment.task, loss=MSE()))
        assert abs(own.item() / sharpness(module, run.experiment.task).item() - 1) > 0.1


class TestLearningCoefficient:
    @pytest.mark.parametrize("powers", [(2, 2, 2), (2, 4), (4, 6)])
    @pytest.mark.parametrize("n_beta", [2.0, 50.0])
    def test_of_sums_of_powers(self, powers, n_beta):
        """Σ 1/p_i; steps of ε nβ = .04 leave 1% at p = 2."""
        p = torch.tensor(powers)
        found = learning_coefficient(
            lambda w, step: (w**p).sum(1) / 2, torch.zeros(len(powers), dtype=torch.float64), epsilon=0.04 / n_beta,
            n_beta=n_beta, gamma=0.0, draws=1500, burn_in=500, chains=200,
        )  # fmt: skip
        expected = sum(1 / power for power in powers)
        error = found.chains.std().item() / math.sqrt(200)
        assert error < 0.02
        assert found.value == pytest.approx(expected, abs=0.02 * expected + 4 * error)
        assert found.losses.shape == (200, 1500)

    def test_a_tether_holds_it_back(self):
        """½ Σ w² with nβ and γ: w ~ N(0, 1/(nβ + γ)), half of nβ/(nβ + γ) each."""
        found = learning_coefficient(
            lambda w, step: w.square().sum(1) / 2, torch.zeros(10, dtype=torch.float64), epsilon=0.01, n_beta=2.0,
            gamma=6.0, draws=1000, burn_in=200, chains=50,
        )  # fmt: skip
        assert found.value == pytest.approx(10 / 2 * 2 / 8, rel=0.05)

    def test_of_least_squares_it_is_half_the_parameters(self):
        """At the minimum L is ½ (w - w*)ᵀ H (w - w*): half for each eigenvalue h, and 1/(1 - ε nβ h/4) by the steps."""
        data = regression(d=3)
        model = MLPConfig(depth=0, bias=False).build(data, dtype=torch.float64)
        with torch.no_grad():
            x, y = data.train.inputs.double(), data.train.targets.double()
            model.layers[0].weight[0] = torch.linalg.lstsq(x, y).solution.T
        options = {"epsilon": 2e-4, "n_beta": 100.0, "gamma": 0.0, "draws": 800, "burn_in": 200, "chains": 30}
        (found,) = local_learning_coefficient(model, data, **options)
        eigenvalues = torch.linalg.eigvalsh(2 * x.T @ x / len(x))
        expected = (0.5 / (1 - 2e-4 * 100 * eigenvalues / 4)).sum().item()
        error = found.chains.std().item() / math.sqrt(30)
        assert error < 0.1
        assert found.value == pytest.approx(expected, abs=4 * error)
        (batches,) = local_learning_coefficient(model, data, batch_size=4, draws=3, chains=2)
        (again,) = local_learning_coefficient(model, data, batch_size=4, draws=3, chains=2)
        (other,) = local_learning_coefficient(model, data, batch_size=4, draws=3, chains=2, seed=1)
        assert torch.equal(batches.losses, again.losses)
        assert not torch.equal(batches.losses, other.losses)

    def test_of_a_run(self):
        run = train(TINY)
        found = local_learning_coefficient([run, run], draws=5, chains=2)
        assert len(found) == 2
        assert found[0].losses[:, 0].tolist() == [0, 0]  # chains begin at the weights
        assert (found[0].losses[:, 1:] != 0).all()
        assert torch.equal(found[0].losses, found[1].losses)


class TestSegments:
    def test_ends_are_the_runs_own(self):
        a, b = (train(TINY.override({"seed": s, "task.split_seed": 0})) for s in (0, 1))
        found = linear_mode_connectivity(a, b, n_points=5)
        assert found.t.tolist() == [0, 0.25, 0.5, 0.75, 1]
        for split in ("train", "test"):
            for run, end in ((a, 0), (b, -1)):
                assert found.loss[split][end].item() == pytest.approx(run.final[f"{split}_loss"], rel=1e-4)
                assert found.accuracy[split][end].item() == pytest.approx(run.final[f"{split}_accuracy"])
        assert set(found.barrier) == {"train", "test"}

    def test_a_model_is_connected_with_itself(self):
        run = train(TINY)
        assert linear_mode_connectivity(run, run, n_points=3).barrier == pytest.approx({"train": 0, "test": 0})

    def test_the_barrier_of_two_permuted_units(self):
        """act(w x) v with (w, v) = (±1, ±1): halfway between all is 0. Targets are |x|, units "abs" of one weight."""
        x = torch.linspace(-1, 1, 9)[:, None]
        split = Split(x, x.abs())
        data = Data(splits={"train": split, "test": split}, n_tokens=0, n_answers=1)
        models = [MLPConfig(width=1, activation="abs", bias=False).build(data) for _ in range(2)]
        with torch.no_grad():
            for model, sign in zip(models, (1, -1)):
                model.layers[0].weight.fill_(sign)
                model.layers[1].weight.fill_(1)
        found = linear_mode_connectivity(*models, data, n_points=11)
        expected = (x.double() * (1 - (1 - 2 * found.t).abs())).square().mean(0)
        torch.testing.assert_close(found.loss["train"], expected, rtol=1e-6, atol=1e-9)
        assert found.barrier["test"] == pytest.approx(x.square().mean().item())

    def test_a_way_below_its_ends_has_no_barrier(self):
        """Of a convex loss the ends are the highest."""
        data = regression()
        models = [MLPConfig(depth=0, bias=False).build(data, seeds=(s,)) for s in (0, 1)]
        found = linear_mode_connectivity(*models, data)
        assert found.barrier["train"] == 0
        assert len(found.t) == 21


MODEL = PairMLPConfig(width=4).build(TASK.build(), seeds=(0, 1))
ONE = PairMLPConfig(width=4).build(TASK.build())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sharpness(MODEL), ValueError, "task must say what the model learns"),
        (lambda: sharpness(MODEL, TASK, split="tset"), ValueError, "split must be one of 'train', 'test'"),
        (lambda: sharpness(MODEL, TASK, loss="mse"), TypeError, "loss must be a Loss or None"),
        (lambda: sharpness(MODEL, TASK, tolerance=-1), ValueError, "tolerance must be in"),
        (lambda: largest_eigenvalue(lambda w: w.sum(), torch.ones(2, 2)), ValueError, r"at must be \[P\]"),
        (lambda: local_learning_coefficient(MODEL, TASK, epsilon=0), ValueError, "epsilon must be in"),
        (lambda: local_learning_coefficient(MODEL, TASK, chains=0), ValueError, "chains must be"),
        (lambda: local_learning_coefficient(MODEL, TASK, batch_size=0), ValueError, "batch_size must be"),
        (lambda: local_learning_coefficient(MODEL, TASK, draws=0), ValueError, "draws must be"),
        (lambda: learning_coefficient(lambda w, s: w.sum(1), torch.ones(2, 2)), TypeError, "start must be"),
        (lambda: linear_mode_connectivity(MODEL, ONE, TASK), ValueError, "run_a must be one model, got 2"),
        (lambda: linear_mode_connectivity(ONE, ONE, TASK, n_points=1), ValueError, "n_points must be at least 2"),
        (
            lambda: linear_mode_connectivity(ONE, PairMLPConfig(width=5).build(TASK.build()), TASK),
            ValueError, "run_b must have the parameters of run_a",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
