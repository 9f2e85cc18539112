"""T ∝ D^a λ^b η^c: how the time to generalise scales, fitted to runs of which some never generalised."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from grokfast import checks
from grokfast.analysis.table import ENDED, columns, step_column

_SYMBOLS = {"task.train_fraction": "D", "optimizer.weight_decay": "λ", "optimizer.lr": "η"}


class UndeterminedError(ValueError):
    """The runs do not determine a power law."""


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """T = coefficient · Π x^exponents[x] · exp(scatter · z), z ~ N(0, 1): a median and a scatter of log T around it.

    intervals hold each exponent's confidence interval; `observed` of the `n` ended runs have crossed, the others are
    censored; `excluded` runs failed or have not ended.
    """

    coefficient: float
    exponents: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    scatter: float
    n: int
    observed: int
    excluded: int

    def predict(self, values: Mapping[str, Any]) -> np.ndarray:
        """The median time in steps at `values`, a number or an array for each parameter of the law.

        Raises ValueError if a parameter is missing.
        """
        if missing := [name for name in self.exponents if name not in values]:
            raise ValueError(f"values must name every parameter of the law; missing: {', '.join(missing)}")
        powers = [np.asarray(values[name], dtype=np.float64) ** a for name, a in self.exponents.items()]
        return np.asarray(self.coefficient * math.prod(powers))

    def __str__(self) -> str:
        powers = [f"{symbol(name)}^{exponent:.2f}" for name, exponent in self.exponents.items()]
        return f"T ≈ {self.coefficient:.3g} {' '.join(powers)}"


def symbol(name: str) -> str:
    """The letter of a parameter in the papers, or the last part of its dotted name."""
    return _SYMBOLS.get(name, name.rpartition(".")[2])


def fit_power_law(table: Any, *, over: Sequence[str], time: str = "t_generalize", confidence: float = 0.95) -> PowerLaw:
    """Fit `time` against the columns `over` by maximum likelihood: a log-normal model with right censoring.

    A run that never crossed contributes the probability of a time beyond its last step (diverged ones, too: the law is
    about runs that train); failed and unfinished runs are left out and counted. The likelihood is concave in
    Olsen's (1978) parameters, so the maximum is the only one. Intervals are Student's, with as many degrees of freedom
    as crossings beyond parameters and the observed information: without censoring they are those of least squares.

    Raises ValueError for a column that is not there and for values that are not positive, UndeterminedError (a
    ValueError) for crossings at step 0, which have no logarithm, and where the runs that crossed are too few, or too
    alike in `over`, to determine the exponents.
    """
    from scipy.optimize import minimize
    from scipy.stats import t as student

    checks.choice("time", time, ("t_generalize", "t_memorize"))
    checks.real("confidence", confidence, minimum=0, maximum=1, open_minimum=True, open_maximum=True)
    if isinstance(over, str) or not over or len(set(over)) < len(over):
        raise ValueError(f"over must be a sequence of different column names, got {over!r}")
    found = columns(table, (*over, "status", time, "steps"))
    ended = np.array([status in ENDED for status in found["status"]])
    design = np.column_stack([np.ones(ended.sum()), *(_logarithms(name, found[name], ended) for name in over)])
    crossing = step_column(time, found[time])[ended]
    crossed = ~np.isnan(crossing)
    steps = np.where(crossed, crossing, step_column("steps", found["steps"])[ended])
    if not (steps > 0).all():
        raise UndeterminedError(f"a power law needs steps above 0, got {time} or steps of 0 or None")
    y = np.log(steps)
    exact, parameters = int(crossed.sum()), design.shape[1]
    if np.linalg.matrix_rank(np.column_stack([design, y])[crossed]) < parameters + 1 or exact <= parameters + 1:
        raise UndeterminedError(
            f"{exact} runs with a {time} do not determine {parameters} parameters and a scatter: at least "
            f"{parameters + 2} are needed, with values of {', '.join(over)} that vary independently of each other"
        )
    center, scale = y[crossed].mean(), y[crossed].std()
    standard = (y - center) / scale
    begin = np.linalg.lstsq(design, standard, rcond=None)[0]
    spread = max(float((standard - design @ begin).std()), 1e-3)
    best = minimize(
        _negative_log_likelihood,
        np.append(begin, 1.0) / spread,
        args=(design, standard, crossed),
        jac=True,
        hess=_hessian,
        method="trust-exact",
        options={"gtol": 1e-9 * len(y)},
    )
    gamma = best.x[-1]
    beta = best.x[:-1] / gamma * scale
    beta[0] += center
    covariance = _covariance(best.x, _hessian(best.x, design, standard, crossed)) * scale**2 * exact
    freedom = exact - parameters
    half = student.ppf(0.5 + confidence / 2, freedom) * np.sqrt(np.diag(covariance)[1:] / freedom)
    return PowerLaw(
        coefficient=float(np.exp(beta[0])),
        exponents={name: float(b) for name, b in zip(over, beta[1:])},
        intervals={name: (float(b - h), float(b + h)) for name, b, h in zip(over, beta[1:], half)},
        scatter=float(scale / gamma * math.sqrt(exact / freedom)),
        n=len(y),
        observed=exact,
        excluded=int((~ended).sum()),
    )


def _negative_log_likelihood(
    x: np.ndarray, design: np.ndarray, y: np.ndarray, crossed: np.ndarray
) -> tuple[float, np.ndarray]:
    """And its gradient, in δ = β/σ and γ = 1/σ: Σ_crossed (½z² − log γ) − Σ_censored log Φ(−z), z = γy − Xδ."""
    from scipy.special import log_ndtr

    if x[-1] <= 0:
        return math.inf, np.zeros_like(x)
    z = x[-1] * y - design @ x[:-1]
    slope = np.where(crossed, z, _mills(z))
    value = (0.5 * z[crossed] ** 2).sum() - crossed.sum() * math.log(x[-1]) - log_ndtr(-z[~crossed]).sum()
    gradient = np.append(-design.T @ slope, slope @ y - crossed.sum() / x[-1])
    return float(value), gradient


def _hessian(x: np.ndarray, design: np.ndarray, y: np.ndarray, crossed: np.ndarray) -> np.ndarray:
    z = x[-1] * y - design @ x[:-1]
    mills = _mills(z)
    curvature = np.where(crossed, 1.0, mills * (mills - z))
    rows = np.column_stack([-design, y])
    hessian: np.ndarray = (rows * curvature[:, None]).T @ rows
    hessian[-1, -1] += crossed.sum() / x[-1] ** 2
    return hessian


def _covariance(x: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    """Of β = δ/γ, by the delta method from that of δ and γ."""
    jacobian = np.column_stack([np.eye(len(x) - 1), -x[:-1] / x[-1]]) / x[-1]
    covariance: np.ndarray = jacobian @ np.linalg.inv(hessian) @ jacobian.T
    return covariance


def _mills(z: np.ndarray) -> np.ndarray:
    """φ(z) / Φ(−z), the hazard of the normal distribution."""
    from scipy.special import log_ndtr

    hazard: np.ndarray = np.exp(-0.5 * z**2 - 0.5 * math.log(2 * math.pi) - log_ndtr(-z))
    return hazard


def _logarithms(name: str, values: Sequence[Any], ended: np.ndarray) -> np.ndarray:
    kept = [value for value, keep in zip(values, ended) if keep]
    try:
        numbers = np.array(kept, dtype=np.float64)
    except (TypeError, ValueError):
        numbers = np.full(len(kept), math.nan)
    if not (np.isfinite(numbers) & (numbers > 0)).all():
        wrong = next(value for value, number in zip(kept, numbers) if not (np.isfinite(number) and number > 0))
        raise ValueError(f"a power law needs positive numbers, column {name!r} has {wrong!r}")
    logarithms: np.ndarray = np.log(numbers)
    return logarithms
