"""The largest eigenvalue of a Hessian, from its products with vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grokfast import checks
from grokfast.seeds import generator


def largest_eigenvalue(
    function: Callable[[Tensor], Tensor], at: Tensor, *, tolerance: float = 1e-3, seed: int = 0
) -> float:  # fmt: skip
    """Of the Hessian of `function`, [P] -> a number, at the point [P]; the largest, not the largest in size.

    By SciPy's Lanczos iteration (ARPACK) on Hessian-vector products, a backward pass each, to the relative
    `tolerance`; its start is drawn from `seed`.
    Raises TypeError where `at` is no floating-point tensor, ValueError where it is not [P], or a derivative is not
    finite, and RuntimeError where the iteration does not converge.
    """
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    if not isinstance(at, Tensor) or not at.is_floating_point():
        raise TypeError(f"at must be a floating-point tensor [P], got {getattr(at, 'dtype', checks.shown(at))}")
    if at.ndim != 1 or not len(at):
        raise ValueError(f"at must be [P], got {[*at.shape]}")
    checks.real("tolerance", tolerance, minimum=0)
    point = at.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(point), point, create_graph=True)

    def product(v: Any) -> np.ndarray:
        vector = torch.from_numpy(np.asarray(v, dtype=np.float64).ravel().copy()).to(at)
        if not gradient.requires_grad:
            return np.zeros(len(at))
        (found,) = torch.autograd.grad(
            gradient, point, vector, retain_graph=True, allow_unused=True, materialize_grads=True
        )  # fmt: skip
        if not torch.isfinite(found).all():
            raise ValueError("the Hessian must be finite, got NaN or infinity")
        return found.double().cpu().numpy()

    if len(at) == 1:
        return float(product(np.ones(1))[0])
    start = torch.randn(len(at), generator=generator(seed, "start"), dtype=torch.float64).numpy()
    if not product(start).any():
        return 0.0
    operator = LinearOperator((len(at), len(at)), matvec=product, dtype=np.float64)
    try:
        return float(eigsh(operator, k=1, which="LA", v0=start, tol=tolerance, return_eigenvectors=False)[0])
    except ArpackNoConvergence as error:
        raise RuntimeError(f"the largest eigenvalue was not found to {tolerance:g}: {error}") from error
