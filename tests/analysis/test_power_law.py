import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grokfast.analysis import fit_power_law, success_interval
from tests.analysis.runs import DIVERGED, FAILED, table

pytestmark = pytest.mark.filterwarnings("error")

LIMIT = 10_000


def sweep(rng, *, n=60, scatter=0.4, limit=LIMIT, a=-3.0, b=-0.6):
    """Runs of T = 100 D^a λ^b with a log-normal scatter, followed for `limit` steps."""
    fraction, decay = rng.uniform(0.2, 0.6, n), np.exp(rng.uniform(-3, 1, n))
    t = 100 * fraction**a * decay**b * np.exp(scatter * rng.normal(size=n))
    runs = [(60, time if time <= limit else None, min(time, limit)) for time in t]
    return table(*runs, task__train_fraction=fraction, optimizer__weight_decay=decay)


OVER = ["task.train_fraction", "optimizer.weight_decay"]


def test_censored_survival_as_by_an_independent_program():
    """The leukaemia data of test_grok_times: coefficient, its standard error and σ of lifelines 0.30's
    LogNormalAFTFitter, whose intervals are normal and whose σ has no correction for degrees of freedom."""
    crossed, censored = [6, 6, 6, 7, 10, 13, 16, 22, 23], [6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]
    placebo = [1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23]
    runs = [(0, t, t) for t in crossed] + [(0, None, t) for t in censored] + [(0, t, t) for t in placebo]
    law = fit_power_law(table(*runs, drug=[2] * 21 + [1] * 21), over=["drug"])
    assert law.exponents["drug"] == pytest.approx(1.943091, abs=5e-6)
    assert np.log(law.coefficient) == pytest.approx(1.825121, abs=5e-6)
    assert law.scatter == pytest.approx(np.exp(-0.079185) * np.sqrt(30 / 28), abs=1e-5)
    low, high = law.intervals["drug"]
    student = 2.0484071  # 97.5% of Student's t at 28 degrees of freedom
    assert (high - low) / 2 == pytest.approx(0.456610 * student * np.sqrt(30 / 28), abs=1e-5)
    assert (law.n, law.observed, law.excluded) == (42, 30, 0)


def test_without_censoring_it_is_least_squares():
    from scipy.stats import linregress, t

    runs = sweep(np.random.default_rng(1), n=12, limit=np.inf)
    law = fit_power_law(runs, over=["task.train_fraction"])
    line = linregress(np.log(runs["task.train_fraction"]), np.log(runs["t_generalize"]))
    half = t.ppf(0.975, 10) * line.stderr
    assert law.exponents["task.train_fraction"] == pytest.approx(line.slope, rel=1e-6)
    assert law.intervals["task.train_fraction"] == pytest.approx((line.slope - half, line.slope + half), rel=1e-6)
    assert law.coefficient == pytest.approx(np.exp(line.intercept), rel=1e-6)


def test_intervals_cover_the_exponents_though_a_third_is_censored():
    rng = np.random.default_rng(2)
    repetitions, covered, shares = 200, np.zeros(2, int), []
    for _ in range(repetitions):
        law = fit_power_law(sweep(rng, limit=4000), over=OVER)
        shares.append(1 - law.observed / law.n)
        covered += [low <= true <= high for (low, high), true in zip(law.intervals.values(), (-3.0, -0.6))]
    assert 0.25 < np.mean(shares) < 0.45
    for k in covered:
        low, high = success_interval(int(k), repetitions, confidence=0.999)
        assert low <= 0.95 <= high


def test_leaving_the_censored_runs_out_would_flatten_the_law():
    runs = sweep(np.random.default_rng(3), n=400, limit=2000)
    law = fit_power_law(runs, over=OVER)
    kept = [i for i, t in enumerate(runs["t_generalize"]) if t is not None]
    naive = fit_power_law({name: [values[i] for i in kept] for name, values in runs.items()}, over=OVER)
    low, high = law.intervals["task.train_fraction"]
    assert low <= -3.0 <= high
    assert naive.intervals["task.train_fraction"][0] > -3.0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 100), st.randoms(), st.sampled_from([1e-3, 7.0, 1e6]))
def test_order_of_runs_and_units_of_time_and_parameter(seed, random, factor):
    runs = sweep(np.random.default_rng(seed))
    law = fit_power_law(runs, over=OVER)
    places = random.sample(range(60), 60)
    other = {name: [values[i] for i in places] for name, values in runs.items()}
    other["t_generalize"] = [None if t is None else factor * t for t in other["t_generalize"]]
    other["steps"] = [factor * t for t in other["steps"]]
    other["optimizer.weight_decay"] = [1000 * value for value in other["optimizer.weight_decay"]]
    scaled = fit_power_law(other, over=OVER)
    for name in OVER:
        assert scaled.exponents[name] == pytest.approx(law.exponents[name], rel=1e-6)
        assert scaled.intervals[name] == pytest.approx(law.intervals[name], rel=1e-6)
    decay = law.exponents["optimizer.weight_decay"]
    assert scaled.coefficient == pytest.approx(law.coefficient * factor * 1000**-decay, rel=1e-5)


def test_predictions_are_medians_of_the_law():
    law = fit_power_law(sweep(np.random.default_rng(4), scatter=1e-6, limit=np.inf), over=OVER)
    values = {"task.train_fraction": np.array([0.3, 0.5]), "optimizer.weight_decay": 2.0}
    assert law.predict(values) == pytest.approx(100 * np.array([0.3, 0.5]) ** -3.0 * 2.0**-0.6, rel=1e-5)
    assert str(law) == "T ≈ 100 D^-3.00 λ^-0.60"
    with pytest.raises(ValueError, match=r"missing: optimizer\.weight_decay"):
        law.predict({"task.train_fraction": 0.3})


def test_runs_without_an_outcome_are_counted_and_diverged_ones_are_censored():
    runs = sweep(np.random.default_rng(5))
    extra = table(FAILED, DIVERGED, task__train_fraction=[0.3, 0.3], optimizer__weight_decay=[0.0, 1.0])
    law = fit_power_law({name: [*values, *extra[name]] for name, values in runs.items()}, over=OVER)
    assert (law.n, law.excluded) == (61, 1)


@pytest.mark.parametrize(
    ("change", "over", "message"),
    [
        ({}, ["task.train_fractoin"], r"did you mean 'task.train_fraction'\?"),
        ({}, [], r"over must be a sequence of different column names, got \[\]"),
        ({}, "task.train_fraction", "over must be a sequence"),
        ({}, ["task.train_fraction"] * 2, "over must be a sequence of different"),
        ({"optimizer.weight_decay": [0.0] * 60}, OVER, "positive numbers, column 'optimizer.weight_decay' has 0.0"),
        ({"optimizer.weight_decay": ["a"] * 60}, OVER, "positive numbers, column 'optimizer.weight_decay' has 'a'"),
        ({"optimizer.weight_decay": [1.0] * 60}, OVER, "do not determine 3 parameters"),
        ({"t_generalize": [None] * 60}, OVER, "0 runs with a t_generalize do not determine"),
        ({"t_generalize": [500.0] * 60}, OVER, "do not determine"),
        ({"t_generalize": [0] * 60}, OVER, "steps above 0"),
    ],
)
def test_what_determines_no_law_is_refused(change, over, message):
    with pytest.raises(ValueError, match=message):
        fit_power_law(sweep(np.random.default_rng(6)) | change, over=over)
