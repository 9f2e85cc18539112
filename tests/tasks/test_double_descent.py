"""Tasks whose test error falls, rises and falls again: with the steps in closed form, and with the width."""

import pytest
import torch

from grokfast import Experiment, train
from grokfast.losses import MSE
from grokfast.models import MLPConfig
from grokfast.reproductions.davies2023 import flow, smallest_norm_error
from grokfast.tasks import DigitsTask, RandomFeaturesTask, TwoScaleTask


def test_two_scales_and_who_has_noise():
    task = TwoScaleTask(n_train=4000, n_test=500, n_large=30, n_small=10, small_scale=0.2, coefficient=5, noise=0.7)
    data = task.build(seed=3)
    assert (len(data.train), len(data.test), data.seq_len, data.n_answers, data.is_real) == (4000, 500, 40, 1, True)
    deviations = data.train.inputs.std(0)
    assert deviations[:30].tolist() == pytest.approx([1] * 30, rel=0.06)
    assert deviations[30:].tolist() == pytest.approx([0.2] * 10, rel=0.06)
    x, y = data.test.inputs.double(), data.test.targets.double()
    beta = torch.linalg.lstsq(x, y).solution
    assert (x @ beta - y).abs().max() < 1e-5
    assert beta[:30].square().sum().item() == pytest.approx(1, abs=0.8)  # a sum of 30 squares, of mean 1
    assert beta[30:].square().sum().item() == pytest.approx(25, abs=24)
    rest = data.train.targets - data.train.inputs.double() @ beta
    assert rest.std().item() == pytest.approx(0.7, rel=0.05)


def test_noise_has_a_seed_of_its_own():
    one, other = (TwoScaleTask(n_train=20, split_seed=1, noise_seed=s).build() for s in (1, 2))
    assert torch.equal(one.train.inputs, other.train.inputs)
    assert torch.equal(one.test.targets, other.test.targets)
    assert not torch.equal(one.train.targets, other.train.targets)
    clean = [TwoScaleTask(n_train=20, split_seed=1, noise=0.0).build(seed=s).train.targets for s in (1, 2)]
    assert torch.equal(*clean)


def test_the_error_has_a_peak_at_some_step():
    """Measured for 20 seeds: 2.6 to 2.9 at .5, 5.1 to 5.2 at 31, .67 to .69 at 1,400."""
    found = torch.stack([flow(TwoScaleTask().build(seed=seed), (0.5, 31, 1400)) for seed in range(8)]).mean(0)
    first, peak, last = found.tolist()
    assert 2 < first < 3.6
    assert peak > 1.4 * first
    assert peak > 4
    assert 0.5 < last < 0.9


def test_a_linear_model_goes_the_way_of_the_flow():
    """Gradient descent at rate lr on the mean squared error is at time 2 · lr · step."""
    task = TwoScaleTask(n_train=60, n_test=300, n_large=40, n_small=4, small_scale=0.2, split_seed=0, noise_seed=0)
    model = MLPConfig(depth=0, bias=False, init_scale=1e-6)
    steps = {"schedule.steps": 1500, "schedule.eval_every": 100, "precision": "float64"}
    run = train(
        Experiment(name="linear", task=task, model=model, loss=MSE(), device="cpu").override(
            {"optimizer": "sgd(lr=0.1,warmup=0)", **steps}
        )
    )
    times, losses = 0.2 * run.curves["step"][1:], torch.tensor(run.curves["test_loss"][1:])
    torch.testing.assert_close(losses, flow(task.build(), times), rtol=0.02, atol=0)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (TwoScaleTask, {"n_large": 0}, "n_large must be between 1 and 16384, got 0"),
        (TwoScaleTask, {"small_scale": 0}, "small_scale must be in"),
        (TwoScaleTask, {"noise": -1}, "noise must be in"),
        (TwoScaleTask, {"n_train": 2**20 + 1}, "n_train must be between 1"),
        (RandomFeaturesTask, {"width": 0}, "width must be between 1 and 65536, got 0"),
        (RandomFeaturesTask, {"n_train": 1001}, "n_train and n_test must be at most 1,797 together, got 1,798"),
        (RandomFeaturesTask, {"feature_seed": -1}, "feature_seed must be between 0"),
    ],
)
def test_what_is_out_of_range_is_refused(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**arguments)


class TestRandomFeatures:
    @pytest.fixture(autouse=True)
    def _scikit_learn(self):
        pytest.importorskip("sklearn.datasets", reason="needs scikit-learn: pip install 'grokfast[data]'")

    def test_they_are_functions_of_the_digits_alone(self):
        task = RandomFeaturesTask(width=50, n_train=100, n_test=40, label_noise=0.1)
        data, digits = task.build(seed=2), DigitsTask(n_train=100, n_test=40, label_noise=0.1).build(seed=2)
        assert (data.seq_len, data.n_answers, len(data.train), len(data.test)) == (50, 10, 100, 40)
        assert torch.equal(data.train.targets, digits.train.targets)
        assert torch.equal(data.corrupted, digits.corrupted)
        assert (data.train.inputs >= 0).all()
        # One affine map explains all positive entries, of both splits.
        x = torch.cat([split.inputs for split in digits.splits.values()]).double() - digits.train.inputs.double().mean(
            0
        )
        x, y = (
            torch.cat([x, torch.ones(140, 1)], 1),
            torch.cat([split.inputs for split in data.splits.values()]).double(),
        )
        used = x.abs().sum(0) > 0
        solved = []
        for i in (y > 0).sum(0).topk(5).indices.tolist():
            there = y[:, i] > 0
            own = torch.linalg.lstsq(x[there], y[there, i, None], driver="gelsd").solution
            assert (x[there] @ own - y[there, i, None]).abs().max() < 1e-5
            solved.append(own[used])
        assert len(solved) == 5

    def test_seeds(self):
        def built(**seeds):
            return RandomFeaturesTask(width=20, n_train=30, n_test=10, **seeds).build(seed=5)

        one, other = built(feature_seed=1), built(feature_seed=2)
        assert torch.equal(one.train.targets, other.train.targets)
        assert not torch.equal(one.train.inputs, other.train.inputs)
        assert torch.equal(built().train.inputs, built(feature_seed=5).train.inputs)

    def test_the_error_has_a_peak_where_width_is_the_number_of_rows(self):
        """Measured for 3 seeds: .12, .87, .10 at widths 100, 300, 6,000."""
        errors = {}
        for width in (100, 300, 4000):
            found = [smallest_norm_error(RandomFeaturesTask(width=width).build(seed=seed)) for seed in range(2)]
            errors[width] = sum(found) / 2
        assert errors[100] < 0.2
        assert errors[300] > 0.6
        assert errors[4000] < errors[100]

    def test_the_size_of_features(self):
        """Of inputs z ~ N(0, s²) relu has mean square s²/2: here s² = |x - mean|²/64 + .01."""
        task = RandomFeaturesTask(width=20_000, n_train=50, n_test=10)
        data, digits = task.build(), DigitsTask(n_train=50, n_test=10).build()
        x = digits.train.inputs - digits.train.inputs.mean(0)
        expected = (x.square().sum(1) / 64 + 0.01) / 2
        torch.testing.assert_close(data.train.inputs.square().sum(1), expected, rtol=0.06, atol=0)
